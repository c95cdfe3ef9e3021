"""What a model asks for that the engine does not do: found in its configuration, refused by name.

Sharing must never change an answer, so a feature that we would silently ignore is worse than one
we refuse. Every check reads the configuration alone and costs nothing.
"""

from __future__ import annotations

from typing import Any

from foreword._errors import ModelError

TESTED_TYPES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
"""Families whose greedy text is compared with transformers' own `generate` in the test suite.

Others are run by the same code, after a check of their logits against their own attention at load.
"""

_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


def unsupported_features(config: Any) -> tuple[str, ...]:
    """Name every feature of a transformers configuration that the engine cannot honour."""

    def has(name: str) -> bool:
        return bool(getattr(config, name, None))

    found: list[str] = []
    if has("is_encoder_decoder"):
        found.append("encoder-decoder attention")
    if has("add_cross_attention"):
        found.append("cross attention")
    if has("text_config") or has("vision_config"):
        found.append("inputs other than text")
    layer_types = set(getattr(config, "layer_types", None) or ())
    for kind in sorted(layer_types - {"full_attention"}):
        found.append(f"layers of type {kind!r}")
    windowed = getattr(config, "use_sliding_window", True)
    if getattr(config, "sliding_window", None) and windowed and not layer_types:
        found.append(f"a sliding window of {config.sliding_window} tokens")
    if has("attn_logit_softcapping"):
        found.append("soft-capped attention logits")
    if has("attention_chunk_size"):
        found.append("chunked local attention")
    if has("alibi") or config.model_type in ("bloom", "mpt"):
        found.append("ALiBi position biases")
    if has("kv_lora_rank") or has("qk_rope_head_dim"):
        found.append("multi-head latent attention")
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rope_type = rope.get("rope_type", "default") if isinstance(rope, dict) else "default"
    if rope_type in _BATCH_DEPENDENT_ROPE:
        found.append(f"{rope_type!r} rotary scaling (it depends on who else is in the batch)")
    if not getattr(config, "num_attention_heads", None):
        found.append("layers without attention heads")
    return tuple(found)


def refuse_unsupported(config: Any, source: str) -> None:
    """Raise `ModelError` naming each unsupported feature of `config`, if there is any."""
    found = unsupported_features(config)
    if found:
        raise ModelError(
            f"{source}: {config.model_type!r} models of this shape need {', '.join(found)}, which "
            f"Foreword does not compute yet. Decoder-only models with full attention run: "
            f"{', '.join(TESTED_TYPES)} and their like."
        )
