"""Prefixes that others published as pickles, by the name of their format.

Nothing is run: `torch.load(weights_only=True)` reads tensors and refuses whatever else a pickle
would make. A converter then takes names and shapes at their word only where they fit.

sven (He & Vechev 2023, arXiv 2302.05319): `prefix_params`, a list of tensors `[heads, length,
head_dim]` that begins anew with each control ("sec", then "vul"), within it runs through the
layers, and within a layer holds the keys and then the values, as SVEN's own model reads them into
`past_key_values`. They are what CodeGen's cache holds, keys after its rotary positions, and text
begins right behind them, so they are prefixes as they are.

peft: `adapter_model.bin`, as PEFT wrote it before safetensors, with its `adapter_config.json`.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from foreword.prefixes import _peft
from foreword.prefixes._errors import PrefixError
from foreword.prefixes._prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from torch import Tensor

SVEN_CONTROLS = ("sec", "vul")


def convert(name: str, path: str | PathLike[str], *, base: str = "") -> dict[str, Prefix]:
    """Read a third party's prefixes; "" names the only one of a file that has no names.

    Args:
        name: of the format: "sven" or "peft".
        path: the pickle; for "peft", or where it is called `pytorch_model.bin`, its directory will
            do.
        base: what the model is called that the prefixes belong to.

    Raises:
        PrefixError: no such format, nothing there, a file that holds more than tensors, or other
            tensors than the format has.
    """
    reader = CONVERTERS.get(name)
    if reader is None:
        raise PrefixError(f"no converter is called {name!r}; there are {', '.join(CONVERTERS)}")
    return reader(Path(path).expanduser(), base)


def _sven(path: Path, base: str) -> dict[str, Prefix]:
    file = path / "pytorch_model.bin" if path.is_dir() else path
    tensors = _unpickled(file)
    numbered = {key.removeprefix("prefix_params."): value for key, value in tensors.items()}
    parts = [numbered.get(str(i)) for i in range(len(numbered))]
    per_layer = 2 * len(SVEN_CONTROLS)
    if not parts or any(part is None for part in parts) or len(parts) % per_layer:
        raise PrefixError(
            f"{str(file)!r} is not SVEN's: it should hold keys and values of {SVEN_CONTROLS} for "
            f"each layer, numbered from 0; it holds {_named(tensors)}"
        )
    shapes = {tuple(part.shape) for part in parts if part is not None}
    if len(shapes) > 1 or len(next(iter(shapes))) != 3:
        raise PrefixError(
            f"{str(file)!r} is not SVEN's: its tensors should all be [heads, length, head_dim]; "
            f"they are {sorted(shapes)}"
        )
    # [controls, layers, 2, heads, length, head_dim]
    stacked = torch.stack([part for part in parts if part is not None])
    kv = stacked.view(len(SVEN_CONTROLS), -1, 2, *stacked.shape[1:])
    told = {"method": "sven", "paper": "He & Vechev 2023, arXiv 2302.05319"}
    return {
        control: Prefix(kv[i], base=base, provenance={**told, "control": control})
        for i, control in enumerate(SVEN_CONTROLS)
    }


def _older_peft(path: Path, base: str) -> dict[str, Prefix]:
    from tempfile import TemporaryDirectory

    folder = path if path.is_dir() else path.parent
    tensors = _unpickled(folder / _peft.PICKLED if path.is_dir() else path)
    if tensors.keys() != {_peft.KEY}:
        raise PrefixError(_peft.foreign(set(tensors), repr(str(path))))
    config = folder / _peft.CONFIG
    if not config.is_file():
        raise PrefixError(f"there is no {_peft.CONFIG} beside the tensors in {str(folder)!r}")
    with TemporaryDirectory() as draft:  # read by the one reader that checks everything
        (Path(draft) / _peft.CONFIG).write_bytes(config.read_bytes())
        save_file({_peft.KEY: tensors[_peft.KEY].clone().contiguous()}, Path(draft) / _peft.WEIGHTS)
        try:
            found = Prefix.load(draft)
        except PrefixError as error:
            raise PrefixError(str(error).replace(draft, str(folder))) from None
    return {"": Prefix(found.kv, base=base or found.base, provenance={"method": "peft"})}


CONVERTERS: dict[str, Callable[[Path, str], dict[str, Prefix]]] = {
    "sven": _sven,
    "peft": _older_peft,
}


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle by name."""
    if not file.is_file():
        raise PrefixError(f"there is no file {str(file)!r} to convert")
    try:
        held: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PrefixError(
            f"{str(file)!r} was refused: it is damaged, or a pickle of more than tensors, which "
            "would run code"
        ) from error  # PyTorch's own words advise to load it all the same
    except Exception as error:  # the many ways in which a file can be something else
        raise PrefixError(f"cannot read tensors from {str(file)!r}: {error}") from error
    good = isinstance(held, dict) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in held.items()
    )
    if not good:
        raise PrefixError(f"{str(file)!r} holds something else than tensors by name")
    return dict(held)


def _named(tensors: dict[str, Tensor]) -> str:
    names = list(tensors)
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} tensors ({shown})"
