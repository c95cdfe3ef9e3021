"""`run_ray_batch`: a batch file answered by many engines, as one Ray Data job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from foreword._errors import ForewordError
from foreword.scheduling import make_policy
from foreword.serving._batch_lines import BatchLine, read_lines, summarise
from foreword.serving._batch_run import BatchDefaults, batch_identity
from foreword.serving._errors import BatchFileError, LineError
from foreword.serving._records import error_record
from foreword.serving._result_file import ResultFile
from foreword.serving.ray._checks import check_counts, check_engine, require_ray
from foreword.serving.ray._shards import ShardPlan, plan_shards

_BLOCK_BYTES = 1024  # of finished records per worker that may wait to be handed over


class RayBatchError(ForewordError):
    """A batch job on Ray that broke off. What it had written is kept."""


@dataclass(frozen=True, slots=True)
class RayBatchReport:
    """What one run of a batch job did.

    Attributes:
        requests: lines that got their record in this run, error records included.
        failed: lines of the whole file whose record is an error.
        skipped: lines that an earlier run had finished.
        repeated: records that came a second time, from shards that were run again after a worker
            died, and were dropped.
        rounds: jobs it took; more than one only where Ray lost rows.
        seconds: wall time, the start of the workers included.
        plan: how the first round was cut.
    """

    requests: int
    failed: int
    skipped: int
    repeated: int
    rounds: int
    seconds: float
    plan: ShardPlan | None = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-ready values."""
        plan = self.plan
        return {
            "requests": self.requests,
            "failed": self.failed,
            "skipped": self.skipped,
            "repeated": self.repeated,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "shards": len(plan.shards) if plan else 0,
            "groups": plan.groups if plan else 0,
            "split_groups": plan.split if plan else 0,
            "planned_prompt_tokens": plan.prompt_tokens if plan else 0,
            "planned_computed_tokens": plan.computed_tokens if plan else 0,
        }


def run_ray_batch(
    source: str | PathLike[str],
    out: str | PathLike[str],
    *,
    model: str = "nano",
    workers: int = 2,
    shards_per_worker: int = 4,
    policy: str = "batchllm",
    defaults: BatchDefaults | None = None,
    dtype: str = "auto",
    max_context: int | None = None,
    settings: Mapping[str, Any] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> RayBatchReport:
    """Answer every line of a batch file that has no record in `out` yet.

    The file is read and cut into shards here (`plan_shards`); each shard is a row of a Ray Data job
    whose actors are engines. Records are written here as they come, one per line, whatever becomes
    of workers: a shard whose worker died is run again, what it had handed over already is dropped,
    and lines that got lost all the same are run in a further round. `out` is the file that
    `foreword batch` writes: either goes on with what the other has left.

    Uses the Ray that is connected, connects as `ray.init()` does otherwise, and leaves it on.

    Args:
        source: OpenAI's batch lines or bare prompts.
        out: the result file, on this machine.
        model: `"nano"`, a directory that every node has, or a hub id.
        workers: engines.
        shards_per_worker: more of them even out wrong guesses of cost and lose less with a worker;
            each may cut a prefix group once more.
        policy: who is admitted next within an engine; shards come in the order of the plan.
        defaults: what holds for lines that do not say otherwise.
        dtype, max_context: as `LLM`; answers depend on them, so they belong to `out`.
        settings: what else `LLM` takes: `device`, `kv_memory`, `max_batch`, ...
        num_cpus, num_gpus: what Ray reserves for a worker.
        overwrite: drop what an earlier run has written.
        on_progress: called after each record with the lines done and their total.

    Raises:
        MissingRay: Ray Data is not installed.
        BatchFileError: a file cannot be read or written, or `out` belongs to something else.
        ParameterError: a setting makes no sense.
        RayBatchError: the job broke off; calling again goes on with it.
    """
    require_ray("data")
    check_counts(workers=workers, shards_per_worker=shards_per_worker)
    make_policy(policy)
    settings = {"max_context": max_context, **(settings or {})}
    check_engine(settings)
    source, out = Path(source), Path(out)
    started = time.perf_counter()
    summary = summarise(source)
    if out.exists() and source.samefile(out):
        raise BatchFileError(f"out is the input itself: {source} would be overwritten")
    defaults = defaults or BatchDefaults()
    job = _Job(
        model=model,
        policy=policy,
        workers=workers,
        defaults=asdict(defaults),
        settings={"dtype": dtype, **settings},
        resources={"num_cpus": num_cpus, "num_gpus": num_gpus},
    )
    identity = batch_identity(
        source,
        summary.sha256,
        model=model,
        dtype=dtype,
        defaults=defaults,
        max_context=max_context,
    )
    with ResultFile(out, identity, overwrite=overwrite) as results:
        skipped = len(results.finished)
        lines = _unfinished(source, results)
        first: ShardPlan | None = None
        repeated = rounds = 0
        while lines:
            plan = plan_shards(
                lines,
                workers,
                shards_per_worker=shards_per_worker,
                max_tokens=defaults.max_tokens,
            )
            first, rounds = first or plan, rounds + 1
            for record in job.records([[lines[i] for i in s.members] for s in plan.shards]):
                if record["line"] in results.finished:
                    repeated += 1
                    continue
                results.write(record)
                if on_progress is not None:
                    on_progress(len(results.finished), summary.requests)
            left = [line for line in lines if line.number not in results.finished]
            if len(left) == len(lines):
                raise RayBatchError(f"the job ended without a record for {len(left)} lines")
            lines = left
        return RayBatchReport(
            requests=len(results.finished) - skipped,
            failed=len(results.failed),
            skipped=skipped,
            repeated=repeated,
            rounds=rounds,
            seconds=time.perf_counter() - started,
            plan=first,
        )


def _unfinished(source: Path, results: ResultFile) -> list[BatchLine]:
    """The lines still to be run; those that cannot be get their record here."""
    found = []
    for line in read_lines(source):
        if isinstance(line, LineError):
            if line.line not in results.finished:
                results.write(error_record(line.line, line.custom_id, line.code, str(line)))
        elif line.number not in results.finished:
            found.append(line)
    return found


@dataclass(frozen=True, slots=True)
class _Job:
    """How shards are run."""

    model: str
    policy: str
    workers: int
    defaults: Mapping[str, Any]
    settings: Mapping[str, Any]
    resources: dict[str, Any]

    def records(self, shards: list[list[BatchLine]]) -> Iterator[dict[str, Any]]:
        """The records of shards as they come; one may come twice."""
        import ray

        from foreword.serving.ray._batch_worker import BatchWorker, pack

        with _quiet_context():
            rows = [{"work": pack(shard)} for shard in shards]
            data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                BatchWorker,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=min(self.workers, len(rows)), max_tasks_in_flight_per_actor=1
                ),
                fn_constructor_args=(self.model, self.policy, self.defaults, self.settings),
                **self.resources,
            )
            try:
                for row in data.iter_rows():
                    record = json.loads(row["record"])
                    if "broken" in record:
                        raise RayBatchError(f"a worker could not start: {record['broken']}")
                    yield record
            except ray.exceptions.RayError as error:
                raise RayBatchError(
                    f"the job broke off ({error}): the results so far are kept; the same call "
                    "goes on from there"
                ) from error


@contextmanager
def _quiet_context() -> Iterator[None]:
    """Ray Data without its bars, and with small blocks: a record is not kept until many are done.

    Ray Data restarts actors that die and runs their tasks again, without end, by itself.
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    wanted = {"enable_progress_bars": False, "target_max_block_size": _BLOCK_BYTES}
    before = {name: getattr(context, name) for name in wanted}
    for name, value in wanted.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
