"""Trials of the server under load, faults and hostile clients; each declares what it expects first.

python -m benchmarks.server.soak
"""
