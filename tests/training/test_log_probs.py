"""Log-probabilities for a training loop of one's own; their gradients are in test_equality."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from foreword.training import SharingError, attach, token_log_probs

PROMPT = [5, 6, 7, 8]
ROWS = [[*PROMPT, 1, 2, 3], [*PROMPT, 9], [*PROMPT, 1, 2, 4]]


@pytest.fixture
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    made = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=61,
            max_position_embeddings=16,
            initializer_range=0.2,
        )
    )
    attach(made)
    return made


def alone(model: Any, row: list[int], start: int) -> torch.Tensor:
    log = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
    return log[torch.arange(start - 1, len(row) - 1), torch.tensor(row[start:], dtype=torch.long)]


@pytest.mark.parametrize("min_run", [1, 2, 8])
@pytest.mark.parametrize("start", [1, 4, 5, 7, 99])
def test_from_one_start_on(model: Any, start: int, min_run: int) -> None:
    found = token_log_probs(model, ROWS, start=start, min_run=min_run)
    for row, values in zip(ROWS, found, strict=True):
        right = alone(model, row, min(start, len(row)))
        torch.testing.assert_close(values, right, atol=1e-5, rtol=0)


def test_each_row_from_its_own_start(model: Any) -> None:
    rows = [*ROWS, [3], [], ROWS[0]]
    starts = [4, 5, 1, 1, 1, 6]
    found = token_log_probs(model, rows, start=starts)
    assert [len(values) for values in found] == [3, 0, 6, 0, 0, 1]
    for row, start, values in zip(rows, starts, found, strict=True):
        if values.numel():
            torch.testing.assert_close(values, alone(model, row, start), atol=1e-5, rtol=0)


def test_nothing_wanted_is_a_zero_that_can_be_trained_on(model: Any) -> None:
    """As when every completion of a batch is empty."""
    found = token_log_probs(model, [PROMPT, PROMPT], start=len(PROMPT))
    assert [len(values) for values in found] == [0, 0]
    torch.cat(found).sum().backward()
    assert not model.lm_head.weight.grad.any()


@pytest.mark.parametrize("rows", [[], [[]], [[1], [2]]])
def test_no_token_to_compute(model: Any, rows: list[list[int]]) -> None:
    assert [values.tolist() for values in token_log_probs(model, rows)] == [[] for _ in rows]


def test_only_wanted_positions_pass_the_head(model: Any) -> None:
    seen: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    token_log_probs(model, [*ROWS, ROWS[0]], start=len(PROMPT), min_run=1)
    # 8 predicts 1 twice and 9 once; then 1, and 2 once for each of 3 and 4.
    assert seen == [5]


def test_they_are_float32_at_least(model: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert token_log_probs(model, ROWS)[0].dtype == torch.float32
    assert token_log_probs(model.double(), ROWS)[0].dtype == torch.float64


def test_wrapped_models_are_called_as_a_whole(model: Any) -> None:
    class Wrapper(nn.Module):  # as DistributedDataParallel, whose own call is what must happen
        def __init__(self) -> None:
            super().__init__()
            self.module = model
            self.calls = 0

        def forward(self, **kwargs: Any) -> Any:
            self.calls += 1
            return self.module(**kwargs)

    wrapper = Wrapper()
    token_log_probs(wrapper, ROWS)
    assert wrapper.calls == 1


def test_a_model_that_is_not_attached_is_refused(model: Any) -> None:
    model.set_attn_implementation("sdpa")
    with pytest.raises(SharingError, match="call attach"):
        token_log_probs(model, ROWS)


@pytest.mark.parametrize("start", [0, [1, 2], [1, 1, 0], [1, 1, 1, 1]])
def test_starts_that_cannot_be_are_refused(model: Any, start: Any) -> None:
    with pytest.raises(SharingError, match="start is 1 or more, one for all rows or one for each"):
        token_log_probs(model, ROWS, start=start)


def test_a_row_beyond_the_context_is_refused(model: Any) -> None:
    with pytest.raises(SharingError, match=r"row 3 has 17 tokens, .* 16"):
        token_log_probs(model, [*ROWS, [1] * 17])
