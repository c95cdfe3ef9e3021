"""Policies: who runs next, with whom. Pure Python, no tensors."""

from foreword.scheduling._policy import Candidate, FirstComeFirstServed, Policy

__all__ = ["Candidate", "FirstComeFirstServed", "Policy"]
