"""What a batch will cost, told before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foreword._errors import ForewordError, ParameterError
from foreword.scheduling._groups import Method, find_groups
from foreword.scheduling._policy import Candidate


class PlanError(ForewordError, ValueError):
    """A plan that cannot run: a request needs more memory than there is."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """Groups, tokens and memory of a batch. Memory is in tokens of keys and values.

    Attributes:
        requests: how many there are.
        groups: prefixes that two requests or more share, and that are computed once for them.
        grouped_requests: requests that are in a group.
        largest_group: requests of the group with most of them.
        longest_prefix: tokens of the longest group prefix.
        prompt_tokens: tokens of all prompts.
        computed_tokens: tokens that the plan computes at most; the order in which it runs may save
            more.
        ideal_tokens: tokens that are computed if nothing is ever computed twice.
        output_tokens: tokens that may be written at most.
        least_memory: memory that runs every request, if need be alone.
        least_memory_request: the id of a request that needs so much; -1 without requests.
        wanted_memory: memory that runs any of the groups as a whole: its prefix once, its members'
            own parts and their longest answers. A global group stays anyway and does not count.
        capacity: memory there is; None if not told.
    """

    requests: int
    groups: int
    grouped_requests: int
    largest_group: int
    longest_prefix: int
    prompt_tokens: int
    computed_tokens: int
    ideal_tokens: int
    output_tokens: int
    least_memory: int
    least_memory_request: int
    wanted_memory: int
    capacity: int | None = None

    @property
    def saved_tokens(self) -> int:
        """Prompt tokens that are not computed."""
        return self.prompt_tokens - self.computed_tokens

    @property
    def fits(self) -> bool:
        """Whether every request can run in the capacity; true if that is not known."""
        return self.capacity is None or self.least_memory <= self.capacity

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, `saved_tokens` and `fits` too."""
        return {**asdict(self), "saved_tokens": self.saved_tokens, "fits": self.fits}

    def lines(self) -> list[str]:
        """The same for people, a few short lines."""
        told = [
            f"{_count(self.requests, 'request')}, {_count(self.prompt_tokens, 'prompt token')}, "
            f"at most {self.output_tokens:,} to write"
        ]
        if self.groups:
            told.append(
                f"{_count(self.groups, 'group')} with {self.grouped_requests:,} of the requests; "
                f"the largest has {self.largest_group:,}, "
                f"the longest prefix {_count(self.longest_prefix, 'token')}"
            )
        else:
            told.append("no groups: no two requests have a beginning in common that pays")
        told.append(
            f"computes at most {self.computed_tokens:,} of the prompt tokens "
            f"and saves {self.saved_tokens:,}{self._share(self.saved_tokens)}; "
            f"ideal: {self.prompt_tokens - self.ideal_tokens:,}"
            f"{self._share(self.prompt_tokens - self.ideal_tokens)}"
        )
        memory = (
            f"memory in tokens: {self.least_memory:,} at least, "
            f"{self.wanted_memory:,} to run every group as a whole"
        )
        if self.capacity is not None:
            memory += f"; there are {self.capacity:,}"
        told.append(memory)
        return told

    def _share(self, tokens: int) -> str:
        return f" ({tokens / self.prompt_tokens:.1%})" if self.prompt_tokens else ""


def report_plan(
    candidates: Sequence[Candidate],
    *,
    method: Method = "exact",
    global_level: bool = True,
    unit: int = 1,
    capacity: int | None = None,
) -> PlanReport:
    """What `BatchLLM` would do with these requests. Runs nothing, costs what `find_groups` costs.

    Args:
        candidates: the requests, all at once.
        method, global_level: as `BatchLLM` has them.
        unit: tokens that a path element stands for.
        capacity: tokens that the cache can hold, if known.

    Raises:
        ParameterError: a setting out of its range, or a path that disagrees with its length.
    """
    if capacity is not None and capacity < 1:
        raise ParameterError(f"capacity is {capacity}: a cache holds 1 token or more")
    items = [(candidate.path, candidate.tokens) for candidate in candidates]
    scopes = [candidate.scope for candidate in candidates]
    plan = find_groups(items, method=method, global_level=global_level, unit=unit, scopes=scopes)
    needs = [candidate.tokens + candidate.max_output for candidate in candidates]
    largest = max(range(len(needs)), key=needs.__getitem__, default=-1)
    least = wanted = needs[largest] if needs else 0
    for group in plan.groups:
        if not group.is_global:
            own = sum(needs[index] - group.tokens for index in group.members)
            wanted = max(wanted, group.tokens + own)
    shared = [group for group in plan.groups if group.members]
    return PlanReport(
        requests=len(candidates),
        groups=len(shared),
        grouped_requests=sum(len(group.members) for group in shared),
        largest_group=max((len(group.members) for group in shared), default=0),
        longest_prefix=max((group.tokens for group in shared), default=0),
        prompt_tokens=plan.prompt_tokens,
        computed_tokens=plan.computed_tokens,
        ideal_tokens=plan.distinct_tokens,
        output_tokens=sum(candidate.max_output for candidate in candidates),
        least_memory=least,
        least_memory_request=candidates[largest].id if needs else -1,
        wanted_memory=wanted,
        capacity=capacity,
    )


def require_fit(report: PlanReport, capacity: int) -> None:
    """Let pass a plan whose every request fits in `capacity` tokens.

    Raises:
        PlanError: one does not; says which, and the least memory that would do.
    """
    if report.least_memory > capacity:
        raise PlanError(
            f"request {report.least_memory_request} needs {report.least_memory:,} tokens of memory "
            f"with the longest answer it may write, and the cache holds {capacity:,}: give the "
            f"cache at least {report.least_memory:,} tokens, or allow shorter answers"
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
