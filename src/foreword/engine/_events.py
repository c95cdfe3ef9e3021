"""What a step tells the engine's faces: tokens as they come, and how much there was to do."""

from __future__ import annotations

from typing import NamedTuple

from foreword.engine._results import Chunk
from foreword.engine._sequence import Request, Sequence


class Event(NamedTuple):
    """One token of one answer, or its end.

    `text` is what became certain with this token (stop strings and half characters are held back).
    """

    request: Request
    sequence: Sequence
    token_id: int | None
    text: str

    def chunk(self, index: int) -> Chunk:
        """This event as a user sees it who asked for prompt number `index`.

        Right only until the next step: the sequence goes on.
        """
        sequence = self.sequence
        asked = self.request.params.logprobs is not None
        logprobs = tuple(sequence.logprobs[-1:]) if self.token_id is not None else ()
        return Chunk(
            index=index,
            output_index=sequence.index,
            text=self.text,
            token_ids=() if self.token_id is None else (self.token_id,),
            finish_reason=sequence.finish_reason,
            logprobs=logprobs if asked else None,
        )


class StepLoad(NamedTuple):
    """What one step had to do, in the units of a cost model.

    Attributes:
        rows: tokens run through the model.
        pairs: (row, key) pairs its attention weighed, in one layer.
        kv_tokens: tokens whose keys and values it read, a shared run once.
    """

    rows: int
    pairs: int
    kv_tokens: int
