"""A trained method on disk, for those that are more than a prefix: settings and parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from foreword.models import fingerprint
from foreword.prefixes._errors import PrefixError
from foreword.prefixes._shape import PrefixShape
from foreword.prefixes.methods import Method, make_method
from foreword.prefixes.training._files import new_folder, write_json

if TYPE_CHECKING:
    from os import PathLike

WEIGHTS, CONFIG = "method.safetensors", "method.json"


def save_method(method: Method, model: Any, directory: str | PathLike[str]) -> Path:
    """Write a method that `make_method` made, with its parameters; returns the directory.

    What stood in the directory is replaced once all is written. O(parameters).
    """
    path = Path(directory)
    with new_folder(path) as draft:
        state = method.state_dict()
        save_file({key: each.cpu().clone().contiguous() for key, each in state.items()},
                  draft / WEIGHTS)  # fmt: skip
        said = {"method": method.name, "settings": method.settings, "model": fingerprint(model)}
        write_json(draft / CONFIG, said)
    return path


def load_method(directory: str | PathLike[str], model: Any) -> Method:
    """Read what `save_method`, or a training run in its folder `method`, wrote.

    Raises:
        PrefixError: nothing there, damaged, or of another model.
    """
    path = Path(directory)
    try:
        said = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if said["model"] != fingerprint(model):
            raise PrefixError(f"the method in {str(path)!r} was trained on another model")
        method = make_method(said["method"], PrefixShape.of(model), **said["settings"])
        method.load_state_dict(load_file(path / WEIGHTS))
    except PrefixError:
        raise
    except Exception as error:
        raise PrefixError(f"cannot read a method from {str(path)!r}: {error}") from error
    return method.to(next(model.parameters()).device)
