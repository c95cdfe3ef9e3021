"""A Llama as transformers saves it, rewritten as llama.cpp reads it. Needs gguf and numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.utility import SafetensorsLocal

TYPES = {
    "BF16": (np.uint16, gguf.GGMLQuantizationType.BF16),
    "F16": (np.float16, gguf.GGMLQuantizationType.F16),
    "F32": (np.float32, gguf.GGMLQuantizationType.F32),
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Path, target: Path) -> None:
    """Write the weights in `model` (config.json, model.safetensors) to the file `target`.

    The file has no tokenizer, only the vocabulary's size, so it is for token ids alone. Matrices
    keep their type; norms become float32, as llama.cpp wants them.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_name("random")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    with SafetensorsLocal(model / "model.safetensors") as tensors:
        for name, tensor in tensors.items():
            new = _new_name(name)
            kind, quantization = TYPES[tensor.dtype]
            values = np.frombuffer(tensor.mmap_bytes(), kind).reshape(tensor.shape)
            for part, count in heads.items():
                if part in new:
                    values = _interleave(values, config[count])
            if values.ndim == 1:
                values, quantization = _float32(values, tensor.dtype), None
            _add(writer, new, values, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, values: Any, quantization: Any) -> None:
    """bfloat16 goes in as bytes, because numpy has no name for it."""
    if quantization is gguf.GGMLQuantizationType.BF16:
        values = np.ascontiguousarray(values).view(np.uint8)
    writer.add_tensor(name, values, raw_dtype=quantization)


def _new_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in OUTER:
        return OUTER[stem] + ".weight"
    layer, inner = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{INNER[inner]}.weight"


def _interleave(rows: Any, heads: int) -> Any:
    """Reorder each head's rows: rotary pairs lie side by side there, half a head apart here."""
    shape = rows.shape
    halves = rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return halves.swapaxes(1, 2).reshape(shape)


def _float32(values: Any, dtype: str) -> Any:
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
