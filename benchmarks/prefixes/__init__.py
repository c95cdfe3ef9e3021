"""Learned prefixes measured: many in one batch against one, and against PEFT, one after another.

python -m benchmarks.prefixes.mixed
"""
