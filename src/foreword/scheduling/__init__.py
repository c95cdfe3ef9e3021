"""Policies: who runs next, with whom. Pure Python, no tensors."""

from foreword.scheduling._batchllm import BatchLLM
from foreword.scheduling._d2lpm import DistributedDeficitLongestPrefixMatch
from foreword.scheduling._fcfs import FirstComeFirstServed
from foreword.scheduling._groups import Group, GroupPlan, find_groups
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._plan import PlanError, PlanReport, report_plan, require_fit
from foreword.scheduling._policy import Candidate, Departure, Door, Hold, Policy
from foreword.scheduling._power_of_two import PowerOfTwo
from foreword.scheduling._prefix_affinity import PrefixAffinity
from foreword.scheduling._registry import make_policy, policy_names
from foreword.scheduling._round_robin import RoundRobin
from foreword.scheduling._router import NoWorkerError, QueueRouter, Router
from foreword.scheduling._router_index import RouterIndex
from foreword.scheduling._router_registry import make_router, router_names

__all__ = [
    "BatchLLM",
    "Candidate",
    "Departure",
    "DistributedDeficitLongestPrefixMatch",
    "Door",
    "FirstComeFirstServed",
    "Group",
    "GroupPlan",
    "Hold",
    "LinePolicy",
    "NoWorkerError",
    "PlanError",
    "PlanReport",
    "Policy",
    "PowerOfTwo",
    "PrefixAffinity",
    "QueueRouter",
    "RoundRobin",
    "Router",
    "RouterIndex",
    "find_groups",
    "make_policy",
    "make_router",
    "policy_names",
    "report_plan",
    "require_fit",
    "router_names",
]
