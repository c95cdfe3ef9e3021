"""Training with shared prefixes is training with repeated ones: every number of it.

The repeated computation is what everybody runs: one padded row per text, PyTorch's attention. With
it are compared log-probabilities, loss, the gradient of every parameter and the parameters after
three optimiser steps. In float64 the two differ by rounding only, so transformers' norms, which
compute in float32 whatever the model's format, are replaced by the same equation in float64.

The controls at the end break the shared computation in ways that still run and still learn. They
must fail the same comparison.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from foreword.training import Forest, Packed, _partials, attach, token_log_probs
from tests.training.repeating import (
    CASES,
    FAMILIES,
    LOSSES,
    MIXED,
    Batch,
    Loss,
    Method,
    Scores,
    assert_equal,
    build,
    distance,
    divergence,
    log_probs,
    repeated,
    shared,
    train,
    weights,
)

EXACT = 1e-10
SINGLE = 1e-5

# Reentrant checkpointing says it of the passes that have no gradient.
NO_GRADIENT_ON_PURPOSE = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


def _float64_norm(self: Any, hidden: Tensor) -> Tensor:
    scale = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (hidden * scale)


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    for norm in (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", _float64_norm)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_float64(family: str, exact_norms: None) -> None:
    assert_equal(build(family), MIXED, EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_float32(family: str) -> None:
    """With SGD: Adam divides a gradient that is only rounding by its own size."""
    model = build(family, torch.float32)
    assert_equal(model, MIXED, SINGLE, optimiser=torch.optim.SGD)


@pytest.mark.parametrize("case", CASES)
def test_every_shape_of_batch(case: str, exact_norms: None) -> None:
    assert_equal(build("Qwen3"), CASES[case], EXACT)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_kind_of_loss(loss: Loss, exact_norms: None) -> None:
    batch = CASES["three levels"]
    assert_equal(build("Qwen2"), batch, EXACT, loss=loss)


def test_a_reference_model_shares_too(exact_norms: None) -> None:
    def either(model: Any, batch: Batch) -> Scores:
        return (shared if model.config._attn_implementation != "sdpa" else repeated)(model, batch)

    reference = build("Llama", seed=1)
    ours = copy.deepcopy(reference)
    attach(ours)
    right = train(build("Llama"), repeated, MIXED, loss=divergence, reference=reference)
    policy = build("Llama")
    attach(policy)
    gap, name = distance(train(policy, either, MIXED, loss=divergence, reference=ours), right)
    assert gap <= EXACT, name


@NO_GRADIENT_ON_PURPOSE
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool, exact_norms: None) -> None:
    model = build("Llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_equal(model, MIXED, EXACT)


def _with_lora(family: str, dtype: torch.dtype) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=3,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(build(family, dtype), config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # begins as zeros, which would hide what reaches lora_A
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@NO_GRADIENT_ON_PURPOSE
@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_lora(checkpointing: bool | None, exact_norms: None) -> None:
    model = _with_lora("Qwen2", torch.float64).train()
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    assert_equal(model, MIXED, EXACT)


def test_bf16_autocast_is_no_worse_than_without_sharing() -> None:
    """Errors of all gradients against float32, as root mean squares over several models.

    Of single models, one way or the other is better by chance: errors were 0.8 to 1.6 times those
    of repeated rows, over eight models 0.96 to 1.10 times.
    """
    batch = CASES["group of 8"]

    def gradient(model: Any, method: Method, autocast: bool) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            scores = [x.float() for x in method(model, batch)]
        (-log_probs(scores, batch) * weights(sum(map(len, scores))).float()).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    errors = []
    for seed in range(8):
        plain, ours = build("Qwen3", torch.float32, seed), build("Qwen3", torch.float32, seed)
        attach(ours)
        right = gradient(plain, repeated, False)
        found = gradient(ours, shared, True), gradient(plain, repeated, True)
        errors.append([(x - right).norm() / right.norm() for x in found])
    error, usual = torch.tensor(errors).square().mean(0).sqrt()
    assert 0 < error <= 1.25 * usual


@pytest.mark.parametrize("family", FAMILIES)
def test_token_log_probs(family: str, exact_norms: None) -> None:
    batch = CASES["three levels"]
    plain, ours = build(family), build(family)
    attach(ours)
    right = log_probs(repeated(plain, batch), batch)
    rows = token_log_probs(ours, batch.rows, start=batch.starts, min_run=1)
    assert [len(x) for x in rows] == [
        len(row) - start for row, start in zip(batch.rows, batch.starts, strict=True)
    ]
    found = torch.cat(rows)
    assert (found - right).abs().max() <= EXACT
    for value in (right, found):
        (value * weights(len(value))).sum().backward()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=EXACT, rtol=EXACT)


# Controls. Each is a mistake that somebody could make, and none may pass.


def _contiguous_positions(packed: Packed) -> Packed:
    return dataclasses.replace(packed, positions=list(range(len(packed.tokens))))


def _change_segments(packed: Packed, change: Callable[[int, Any], Any]) -> Packed:
    segments = tuple(change(i, s) for i, s in enumerate(packed.forest.segments))
    return dataclasses.replace(packed, forest=Forest(segments))


def _block_diagonal(packed: Packed) -> Packed:
    """Each segment a text of its own, as packed rows are masked elsewhere."""
    return _change_segments(packed, lambda _, s: dataclasses.replace(s, end=s.stop))


def _sibling_seen(packed: Packed) -> Packed:
    """The first leaf with a sibling right behind it is seen by that one."""
    segments = packed.forest.segments
    leaf = next(i for i, (a, b) in enumerate(pairwise(segments)) if a.parent == b.parent >= 0)
    seen_by = segments[leaf + 1].stop

    def change(index: int, segment: Any) -> Any:
        return dataclasses.replace(segment, end=seen_by) if index == leaf else segment

    changed = _change_segments(packed, change)
    with pytest.raises(AssertionError):
        changed.forest.check()
    return changed


CONTROLS = {
    "contiguous positions": _contiguous_positions,
    "block-diagonal mask": _block_diagonal,
    "a sibling is seen": _sibling_seen,
}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_wrong_layout_is_noticed(control: str, exact_norms: None) -> None:
    def wrong(model: Any, batch: Batch) -> Scores:
        return shared(model, batch, CONTROLS[control])

    with pytest.raises(AssertionError, match="differs by"):
        assert_equal(build("Llama"), MIXED, 1e-3, wrong)


def _detached(backward: Any, *args: Any) -> tuple[Tensor, ...]:
    dq, dk, dv = backward(*args)
    causal = args[6]
    return (dq, dk, dv) if causal else (dq, dk * 0, dv * 0)


def _own_lse(backward: Any, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    out, _, causal, scale = rest
    lse = _partials.forward(q, k, v, causal, scale)[1]
    return backward(grad, q, k, v, out, lse, causal, scale)


def _own_state(backward: Any, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    causal, scale = rest[2:]
    out, lse = _partials.forward(q, k, v, causal, scale)
    return backward(grad, q, k, v, out, lse, causal, scale)


@pytest.mark.parametrize("control", [_detached, _own_lse, _own_state])
def test_a_wrong_backward_is_noticed(
    control: Any, exact_norms: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of the prefix detached; the lse or the whole state of the part alone."""
    backward = _partials.backward
    monkeypatch.setattr(_partials, "backward", lambda *args: control(backward, *args))
    with pytest.raises(AssertionError, match=r"(gradient|parameter) .* differs by"):
        assert_equal(build("Llama"), MIXED, 1e-3)


def test_the_comparison_itself_is_not_blind(exact_norms: None) -> None:
    """One parameter, moved by a hundred-millionth of itself, is noticed."""
    one, other = build("Llama"), build("Llama")
    with torch.no_grad():
        other.model.layers[0].self_attn.k_proj.weight[0, 0] *= 1 + 1e-7
    gap, _ = distance(train(one, repeated, MIXED), train(other, repeated, MIXED))
    assert gap > EXACT
