"""A run with a directory: training, what is exported, and the card, all written whole or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes._forward import run
from foreword.prefixes._prefix import Prefix
from foreword.prefixes.methods import Batch, Method
from foreword.prefixes.objectives import lm_loss
from foreword.prefixes.training._card import folder_of, make_card, provenance, readable
from foreword.prefixes.training._checkpoint import checkpoints
from foreword.prefixes.training._errors import TrainingError
from foreword.prefixes.training._files import new_folder, write_json, write_text
from foreword.prefixes.training._guard import device_of, frozen
from foreword.prefixes.training._loop import train
from foreword.prefixes.training._saved import save_method

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from foreword.prefixes.methods import Example
    from foreword.prefixes.training._config import TrainConfig
    from foreword.prefixes.training._progress import TrainProgress, TrainResult


@dataclass(frozen=True)
class TrainRun:
    """What a run left behind.

    Attributes:
        result: of the training.
        card: what `card.json` says; empty after an interrupted run, which has only checkpoints.
        prefixes: folders of the exported prefixes, by name; "" where there is only one.
    """

    result: TrainResult
    card: Mapping[str, Any]
    prefixes: Mapping[str, Path]


def train_run(
    model: Any,
    method: Method,
    examples: Sequence[Example],
    config: TrainConfig,
    out: str | PathLike[str],
    *,
    dev: Sequence[Example] = (),
    name: str = "",
    sources: Sequence[Mapping[str, Any]] = (),
    resume: bool = False,
    on_progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainRun:
    """`train`, and a directory with all that came of it.

    `out` gets `checkpoint-N/` while it runs, and in the end `prefix/` (PEFT's format; a folder per
    name where the method exports several), `method/`, `card.json` and `README.md`.

    Args:
        name: what the model is called, in the card and in the prefix.
        sources: what the card says of the data: `use`, `path`, `sha256`, `examples`, `tokens`.

    Raises:
        TrainingError: as `train`; or `out` holds a run already and `resume` is false, or it
            is no directory and none can be made there.
        OSError: `out` cannot be written.
    """
    folder = Path(out)
    if not resume and (checkpoints(folder) or (folder / "card.json").exists()):
        raise TrainingError(
            f"{folder} holds a run already: go on with it (resume), or take another directory"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"cannot make the directory {str(folder)!r}: {error.strerror}; take another one"
        ) from error
    result = train(
        model,
        method,
        examples,
        config,
        dev=dev,
        out=folder,
        resume=resume,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    if result.stopped == "interrupted":
        return TrainRun(result, {}, {})
    name = name or str(getattr(model, "name_or_path", "")) or model.config.model_type
    made = method.export(model)
    measured = {}
    if type(method).loss is Method.loss:  # others minimise something else, to be compared with it
        measured = {"loss without a prefix": _plain_loss(model, dev or examples, config)}
    card = make_card(model, name, method, config, result, made, sources, measured)
    if made:
        with new_folder(folder / "prefix") as draft:
            for label, prefix in made.items():
                said = provenance(card, prefix.provenance)
                whole = Prefix(prefix.kv, prefix.position_offset, prefix.model, name, said)
                whole.save(draft / Path(folder_of(label)).relative_to("prefix"))
    save_method(method, model, folder / "method")
    write_text(folder / "README.md", readable(card))
    write_json(folder / "card.json", card)
    return TrainRun(result, card, {label: folder / folder_of(label) for label in made})


def read_card(directory: str | PathLike[str]) -> dict[str, Any]:
    """The card of a run.

    Raises:
        TrainingError: there is none, or it cannot be read.
    """
    path = Path(directory) / "card.json"
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read a run card from {str(path)!r}: {error}") from error
    return card


@torch.no_grad()
def _plain_loss(model: Any, examples: Sequence[Example], config: TrainConfig) -> float:
    """Mean loss per label of the model as it is."""
    total, labels = 0.0, 0
    with frozen(model):
        for begin in range(0, len(examples), config.batch_size):
            batch = Batch.of(examples[begin : begin + config.batch_size], device_of(model))
            logits = run(model, batch.ids, batch.mask).logits
            total += float(lm_loss(logits, batch.labels)) * batch.learned
            labels += batch.learned
    return total / max(1, labels)
