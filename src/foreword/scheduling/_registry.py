"""Policies by name, with their settings: `"dlpm"`, `"dlpm:quantum=4000,output_weight=2"`."""

from __future__ import annotations

from typing import Any

from foreword.scheduling._batchllm import BatchLLM
from foreword.scheduling._blendserve import BlendServe
from foreword.scheduling._depth_first import DepthFirst
from foreword.scheduling._dlpm import DeficitLongestPrefixMatch
from foreword.scheduling._fcfs import FirstComeFirstServed
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._lpm import LongestPrefixMatch
from foreword.scheduling._policy import Policy
from foreword.scheduling._settings import make_named
from foreword.scheduling._vtc import VirtualTokenCounter

POLICIES: dict[str, type[LinePolicy]] = {
    policy.name: policy
    for policy in (
        FirstComeFirstServed,
        LongestPrefixMatch,
        DepthFirst,
        VirtualTokenCounter,
        DeficitLongestPrefixMatch,
        BatchLLM,
        BlendServe,
    )
}


def policy_names() -> tuple[str, ...]:
    """The names that `make_policy` knows."""
    return tuple(POLICIES)


def make_policy(text: str, **settings: Any) -> Policy:
    """A fresh policy from its name and settings.

    Args:
        text: a name, or a name with settings behind a colon: `"dlpm:quantum=4000"`. Numbers are
            taken as numbers, `true`, `false` and `none` as what they say, all else as text.
        settings: more of them; they win.

    Raises:
        ParameterError: an unknown name or setting, or a value out of its range.
    """
    return make_named("policy", POLICIES, text, settings)
