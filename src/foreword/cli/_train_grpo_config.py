"""Settings of `foreword train grpo`: a file, and flags that override it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword._errors import ParameterError
from foreword.cli._train_config import fit, read_settings

if TYPE_CHECKING:
    from foreword.training.runs import RunSettings

_TEXTS = ("model", "data", "eval", "name", "dtype", "device", "out")
_WHOLE = ("save_every", "eval_every")  # None where nobody said


@dataclass(frozen=True)
class Wanted:
    """What a run is asked to do."""

    model: str
    data: str
    out: Path
    reward: list[str]
    eval: str
    name: str
    dtype: str
    device: str
    run: RunSettings


def gather_run(method: str, file: Path | None, flags: dict[str, Any]) -> Wanted:
    """Settings of a file under those of flags; flags that are None were not given.

    Raises:
        ParameterError: a file that cannot be read, a key that is no setting, a value of another
            type, or nothing to train, on or for.
    """
    from foreword.training.runs import RunSettings, near

    given = {} if file is None else read_settings(file)
    runs = {each.name: each.default for each in fields(RunSettings) if each.name != "method"}
    known = sorted([*_TEXTS, "reward", *runs])
    for key in given:
        if key not in known:
            told = near(key, known) or f"; there are {', '.join(known)}"
            raise ParameterError(
                f"{file} has {key!r}, which is no setting{told} (TRL's own go into a table [trl])"
            )
    own = given.pop("trl", {})
    if not isinstance(own, dict):
        raise ParameterError(f"{file}: trl is a table of TRL's own settings")
    said = {key: value for key, value in flags.items() if value is not None and key != "trl"}
    merged = {**given, **said}
    reward = merged.pop("reward", [])
    reward = [reward] if isinstance(reward, str) else reward
    if not isinstance(reward, list) or not all(isinstance(each, str) for each in reward):
        raise ParameterError(f"reward is {reward!r}: give a text, or a list of texts")
    texts = {key: _text(key, merged.pop(key, "")) for key in _TEXTS}
    settings = {key: _typed(key, runs[key], value) for key, value in merged.items()}
    made = RunSettings(method=method, trl={**own, **flags["trl"]}, **settings)
    _demand(method, texts, reward)
    out = Path(texts.pop("out"))
    texts["dtype"] = texts["dtype"] or "auto"
    texts["device"] = texts["device"] or "auto"
    return Wanted(out=out, reward=reward, run=made, **texts)


def _demand(method: str, texts: dict[str, str], reward: list[str]) -> None:
    verb = f"foreword train {method}"
    if not texts["model"] or not texts["data"]:
        raise ParameterError(f"give MODEL and DATA, such as: {verb} nano prompts.jsonl")
    if not texts["out"]:
        raise ParameterError("give --out, the directory that the model is to be written to")
    if not reward:
        raise ParameterError(
            "give --reward, what completions are trained for: exact-answer, module:function or "
            "file.py:function"
        )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, (str, Path)):
        raise ParameterError(f"{name} is {value!r}: give a text")
    return str(value)


def _typed(name: str, default: Any, value: Any) -> Any:
    if name in _WHOLE:
        return fit(name, 0, value)
    return fit(name, 0.0 if default is None else default, value)
