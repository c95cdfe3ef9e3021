"""One engine as an actor of a Ray Data job: shards in, records out."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from foreword._errors import ForewordError
from foreword.serving._batch_lines import BatchLine
from foreword.serving._batch_run import BatchDefaults, run_batch

if TYPE_CHECKING:
    from foreword.engine import LLM


def pack(lines: Sequence[BatchLine]) -> str:
    """A shard as text, one column of one row."""
    return json.dumps([asdict(line) for line in lines])


class BatchWorker:
    """Answers shards with an engine of its own, which keeps its cache from one to the next.

    Args:
        model: the name that answers carry, and what is loaded.
        policy: who is admitted next.
        defaults: `BatchDefaults` fields.
        settings: what else `LLM` takes.
    """

    def __init__(
        self,
        model: str,
        policy: str,
        defaults: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        from foreword.engine import LLM

        self._model = model
        self._defaults = BatchDefaults(**defaults)
        self._llm: LLM | None = None
        try:
            self._llm = LLM(model, policy=policy, **settings)
        except ForewordError as error:  # an actor that fails to start is only started again
            self._broken = str(error)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> Iterator[dict[str, list[str]]]:
        """Rows with a shard in "work"; yields rows with a record as JSON in "record".

        A worker that could not load its engine yields `{"broken": why}` instead.
        """
        if self._llm is None:
            yield {"record": [json.dumps({"broken": self._broken})]}
            return
        for work in batch["work"]:
            lines = [BatchLine(**line) for line in json.loads(work)]
            yield from self._answer(self._llm, lines)

    def _answer(self, llm: LLM, lines: list[BatchLine]) -> Iterator[dict[str, list[str]]]:
        out = _Outbox()
        given_up = threading.Event()

        def work() -> None:
            try:
                run_batch(
                    llm,
                    iter(lines),
                    out,  # type: ignore[arg-type] # all of a ResultFile that is used here
                    total=len(lines),
                    model=self._model,
                    defaults=self._defaults,
                    should_stop=given_up.is_set,
                )
            except BaseException as error:
                out.records.put(error)
            finally:
                out.records.put(None)

        thread = threading.Thread(target=work, name="foreword-batch", daemon=True)
        thread.start()
        try:
            while (record := out.records.get()) is not None:
                if isinstance(record, BaseException):
                    raise record
                yield {"record": [record]}
        finally:
            given_up.set()
            thread.join()


class _Outbox:
    """Takes records as a `ResultFile` does and hands them over to another thread."""

    def __init__(self) -> None:
        self.finished: set[int] = set()
        self.failed: set[int] = set()
        self.records: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def write(self, record: Mapping[str, Any]) -> None:
        self.finished.add(record["line"])
        self.records.put(json.dumps(record))

    def sync(self) -> None:
        """There is nothing to wait for."""
