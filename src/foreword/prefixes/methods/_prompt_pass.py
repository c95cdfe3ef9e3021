"""Learned prompts through a frozen model's layers, with something done to them on the way.

The model runs as it is; hooks, in place for the length of one pass, set the hidden states that
enter a layer and change what its self-attention adds to them. That needs layers of the form

    x = x + attention(norm(x));  x = x + feed_forward(norm(x))

so families whose layers are known to be that are named here, and others refused.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from foreword.prefixes._errors import PrefixError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Change = Callable[[int, Tensor], Tensor]

FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3")


def layers_of(model: Any) -> list[tuple[Any, Any]]:
    """Each decoder layer with its self-attention, bottom first.

    Raises:
        PrefixError: a family whose layers have no such place.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise PrefixError(
            f"{kind!r} models have layers that prompts are not gated in; those of "
            f"{', '.join(FAMILIES)} are known to have the place between attention and feed-forward"
        )
    base = model.base_model
    if kind == "gpt2":
        return [(layer, layer.attn) for layer in base.h]
    return [(layer, layer.self_attn) for layer in base.layers]


def prompt_pass(
    model: Any,
    prompt: Tensor,
    first: int,
    *,
    enter: Change | None = None,
    after_attention: Change | None = None,
) -> Tensor:
    """Keys and values of a prompt given as vectors, with gradients to it.

    Args:
        model: a transformers causal model in evaluation mode; unchanged afterwards.
        prompt: `[length, hidden_size]`, read in place of token embeddings.
        first: position of its first vector.
        enter: `(layer, x) -> x` for the hidden states `[1, length, hidden_size]` entering a layer.
        after_attention: `(layer, x) -> x` for those after self-attention and its residual, before
            the feed-forward block.

    Returns:
        `[layers, 2, kv_heads, length, head_dim]`, float32.

    Raises:
        PrefixError: see `layers_of`; or the model keeps no cache (gradient checkpointing).
    """
    before: dict[int, Tensor] = {}

    def entering(number: int) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            states, *rest = args or (kwargs.pop("hidden_states"),)
            before[number] = states if enter is None else enter(number, states)
            return (before[number], *rest), kwargs

        return hook

    def attended(number: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> Any:
            assert after_attention is not None
            # The layer adds its input to this, so what is handed on is the wanted sum without it.
            wanted = after_attention(number, before[number] + output[0])
            return (wanted - before[number], *output[1:])

        return hook

    length = prompt.shape[0]
    weight = next(model.parameters())
    with ExitStack() as stack:
        for number, (layer, attention) in enumerate(layers_of(model)):
            hook = layer.register_forward_pre_hook(entering(number), with_kwargs=True)
            stack.callback(hook.remove)
            if after_attention is not None:
                stack.callback(attention.register_forward_hook(attended(number)).remove)
        cache = model.base_model(
            inputs_embeds=prompt.to(weight)[None],
            position_ids=torch.arange(first, first + length, device=weight.device)[None],
            use_cache=True,
        ).past_key_values
    if cache is None or cache.get_seq_length() != length:
        raise PrefixError(
            "the model kept no cache of the prompt: switch gradient checkpointing off "
            "(model.gradient_checkpointing_disable())"
        )
    kv = [torch.stack((each.keys[0], each.values[0])) for each in cache.layers]
    return torch.stack(kv).float()
