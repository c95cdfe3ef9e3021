"""Random-weight models: written once per run, so that every engine loads the very same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from foreword.bench._settings import ModelSize


def write_random_llama(size: ModelSize, directory: Path) -> None:
    """Write config and weights of a Llama of `size` to `directory`, the same for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size.seed)
        make: Any = AutoModelForCausalLM.from_config
        model = make(llama_config(size), dtype=getattr(torch, size.dtype))
    model.save_pretrained(directory)


def llama_config(size: ModelSize) -> Any:
    """The transformers configuration of `size`; no token of it ends a text."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        vocab_size=size.vocab,
        max_position_embeddings=size.max_context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        dtype=size.dtype,
    )


def linear_shapes(size: ModelSize) -> list[tuple[int, int]]:
    """(outputs, inputs) of every matrix a row goes through, in order, the head last."""
    query, kv = size.heads * size.head_dim, size.kv_heads * size.head_dim
    layer = [
        (query, size.hidden),
        (kv, size.hidden),
        (kv, size.hidden),
        (size.hidden, query),
        (size.intermediate, size.hidden),
        (size.intermediate, size.hidden),
        (size.hidden, size.intermediate),
    ]
    return layer * size.layers + [(size.vocab, size.hidden)]
