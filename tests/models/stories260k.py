"""A converter for stories260K: llama2.c's first float format to a transformers Llama.

The file is a header of seven int32 and then float32 tensors, layer by layer for each kind. Its
rotary pairs are neighbours (0,1),(2,3),...; transformers pairs a dimension with the one half a head
away, so query and key rows are put in that order, which changes no attention score.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load(directory: Path) -> Any:
    """The model in float32, with transformers' own attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = (directory / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("7i", raw[:28])
    numbers = np.frombuffer(raw, dtype=np.float32, offset=28)
    head_dim, used = dim // heads, 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal used
        size = int(np.prod(shape))
        block = torch.from_numpy(numbers[used : used + size].copy()).reshape(shape)
        used += size
        return block

    def half_split(weight: torch.Tensor, count: int) -> torch.Tensor:
        pairs = weight.reshape(count, head_dim // 2, 2, dim)
        return pairs.transpose(1, 2).reshape(count * head_dim, dim)

    embedding = take(vocab, dim)
    attention_norm = take(layers, dim)
    query, key = take(layers, dim, dim), take(layers, kv_heads * head_dim, dim)
    value, output = take(layers, kv_heads * head_dim, dim), take(layers, dim, dim)
    mlp_norm = take(layers, dim)
    gate, down, up = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
    final_norm = take(dim)

    config = LlamaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
    )
    state = {"model.embed_tokens.weight": embedding, "model.norm.weight": final_norm}
    for i in range(layers):
        block = f"model.layers.{i}."
        state |= {
            block + "input_layernorm.weight": attention_norm[i],
            block + "self_attn.q_proj.weight": half_split(query[i], heads),
            block + "self_attn.k_proj.weight": half_split(key[i], kv_heads),
            block + "self_attn.v_proj.weight": value[i],
            block + "self_attn.o_proj.weight": output[i],
            block + "post_attention_layernorm.weight": mlp_norm[i],
            block + "mlp.gate_proj.weight": gate[i],
            block + "mlp.down_proj.weight": down[i],
            block + "mlp.up_proj.weight": up[i],
        }
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    model.tie_weights()
    return model.eval()


def pieces(directory: Path) -> list[bytes]:
    """The 512 pieces of its vocabulary, by id."""
    raw = (directory / "tok512.bin").read_bytes()
    found, at = [], 4
    while at < len(raw):
        _, length = struct.unpack_from("fi", raw, at)
        found.append(raw[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def decode(vocabulary: list[bytes], ids: list[int]) -> str:
    """Text of `ids`; the space that the first piece of a text begins with is left out."""
    text = b""
    for i, token in enumerate(ids):
        piece = vocabulary[token]
        if match := re.fullmatch(rb"<0x([0-9A-F]{2})>", piece):
            piece = bytes([int(match[1], 16)])
        text += piece[1:] if i == 0 and piece.startswith(b" ") else piece
    return text.decode()


def published(directory: Path) -> str:
    """The greedy text that the model's authors published."""
    readme = (directory / "README.upstream.md").read_text()
    found = re.search(r"-t 0\.0\n(.*?)\n```", readme, re.DOTALL)
    assert found
    return found[1]
