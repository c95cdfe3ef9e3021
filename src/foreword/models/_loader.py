"""From a directory, a hub id or the word "nano" to a model that runs packed rows.

Weights are read by transformers from safetensors; nothing is unpickled. What is wrong with a
directory is said here, before any request is taken.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from foreword._errors import ModelError
from foreword.models._bridge import PackedModel
from foreword.models._fingerprint import fingerprint
from foreword.models._inventory import Inventory
from foreword.models._lean import LeanModel
from foreword.models._lean_fit import lean_reason
from foreword.models._probe import own_logits, probe
from foreword.models._support import TESTED_TYPES, refuse_unsupported
from foreword.models._tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

NANO = "nano"
"""The name of the model that ships inside the package."""

Decoder = Literal["auto", "lean", "transformers"]
"""Who computes a model's layers: the lean decoder, transformers' own code, or whichever is best."""

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class ModelShape:
    """The numbers the engine needs to know of a model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_context: int
    dtype: torch.dtype
    device: torch.device

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for the engine, with its tokenizer and the tokens that end a text.

    `fingerprint` tells it from other models, see `_fingerprint.py`; `inventory` is what new weights
    are checked against.
    """

    name: str
    shape: ModelShape
    packed: PackedModel | LeanModel
    tokenizer: Tokenizer | None
    eos_token_ids: frozenset[int]
    fingerprint: str = ""
    inventory: Inventory | None = None


def load_model(
    source: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    decoder: Decoder = "auto",
) -> LoadedModel:
    """Load a decoder-only model and its tokenizer.

    Args:
        source: `"nano"`, a directory with `config.json` and safetensors, or a hub id.
        dtype: `"auto"` takes the checkpoint's own (float32 for nano), or a name such as `"bf16"`.
        device: `"auto"` takes a CUDA device if there is one.
        decoder: `"auto"` takes the lean decoder where it fits and transformers' own layers where it
            does not.

    Raises:
        ModelError: no such model, broken or missing files, a feature the engine does not have, or
            a decoder that does not fit.
    """
    name, path, local, config = _configuration(source)
    refuse_unsupported(config, name)
    model = _load_weights(path, name, config, _own_dtype(name, dtype), _device(device), local)
    tokenizer = Tokenizer.load(path, local_only=local)
    return wrap_model(model, name=name, tokenizer=tokenizer, decoder=decoder)


def load_transformers(
    source: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
) -> tuple[Any, Tokenizer | None]:
    """Load a causal model as transformers runs it, and its tokenizer: what prefixes are trained on.

    Models that the engine does not serve load too. Arguments as for `load_model`.

    Raises:
        ModelError: no such model, broken or missing files.
    """
    name, path, local, config = _configuration(source)
    model = _load_weights(path, name, config, _own_dtype(name, dtype), _device(device), local)
    model.name_or_path = name  # as it was asked for: what is made for it says so
    return model.eval(), Tokenizer.load(path, local_only=local)


def _configuration(source: str | PathLike[str]) -> tuple[str, str, bool, Any]:
    """Name, place, whether that is on disk, and what transformers reads there."""
    from transformers import AutoConfig

    name = os.fspath(source)
    path, local = _resolve(name)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=local)
    except Exception as error:  # transformers raises many kinds here; all mean the same to a user
        raise ModelError(f"cannot read a model configuration from {name!r}: {error}") from error
    return name, path, local, config


def wrap_model(
    model: Any,
    *,
    name: str,
    tokenizer: Tokenizer | None = None,
    decoder: Decoder = "auto",
) -> LoadedModel:
    """Take a transformers model that is in memory already.

    It is given up for good: its attention is replaced, and the lean decoder takes its weights too.

    Raises:
        ModelError: as `load_model`.
    """
    config = model.config
    refuse_unsupported(config, name)
    lean = _choose_lean(model, name, decoder)
    tested = config.model_type in TESTED_TYPES  # what the test suite compares need not be compared
    expected = None if tested else own_logits(model)
    shape = _shape(model)
    eos = _eos(model, tokenizer)
    identity, inventory = fingerprint(model), Inventory.of(model)  # before it is taken apart
    packed = LeanModel(model) if lean else PackedModel(model)
    if expected is not None:
        probe(packed, expected, shape, config.model_type)
    return LoadedModel(name, shape, packed, tokenizer, eos, identity, inventory)


def _choose_lean(model: Any, name: str, decoder: Decoder) -> bool:
    """Whether the lean decoder is to run `model`."""
    if decoder not in get_args(Decoder):
        known = ", ".join(repr(choice) for choice in get_args(Decoder))
        raise ModelError(f"decoder {decoder!r} is unknown: use one of {known}")
    if decoder == "transformers":
        return False
    reason = lean_reason(model)
    if reason is not None and decoder == "lean":
        raise ModelError(
            f"{name}: the lean decoder does not fit: {reason}; use decoder='auto' or 'transformers'"
        )
    return reason is None


def _resolve(name: str) -> tuple[str, bool]:
    if name == NANO:
        return str(Path(__file__).parent / NANO), True
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name!r} is a directory without a config.json: not a model directory"
            )
        return str(path), True
    if path.exists():
        raise ModelError(f"{name!r} is a file: give the directory that holds config.json")
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or not name
    if looks_like_path:
        raise ModelError(f"no model directory at {name!r}")
    return name, False


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown: use 'auto' or one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _own_dtype(name: str, dtype: str | torch.dtype) -> str | torch.dtype:
    return torch.float32 if dtype == "auto" and name == NANO else _dtype(dtype)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device {device!r} is unknown: use 'auto', 'cpu' or 'cuda'") from error


def _load_weights(
    path: str,
    name: str,
    config: Any,
    dtype: str | torch.dtype,
    device: torch.device,
    local: bool,
) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{name}: {config.model_type!r} is not a causal language model")
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=local,
            )
    except Exception as error:
        raise ModelError(f"cannot load the weights of {name!r}: {error}") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise ModelError(
            f"the weights of {name!r} are incomplete: {len(missing)} tensors are missing, "
            f"{missing[0]!r} among them"
        )
    return model.to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars: a library leaves talking to the program around it."""
    import transformers

    logging: Any = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _shape(model: Any) -> ModelShape:
    config = model.config
    heads = int(config.num_attention_heads)
    parameter = next(model.parameters())
    return ModelShape(
        layers=int(config.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocab=int(config.vocab_size),
        max_context=int(config.max_position_embeddings),
        dtype=parameter.dtype,
        device=parameter.device,
    )


def _eos(model: Any, tokenizer: Tokenizer | None) -> frozenset[int]:
    ids = getattr(model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = getattr(model.config, "eos_token_id", None)
    if ids is None:
        ids = tokenizer.eos_token_id if tokenizer else None
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, (list, tuple)) else [ids])
