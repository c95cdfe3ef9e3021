"""Running a batch file: lines in, records out, at no time more of the file in memory than runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword._errors import ForewordError
from foreword.scheduling import PlanReport, report_plan
from foreword.serving._batch_answers import line_answer, line_prompt, line_refusal
from foreword.serving._batch_lines import BatchLine
from foreword.serving._errors import LineError
from foreword.serving._prefix_names import line_prefix
from foreword.serving._records import error_record

if TYPE_CHECKING:
    from foreword.engine import LLM, Engine, PrefixStats, Progress, Request, SamplingParams
    from foreword.scheduling import Candidate
    from foreword.serving._prefix_sources import PrefixSource
    from foreword.serving._result_file import ResultFile


@dataclass(frozen=True, slots=True)
class BatchDefaults:
    """What holds for lines that do not say otherwise.

    Attributes:
        max_tokens: length of an answer.
        temperature: None keeps each form's own default: OpenAI's 1.0 for lines in OpenAI's form,
            greedy for bare lines.
        seed: lines without a seed draw from this one and their line number, so that an interrupted
            batch gives the answers it would have given in one go.
    """

    max_tokens: int = 16
    temperature: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one run of a batch did.

    Attributes:
        requests: lines that got their record in this run, error records included.
        failed: lines of the whole file whose record is an error.
        skipped: lines that an earlier run had finished.
        interrupted: whether it was asked to stop before the end.
        stats: the engine's numbers for this run.
        plan: what was planned; None if the policy does not look ahead, or nothing was to be run.
    """

    requests: int
    failed: int
    skipped: int
    interrupted: bool
    stats: PrefixStats
    plan: PlanReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The engine's numbers and the file's, as JSON-ready values."""
        return {
            **self.stats.to_dict(),
            "requests": self.requests,
            "failed": self.failed,
            "skipped": self.skipped,
            "interrupted": self.interrupted,
            "plan": None if self.plan is None else self.plan.to_dict(),
        }


def run_batch(
    llm: LLM,
    lines: Iterator[BatchLine | LineError],
    out: ResultFile,
    *,
    total: int,
    model: str,
    defaults: BatchDefaults | None = None,
    on_plan: Callable[[PlanReport], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> BatchReport:
    """Answer every line that has no record in `out` yet.

    A policy that looks ahead gets all lines at once, eight bytes a prompt token; otherwise new
    lines are taken as old ones finish, and a file of any length fits in memory. Whatever happens,
    records that were written stay written.

    Args:
        llm: nobody else may use it meanwhile; its statistics start anew.
        lines: what `read_lines` yields.
        total: how many lines there are, for the progress.
        model: the name that answers carry.
        on_plan: called once before the first step, if the policy looks ahead.
        on_progress: called after each step.
        should_stop: asked after each step; a yes ends the run with what is done.

    Raises:
        BatchFileError: the output cannot be written any more.
    """
    run = _Run(llm, out, model, defaults or BatchDefaults())
    started = time.perf_counter()
    engine = llm.engine
    engine.reset()
    ahead = engine.policy.looks_ahead
    # Everything, or enough in line that no seat stays empty for a step.
    limit = math.inf if ahead else 2 * engine.config.max_batch
    skipped = len(out.finished)
    plan: PlanReport | None = None
    work: _Work | None = None
    interrupted = exhausted = False
    try:
        while True:
            while not exhausted and engine.running + engine.waiting < limit:
                line = next(lines, None)
                exhausted = line is None
                if line is not None:
                    run.take(line)
            if not engine.has_work:
                break
            if ahead and work is None:
                candidates = engine.in_line()
                plan = report_plan(candidates, capacity=engine.capacity)
                work = _Work(plan.computed_tokens, candidates)
                if on_plan is not None:
                    on_plan(plan)
            for event in engine.step():
                if event.sequence.finish_reason is not None and event.request.finished:
                    first = run.finish(event.request)
                    if first and work is not None:
                        work.finished(event.request)
            if on_progress is not None:
                seconds = time.perf_counter() - started
                fraction = None if work is None else work.fraction(engine)
                on_progress(engine.progress(len(out.finished), total, seconds, fraction))
            if should_stop():
                interrupted = len(out.finished) < total
                break
    finally:
        engine.abort_all()
    out.sync()
    requests = len(out.finished) - skipped
    return BatchReport(requests, len(out.failed), skipped, interrupted, engine.stats(), plan)


class _Work:
    """How much of a planned batch is done: prompt tokens computed and answer tokens written.

    What is left to write is guessed from the answers that are finished, and from their limits
    until there are some.
    """

    def __init__(self, prompt_tokens: int, candidates: Sequence[Candidate]) -> None:
        self._prompt_tokens = prompt_tokens
        self._limit = sum(candidate.max_output for candidate in candidates)
        self._open = len(candidates)
        self._answers = 0
        self._written = 0

    def finished(self, request: Request) -> None:
        """A request ended; its answers say how long others may become."""
        for sequence in request.sequences:
            self._open -= 1
            self._answers += 1
            self._written += sequence.generated
            self._limit -= sequence.generated + sequence.room

    def fraction(self, engine: Engine) -> float:
        """From 0 to 1."""
        counters = engine.counters
        mean = self._written / self._answers if self._answers else 0.0
        left = mean * self._open if self._answers else float(self._limit)
        # Those that finish first are the short ones: whoever is not done writes one more at least.
        output = max(counters.generated_tokens + self._open, self._written + left)
        total = self._prompt_tokens + output
        done = min(counters.computed_prompt_tokens, self._prompt_tokens)
        return min(1.0, (done + counters.generated_tokens) / max(1.0, total))


class _Run:
    """The lines that are with the engine, and how they get in and out."""

    def __init__(self, llm: LLM, out: ResultFile, model: str, defaults: BatchDefaults) -> None:
        self.llm = llm
        self.out = out
        self.model = model
        self.defaults = defaults
        self.running: dict[int, BatchLine] = {}
        self._ids: dict[int, int] = {}

    def take(self, line: BatchLine | LineError) -> None:
        """Hand a line to the engine, or write the record that says why not."""
        if isinstance(line, LineError):
            if line.line not in self.out.finished:
                self.out.write(error_record(line.line, line.custom_id, line.code, str(line)))
            return
        if line.number in self.out.finished:
            return
        try:
            prompt = line_prompt(line, self.llm.tokenizer)
            params = line_params(line, self.defaults)
            ids = self.llm.encode(prompt)
            tenant = line.body.get("user")
            request = self.llm.engine.add(
                self._interned(ids),
                params,
                tenant=tenant if isinstance(tenant, str) else "",
                prefix=line_prefix(line.body, self.llm.prefixes),
            )
        except ForewordError as error:
            self.out.write(line_refusal(line, error))
            return
        self.running[request.id] = line

    def _interned(self, ids: list[int]) -> list[int]:
        """The same ids, as objects that all lines share: whole files may wait in memory."""
        known = self._ids
        return [known.setdefault(token, token) for token in ids]

    def finish(self, request: Request) -> bool:
        """Write the record of a request that has ended; False if that was done already."""
        line = self.running.pop(request.id, None)
        if line is None:  # one of its answers ended in the same step
            return False
        result = request.result(line.number)
        asked = line.body.get("model")
        model = asked if isinstance(asked, str) and asked in self.llm.prefixes else self.model
        tokenizer = self.llm.tokenizer
        self.out.write(line_answer(line, result, model=model, tokenizer=tokenizer))
        return True


def batch_identity(
    source: Path,
    sha256: str,
    *,
    model: str,
    dtype: str,
    defaults: BatchDefaults,
    max_context: int | None,
    prefixes: Sequence[PrefixSource] = (),
) -> dict[str, Any]:
    """What a file of answers belongs to, for `ResultFile`: with another one it is not gone on with.

    A model directory counts by its full path, wherever the command is given; learned prefixes by
    their names and what is in their files. The policy does not count: it changes no answer.

    Raises:
        ParameterError: a prefix cannot be read.
    """
    path = Path(model).expanduser()
    learned = {source.name: source.digest() for source in prefixes}
    return {
        "input": source.name,
        "input_sha256": sha256,
        "model": str(path.resolve()) if path.is_dir() else model,
        "dtype": dtype,
        **asdict(defaults),
        "max_context": max_context,
        "prefixes": learned or None,  # files of earlier versions have no such entry
    }


def line_params(line: BatchLine, defaults: BatchDefaults) -> SamplingParams:
    """The sampling parameters of a line; its `prefix` is none of them.

    Raises:
        ParameterError: a field that is unknown or out of its limits.
    """
    from foreword.engine import from_openai

    body: Mapping[str, Any] = {k: v for k, v in line.body.items() if k != "prefix"}
    temperature = defaults.temperature
    if temperature is None and line.bare:
        temperature = 0.0
    if temperature is not None and body.get("temperature") is None:
        body = {**body, "temperature": temperature}
    params = from_openai(body, max_tokens=defaults.max_tokens)
    if params.seed is None and not params.greedy:
        params = replace(params, seed=_line_seed(defaults.seed, line.number))
    return params


def _line_seed(seed: int, number: int) -> int:
    digest = sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
