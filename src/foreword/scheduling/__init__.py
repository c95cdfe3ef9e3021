"""Policies: who runs next, with whom. Pure Python, no tensors."""

from foreword.scheduling._batchllm import BatchLLM
from foreword.scheduling._blendserve import BlendServe
from foreword.scheduling._d2lpm import DistributedDeficitLongestPrefixMatch
from foreword.scheduling._density import Resources
from foreword.scheduling._depth_first import DepthFirst
from foreword.scheduling._dlpm import DeficitLongestPrefixMatch, dlpm_bound
from foreword.scheduling._fcfs import FirstComeFirstServed
from foreword.scheduling._groups import Group, GroupPlan, find_groups
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._lpm import LongestPrefixMatch
from foreword.scheduling._plan import PlanError, PlanReport, report_plan, require_fit
from foreword.scheduling._policy import Candidate, Departure, Door, Hold, Policy
from foreword.scheduling._power_of_two import PowerOfTwo
from foreword.scheduling._prefix_affinity import PrefixAffinity
from foreword.scheduling._registry import make_policy, policy_names
from foreword.scheduling._round_robin import RoundRobin
from foreword.scheduling._router import NoWorkerError, QueueRouter, Router
from foreword.scheduling._router_index import RouterIndex
from foreword.scheduling._router_registry import make_router, router_names
from foreword.scheduling._vtc import VirtualTokenCounter, vtc_bound

__all__ = [
    "BatchLLM",
    "BlendServe",
    "Candidate",
    "DeficitLongestPrefixMatch",
    "Departure",
    "DepthFirst",
    "DistributedDeficitLongestPrefixMatch",
    "Door",
    "FirstComeFirstServed",
    "Group",
    "GroupPlan",
    "Hold",
    "LinePolicy",
    "LongestPrefixMatch",
    "NoWorkerError",
    "PlanError",
    "PlanReport",
    "Policy",
    "PowerOfTwo",
    "PrefixAffinity",
    "QueueRouter",
    "Resources",
    "RoundRobin",
    "Router",
    "RouterIndex",
    "VirtualTokenCounter",
    "dlpm_bound",
    "find_groups",
    "make_policy",
    "make_router",
    "policy_names",
    "report_plan",
    "require_fit",
    "router_names",
    "vtc_bound",
]
