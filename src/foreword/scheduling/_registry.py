"""Policies by name, with their settings: `"dlpm"`, `"dlpm:quantum=4000,output_weight=2"`."""

from __future__ import annotations

from typing import Any

from foreword.scheduling._batchllm import BatchLLM
from foreword.scheduling._fcfs import FirstComeFirstServed
from foreword.scheduling._line import LinePolicy
from foreword.scheduling._policy import Policy
from foreword.scheduling._settings import make_named

POLICIES: dict[str, type[LinePolicy]] = {
    policy.name: policy for policy in (FirstComeFirstServed, BatchLLM)
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
