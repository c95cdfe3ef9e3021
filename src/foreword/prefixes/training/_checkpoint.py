"""Checkpoints: all that a run needs to go on to exactly where it would have come uninterrupted.

`checkpoint-N/` holds three safetensors files (`method`, `best` where dev examples were seen,
`optimizer` with the random generator's state) and `state.json`. Nothing is pickled. Which examples
were read is not kept: their order follows from the seed and the step.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from foreword.prefixes.training._errors import TrainingError
from foreword.prefixes.training._files import new_folder, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.optim import Optimizer

    from foreword.prefixes.methods import Method

FORMAT = 1
KEPT = 2
"""Latest checkpoints that stay; the one of the best dev loss stays too."""


@dataclass
class RunState:
    """What changes while a run goes on, parameters aside."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    dev_losses: list[tuple[int, float]] = field(default_factory=list)
    best_loss: float | None = None
    best_step: int | None = None
    bad_looks: int = 0
    seconds: float = 0.0
    best: dict[str, Tensor] | None = None
    stopped: str = "steps"


def checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of a run, oldest first."""
    found = []
    for path in directory.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and (path / "state.json").is_file():
            found.append((int(match.group(1)), path))
    return sorted(found)


def save_checkpoint(
    directory: Path,
    method: Method,
    optimizer: Optimizer,
    state: RunState,
    identity: Mapping[str, Any],
) -> Path:
    """Write one, and drop those that are neither among the latest nor the best."""
    path = directory / f"checkpoint-{state.step}"
    with new_folder(path) as draft:
        save_file(_plain(method.state_dict()), draft / "method.safetensors")
        save_file(_moments(optimizer, method), draft / "optimizer.safetensors")
        if state.best is not None:
            save_file(_plain(state.best), draft / "best.safetensors")
        said = {key: value for key, value in vars(state).items() if key != "best"}
        write_json(draft / "state.json", {"format": FORMAT, "run": dict(identity), **said})
    for step, old in checkpoints(directory)[:-KEPT]:
        if step != state.best_step:
            shutil.rmtree(old)
    return path


def load_checkpoint(
    path: Path, method: Method, optimizer: Optimizer, identity: Mapping[str, Any]
) -> RunState:
    """Put a run back where the checkpoint was written. Mutates method, optimizer and torch's
    random generators.

    Raises:
        TrainingError: damaged, or of a run with other settings, data, model or method.
    """
    try:
        said = json.loads((path / "state.json").read_text(encoding="utf-8"))
        run = said.pop("run")
        if said.pop("format") != FORMAT:
            raise TrainingError(f"{path} was written by another version: begin anew")
        _compare(path, run, identity)
        method.load_state_dict(load_file(path / "method.safetensors"))
        _take_moments(optimizer, method, load_file(path / "optimizer.safetensors"))
        state = RunState(**said)
        state.dev_losses = [(int(step), float(loss)) for step, loss in said["dev_losses"]]
        best = path / "best.safetensors"
        state.best = load_file(best) if best.is_file() else None
    except TrainingError:
        raise
    except Exception as error:  # json, safetensors and torch each have their own
        raise TrainingError(
            f"cannot go on from {path}: {error}; delete that folder to go on from the one before"
        ) from error
    return state


def _compare(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    ours = json.loads(json.dumps(ours))
    for key in ours:
        if theirs.get(key) != ours[key]:
            was, now = theirs.get(key), ours[key]
            if isinstance(now, dict) and isinstance(was, dict):
                other = next(name for name in (now | was) if now.get(name) != was.get(name))
                key, was, now = other, was.get(other), now.get(other)
            raise TrainingError(
                f"{path} belongs to a run with another {key} ({_short(was)}; now {_short(now)}): "
                "take the same, or another directory"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12]


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without shared memory, which safetensors refuses."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}


def _moments(optimizer: Optimizer, method: Method) -> dict[str, Tensor]:
    names = {id(each): name for name, each in method.named_parameters()}
    made = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        made["rng.cuda"] = torch.cuda.get_rng_state()
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            made[f"{names[id(parameter)]}|{key}"] = value
    return _plain(made)


def _take_moments(optimizer: Optimizer, method: Method, held: dict[str, Tensor]) -> None:
    torch.set_rng_state(held.pop("rng.cpu"))
    cuda = held.pop("rng.cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    parameters = dict(method.named_parameters())
    for key, value in held.items():
        name, _, moment = key.rpartition("|")
        parameter = parameters[name]
        where = "cpu" if moment == "step" else parameter.device
        optimizer.state[parameter][moment] = value.to(where)
