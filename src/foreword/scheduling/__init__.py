"""Policies: who runs next, with whom. Pure Python, no tensors."""

from foreword.scheduling._fcfs import FirstComeFirstServed
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._policy import Candidate, Departure, Door, Hold, Policy
from foreword.scheduling._registry import make_policy, policy_names

__all__ = [
    "Candidate",
    "Departure",
    "Door",
    "FirstComeFirstServed",
    "Hold",
    "LinePolicy",
    "Policy",
    "make_policy",
    "policy_names",
]
