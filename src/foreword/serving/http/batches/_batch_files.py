"""What a batch leaves: a file of answers and a file of errors, made of its records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from foreword.serving.http.batches._batch_state import Batch
from foreword.serving.http.batches._store import Draft, FileStore


def publish(store: FileStore, batch: Batch, results: Path) -> dict[str, Any]:
    """Put a batch's records into the store as the files whose ids it has chosen.

    Done again, it writes the same files again. A kind that no record is of gets no file. Blocks.

    Returns:
        what becomes of the batch: `output_file_id`, `error_file_id`, `completed`, `failed`,
        `usage`.

    Raises:
        ApiError: 507 or 500, the disk is full or broken.
    """
    ids = {"output": batch.output_file_id, "error": batch.error_file_id}
    drafts: dict[str, Draft] = {}
    usage = Counter(prompt_tokens=0, completion_tokens=0, cached_tokens=0)
    counts = Counter(output=0, error=0)
    with ExitStack() as stack:
        for raw, record in _records(results):
            kind = "output" if record["error"] is None else "error"
            if kind not in drafts:
                draft = store.draft(batch.tenant, file_id=ids[kind], purpose="batch_output")
                drafts[kind] = stack.enter_context(draft)
            drafts[kind].write(raw)
            counts[kind] += 1
            if kind == "output":
                _add(usage, record["response"]["body"]["usage"])
        for kind, draft in drafts.items():
            draft.commit(f"{batch.id}_{kind}.jsonl")
    return {
        "output_file_id": ids["output"] if counts["output"] else None,
        "error_file_id": ids["error"] if counts["error"] else None,
        "completed": counts["output"],
        "failed": counts["error"],
        "usage": dict(usage),
    }


def _add(usage: Counter[str], said: dict[str, Any]) -> None:
    usage["prompt_tokens"] += said["prompt_tokens"]
    usage["completion_tokens"] += said["completion_tokens"]
    usage["cached_tokens"] += said.get("prompt_tokens_details", {}).get("cached_tokens", 0)


def _records(results: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Whole records; one that a kill has torn is not there, and none is before the first line."""
    if not results.exists():
        return
    with open(results, "rb") as lines:
        for raw in lines:
            try:
                record = json.loads(raw)
            except ValueError:
                return
            if not raw.endswith(b"\n"):
                return
            yield raw, record
