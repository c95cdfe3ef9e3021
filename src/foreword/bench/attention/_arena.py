"""One point measured: everybody in turn, again and again, until the time set aside is spent."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, cast

from foreword.bench._measure import summary
from foreword.bench.attention._clock import repeats_for, seconds
from foreword.bench.attention._contenders import prepare
from foreword.bench.attention._problem import Problem, SkippedError
from foreword.bench.attention._settings import BACKENDS, PER_REQUEST

if TYPE_CHECKING:
    import torch

    from foreword.bench.attention._clock import Flush
    from foreword.bench.attention._points import Point
    from foreword.bench.attention._problem import Noise
    from foreword.bench.attention._ready import Ready
    from foreword.bench.attention._roofline import Peaks
    from foreword.bench.attention._settings import AttentionSettings

LEAST_REPEATS = 3
PLANS = 3  # samples of what planning costs
LONG = 0.1  # seconds; reads more than caches hold


class Arena:
    """Where points are measured, one after the other.

    Args:
        settings: who takes part, how long, in how much memory.
        device, noise, flush, peaks: shared by all points.
    """

    def __init__(
        self,
        settings: AttentionSettings,
        device: torch.device,
        noise: Noise,
        flush: Flush,
        peaks: Peaks,
    ) -> None:
        self.settings, self.device = settings, device
        self.noise, self.flush, self.peaks = noise, flush, peaks

    def measure(self, point: Point) -> dict[str, Any]:
        """The point's row: what it asks for, what the roofline allows, and what everybody took."""
        row = facts(point, self.peaks)
        try:
            problem = Problem(point, self.noise, self.device, self.settings.memory)
        except SkippedError as reason:
            return row | {"skipped": str(reason)}
        ready: dict[str, Ready] = {}
        skipped: dict[str, str] = {}
        for name in self.settings.contenders:
            try:
                ready[name] = prepare(name, problem)
            except SkippedError as reason:
                skipped[name] = str(reason)
        samples = self._take_turns(ready)
        row["contenders"] = {
            name: _result(ready[name], samples[name], row)
            if name in ready
            else {"skipped": skipped[name]}
            for name in self.settings.contenders
        }
        row |= compare(row["contenders"])
        del problem, ready, samples
        gc.collect()
        return cast("dict[str, Any]", rounded(row))

    def _take_turns(self, ready: dict[str, Ready]) -> dict[str, _Samples]:
        samples = {name: _Samples(r, self.device, self.flush) for name, r in ready.items()}
        for repeat in range(self.settings.repeats):
            spent = sum(each.spent for each in samples.values())
            if repeat >= LEAST_REPEATS and spent * (repeat + 1) / repeat > self.settings.seconds:
                break
            for each in samples.values():
                each.take(plans=repeat < PLANS)
        return samples


class _Samples:
    """The seconds of one contender."""

    def __init__(self, ready: Ready, device: torch.device, flush: Flush) -> None:
        self._ready, self._device, self._flush = ready, device, flush
        self.spent = 0.0
        self.kinds: dict[str, list[float]] = {}
        estimate = self._seconds(ready.run)
        self._times, self._long = repeats_for(estimate), estimate > LONG

    def take(self, *, plans: bool) -> None:
        """One sample of each kind. The call before the warm one does not count: it puts back what
        the others threw out of the caches. A long call finds nothing there anyway."""
        run, replan, advance = self._ready.run, self._ready.replan, self._ready.advance
        if replan is not None and plans:
            planning = self._add("plan", self._seconds(replan))
            self._add("first", planning + self._seconds(run))
            if advance is not None:
                advancing = self._add("advance", self._seconds(advance))
                self._add("advanced", advancing + self._seconds(run))
                replan()
        if not self._long:
            self._seconds(run)
        self._add("warm", self._seconds(run, self._times))
        self._flush()
        self._add("cold", self._seconds(run))

    def _seconds(self, call: Any, times: int = 1) -> float:
        taken = seconds(call, self._device, times)
        self.spent += taken * times
        return taken

    def _add(self, kind: str, taken: float) -> float:
        self.kinds.setdefault(kind, []).append(taken)
        return taken


def rounded(value: Any) -> Any:
    """The same JSON value with every float at six digits: nothing here is measured any finer."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def facts(point: Point, peaks: Peaks) -> dict[str, Any]:
    """What a point asks for, in numbers, and the roofline above it."""
    bound, by = peaks.bound(point)
    tree = point.tree
    return {
        "tree": str(tree),
        "published": str(point.published) if point.published else None,
        "scale": point.scale._asdict(),
        "heads": point.heads.query,
        "kv_heads": point.heads.kv,
        "head_dim": point.heads.dim,
        "dtype": point.dtype,
        "batch": tree.batch,
        "context": tree.context,
        "unique_tokens": tree.unique_tokens,
        "total_tokens": tree.total_tokens,
        "dedup": tree.dedup,
        "flops": point.flops,
        "bytes": point.bytes,
        "roofline_ms": 1e3 * bound,
        "bound_by": by,
    }


def _result(ready: Ready, samples: _Samples, row: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"by": ready.by} if ready.by else {}
    for kind, taken in samples.kinds.items():
        result[kind] = summary([1e3 * each for each in taken], "ms")
    for kind in ("warm", "cold"):
        median = result[kind]["median"]
        result[f"{kind}_gflops"] = row["flops"] / median / 1e6
        result[f"{kind}_share_of_roofline"] = row["roofline_ms"] / median
    return result | {"max_error": ready.error}


def compare(contenders: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Which of ours to look at (the first that ran), and what everybody else took beside it.

    `ours_over` says how many times faster ours is, by warm and by cold medians; `per_request`
    stands for the fastest of `PER_REQUEST`.
    """
    ran = {name: each for name, each in contenders.items() if "skipped" not in each}
    ours = next((name for name in BACKENDS if name in ran), None)
    if ours is None:
        return {"ours": None, "ours_over": {}}
    over = {
        kind: {
            name: each[kind]["median"] / ran[ours][kind]["median"]
            for name, each in ran.items()
            if name != ours
        }
        for kind in ("warm", "cold")
    }
    for ratios in over.values():
        rivals = [ratios[name] for name in PER_REQUEST if name in ratios]
        if rivals:
            ratios["per_request"] = min(rivals)
    return {"ours": ours, "ours_over": over}
