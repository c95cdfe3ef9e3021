"""One file per published claim: what was claimed, what we measured, and the verdict.

python -m experiments.dlpm
"""
