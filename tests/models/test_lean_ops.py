"""Norm, rotary positions and SwiGLU against transformers' own functions."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from foreword.models import _lean_ops as ops

ROWS = [0, 1, 5, 70]
TOLERANCE = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (2e-3, 8e-3)}  # one rounding


def close(actual, expected):
    atol, rtol = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def normal(*size, dtype):
    return torch.randn(size).to(dtype)


def their_norm(weight, eps=1e-5):
    norm = LlamaRMSNorm(weight.shape[-1], eps=eps).to(weight.dtype)
    norm.weight = torch.nn.Parameter(weight, requires_grad=False)
    return norm


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rms_norm(dtype, rows):
    x, weight = 7 * normal(rows, 96, dtype=dtype), normal(96, dtype=dtype)
    before = x.clone()
    close(ops.rms_norm(x, weight, 1e-5), their_norm(weight)(x))
    assert torch.equal(x, before)
    tiny = 1e-3 * x  # eps counts here
    close(ops.rms_norm(tiny, weight, 1e-5), their_norm(weight)(tiny))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rms_norm_of_heads(dtype):
    """Each head by its own weight, read from rows that lie apart, as inside fused products."""
    x = normal(5, 7, 32, dtype=dtype)[:, :6]
    weight = normal(6, 32, dtype=dtype)
    expected = torch.stack([their_norm(weight[h])(x[:, h]) for h in range(6)], dim=1)
    normed = ops.rms_norm(x, weight, 1e-5)
    close(normed, expected)
    assert normed.is_contiguous()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_add_rms_norm(dtype, rows):
    residual, x = normal(rows, 96, dtype=dtype), normal(rows, 96, dtype=dtype)
    weight = normal(96, dtype=dtype)
    total = residual + x
    normed, out = ops.add_rms_norm(residual, x, weight, 1e-5)
    close(normed, their_norm(weight)(total))
    assert torch.equal(out, total)


@pytest.mark.parametrize("scaling", [None, "yarn"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rope(dtype, rows, scaling):
    rope = {"rope_type": "default", "rope_theta": 1e4}
    if scaling:
        rope = {**rope, "rope_type": scaling, "factor": 4.0}
        rope["original_max_position_embeddings"] = 64
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=rope)
    )
    positions = torch.randint(0, 5000, (rows,))
    qkv = normal(rows, 8, 32, dtype=dtype)
    x, untouched = qkv[:, :6], qkv[:, 6:].clone()
    q, k = x[:, :4].clone(), x[:, 4:].clone()
    table = theirs(x, positions[None])
    expected = apply_rotary_pos_emb(q[None], k[None], *table, unsqueeze_dim=2)
    cos, sin = ops.rope_table(positions, theirs.inv_freq, theirs.attention_scaling, dtype)
    assert ops.rope_(x, cos, sin) is x
    close(x, torch.cat([part[0] for part in expected], dim=1))
    assert torch.equal(qkv[:, 6:], untouched)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_silu_mul(dtype, rows):
    gate, up = normal(rows, 96, dtype=dtype), normal(rows, 96, dtype=dtype)
    gate_up = torch.cat((gate, up), dim=1)
    close(ops.silu_mul(gate_up), silu(gate) * up)
    assert torch.equal(gate_up, torch.cat((gate, up), dim=1))
