"""Policies: who runs next, with whom. Pure Python, no tensors."""

from foreword.scheduling._d2lpm import DistributedDeficitLongestPrefixMatch
from foreword.scheduling._fcfs import FirstComeFirstServed
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._policy import Candidate, Departure, Door, Hold, Policy
from foreword.scheduling._power_of_two import PowerOfTwo
from foreword.scheduling._prefix_affinity import PrefixAffinity
from foreword.scheduling._registry import make_policy, policy_names
from foreword.scheduling._round_robin import RoundRobin
from foreword.scheduling._router import NoWorkerError, QueueRouter, Router
from foreword.scheduling._router_index import RouterIndex
from foreword.scheduling._router_registry import make_router, router_names

__all__ = [
    "Candidate",
    "Departure",
    "DistributedDeficitLongestPrefixMatch",
    "Door",
    "FirstComeFirstServed",
    "Hold",
    "LinePolicy",
    "NoWorkerError",
    "Policy",
    "PowerOfTwo",
    "PrefixAffinity",
    "QueueRouter",
    "RoundRobin",
    "Router",
    "RouterIndex",
    "make_policy",
    "make_router",
    "policy_names",
    "router_names",
]
