"""Attention over a prefix tree: states that merge, work lists that share, backends that run them.

For one query and any set S of keys and values, the *state* is the pair ``(out, lse)``: softmax
attention over S and the natural logarithm of its normaliser. States of disjoint sets merge, so a
tree of shared prefixes is answered run by run: every run of keys is read once for all the rows that
see it, and each row merges the few partial states on its path.

The planner turns a tree into a flat :class:`WorkList`; a :class:`Backend` runs that list once per
layer; :meth:`WorkList.advance` grows it by a token per row while nobody joins or leaves.
"""

from foreword.attention._backend import Backend
from foreword.attention._errors import BackendError, PlanError
from foreword.attention._linear import FEATURE_MAPS, FeatureMap, LinearSegment, feature_map
from foreword.attention._planner import Span, plan
from foreword.attention._registry import backends, choose
from foreword.attention._state import AttentionState, empty_state, merge, merge_many
from foreword.attention._worklist import WorkList

__all__ = [
    "FEATURE_MAPS",
    "AttentionState",
    "Backend",
    "BackendError",
    "FeatureMap",
    "LinearSegment",
    "PlanError",
    "Span",
    "WorkList",
    "backends",
    "choose",
    "empty_state",
    "feature_map",
    "merge",
    "merge_many",
    "plan",
]
