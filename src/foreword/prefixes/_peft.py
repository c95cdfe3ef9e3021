"""A prefix on disk, in the format of PEFT's prefix tuning.

`adapter_model.safetensors` holds one tensor, `prompt_embeddings` `[length, layers * 2 * kv_heads *
head_dim]`, one row per position, in float32; `adapter_config.json` says what PEFT wants to know.
What PEFT has no word for (offset, fingerprint, provenance) stands in the tensor file's metadata,
which PEFT does not read. A prefix whose text does not begin right behind it would be misread by
PEFT, so its `peft_type` is one that PEFT refuses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import save_file

from foreword.prefixes._errors import PrefixError
from foreword.prefixes._prefix import Prefix

if TYPE_CHECKING:
    from os import PathLike

    from torch import Tensor

WEIGHTS, CONFIG, KEY = "adapter_model.safetensors", "adapter_config.json", "prompt_embeddings"


def flatten(kv: Tensor) -> Tensor:
    """`[layers, 2, kv_heads, length, head_dim]` to PEFT's `[length, everything else]`."""
    return kv.permute(3, 0, 1, 2, 4).reshape(kv.shape[3], -1)


def save(prefix: Prefix, directory: str | PathLike[str]) -> Path:
    """See `Prefix.save`."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    shape = prefix.shape
    plain = prefix.position_offset == prefix.length
    config = {
        "peft_type": "PREFIX_TUNING" if plain else "FOREWORD_PREFIX",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": prefix.base,
        "num_virtual_tokens": prefix.length,
        "num_layers": shape.layers,
        "num_attention_heads": shape.kv_heads,
        "token_dim": shape.kv_heads * shape.head_dim,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        "encoder_hidden_size": shape.kv_heads * shape.head_dim,
        "inference_mode": True,
    }
    said = {
        "format": "pt",
        "position_offset": str(prefix.position_offset),
        "model": prefix.model,
        "identity": prefix.to(dtype=None).identity,
        "provenance": json.dumps(dict(prefix.provenance)),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({KEY: flatten(prefix.kv).float().contiguous()}, folder / WEIGHTS, said)
    return folder


def load(directory: str | PathLike[str]) -> Prefix:
    """See `Prefix.load`."""
    folder = Path(directory)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, framework="pt") as held:
            head = held.metadata() or {}
            flat = held.get_tensor(KEY).clone()
    except Exception as error:
        raise PrefixError(f"cannot read a prefix from {str(folder)!r}: {error}") from error
    layers, heads = int(config["num_layers"]), int(config["num_attention_heads"])
    kv = flat.view(len(flat), layers, 2, heads, -1).permute(1, 2, 3, 0, 4).contiguous()
    return Prefix(
        kv,
        int(head.get("position_offset", -1)),
        head.get("model", ""),
        config.get("base_model_name_or_path") or "",
        json.loads(head.get("provenance", "{}")),
    )
