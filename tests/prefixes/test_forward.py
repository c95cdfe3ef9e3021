"""The plain forward pass: what it refuses, and gradient checkpointing beside the cache."""

from __future__ import annotations

import copy

import pytest
import torch

from foreword.prefixes import Prefix, PrefixError, PrefixRows, PrefixShape, generate_kwargs, run
from foreword.prefixes.objectives import lm_loss
from tests.conftest import SHAPES

IDS = torch.tensor([[5, 17, 3, 99, 42], [8, 1, 64, 2, 7], [9, 9, 30, 31, 0]])
MASKS = {
    "whole": torch.ones_like(IDS),
    "padded on the right": torch.tensor([[1] * 5, [1] * 5, [1, 1, 1, 1, 0]]),
    "padded on the left": torch.tensor([[1] * 5, [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]),
}


def frozen(model, *, checkpointed: bool, reentrant: bool = False):
    """A copy of a model as it is trained: in training mode, without dropout."""
    model = copy.deepcopy(model).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for key in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout"):
        if hasattr(model.config, key):
            setattr(model.config, key, 0.0)
    if checkpointed:
        enable = getattr(model, "activation_checkpointing_enable", None)
        enable = enable or model.gradient_checkpointing_enable
        enable({"use_reentrant": reentrant})
    return model.train()


def prefixes(model, grad: bool = False) -> PrefixRows:
    """Rows with a long prefix, with none, and with a short one whose text begins elsewhere."""
    shape = PrefixShape.of(model)
    draw = torch.Generator().manual_seed(3)

    def made(length: int, offset: int = -1) -> Prefix:
        return Prefix(torch.randn(shape.size(length), generator=draw) * 0.3, offset)

    rows = PrefixRows.of([made(6), None, made(2, 30)])
    rows.kv.requires_grad_(grad)
    return rows


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("name", SHAPES)
def test_checkpointed_layers_see_the_prefix_and_train_it(name, padding, plain_model):
    mask = MASKS[padding]
    learned = mask.bool() & (mask.cumsum(-1) > 1)  # padding says nothing of a first token
    labels = torch.where(learned, IDS, -100)
    seen = {}
    for checkpointed in (False, True):
        model = frozen(plain_model(name), checkpointed=checkpointed)
        rows = prefixes(model, grad=True)
        logits = run(model, IDS, mask, rows).logits
        lm_loss(logits, labels).backward()
        seen[checkpointed] = logits.detach()[mask.bool()], rows.kv.grad
    torch.testing.assert_close(seen[True][0], seen[False][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[True][1], seen[False][1], atol=1e-5, rtol=0)
    assert float(seen[True][1][0].abs().max()) > 1e-4
    # Nothing reaches what is only padding.
    assert not seen[True][1][1].any()


def test_no_token_sees_nothing_even_padding_before_which_nothing_stands(plain_model):
    from foreword.prefixes._checkpointed import arguments

    model = frozen(plain_model("gpt2"), checkpointed=True)
    seen = arguments(model, MASKS["padded on the left"], prefixes(model))["attention_mask"]
    assert seen.shape == (3, 1, 5, 11)
    assert bool(seen.any(-1).all())
    # The second row has no prefix and two tokens of padding.
    assert seen[1, 0, :, 6:].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_layers_are_indeed_run_again(plain_model):
    model = frozen(plain_model("gpt2"), checkpointed=True)
    runs = []
    model.transformer.h[0].attn.register_forward_pre_hook(lambda *_: runs.append(1))
    logits = run(model, IDS, prefix=prefixes(model, grad=True)).logits
    assert len(runs) == 1
    logits.sum().backward()
    assert len(runs) == 2


@pytest.mark.parametrize("padding", MASKS)
def test_a_model_that_was_checkpointed_computes_as_before_without_a_prefix(padding, plain_model):
    mask = MASKS[padding]
    model = frozen(plain_model("llama-4to1-d64-tied"), checkpointed=True)
    run(model, IDS, prefix=prefixes(model))
    with torch.no_grad():
        expected = run(plain_model("llama-4to1-d64-tied"), IDS, mask).logits[mask.bool()]
        trained = run(model, IDS, mask).logits[mask.bool()]
        torch.testing.assert_close(trained, expected, atol=1e-6, rtol=0)
        model.eval()  # and with one, through the cache again
        rows = prefixes(model)
        expected = run(plain_model("llama-4to1-d64-tied"), IDS, mask, rows).logits[mask.bool()]
        served = run(model, IDS, mask, rows).logits[mask.bool()]
        torch.testing.assert_close(served, expected, atol=1e-6, rtol=0)


def test_reentrant_checkpointing_is_refused(plain_model):
    model = frozen(plain_model("gpt2"), checkpointed=True, reentrant=True)
    with pytest.raises(PrefixError, match='"use_reentrant": False'):
        run(model, IDS, prefix=prefixes(model))


def test_checkpointing_a_model_whose_attention_is_its_own_is_refused():
    from transformers import CodeGenConfig, CodeGenForCausalLM

    config = CodeGenConfig(
        vocab_size=50,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = frozen(CodeGenForCausalLM(config), checkpointed=True)
    rows = PrefixRows.of([Prefix(torch.ones(2, 2, 4, 3, 8))] * 3)
    with pytest.raises(PrefixError, match="CodeGenForCausalLM, whose attention cannot be replaced"):
        run(model, IDS % 50, prefix=rows)
    run(model.eval(), IDS % 50, prefix=rows)


def test_a_prefix_is_cast_to_the_model_and_trained_in_its_own_format(plain_model):
    model = frozen(plain_model("llama-4to1-d64-tied"), checkpointed=False).to(torch.bfloat16)
    rows = prefixes(model, grad=True)
    run(model, IDS, prefix=rows).logits.float().sum().backward()
    assert rows.kv.grad is not None
    assert rows.kv.grad.dtype == torch.float32


def windowed():
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(
        MistralConfig(
            vocab_size=101,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=8,
        )
    )


def test_models_that_a_prefix_cannot_stand_before_are_refused():
    model = windowed()
    rows = PrefixRows.of([Prefix(torch.ones(2, 2, 1, 3, 16))] * 3)
    with pytest.raises(PrefixError, match="sliding window of 8 tokens"):
        run(model, IDS, prefix=rows)
    with pytest.raises(PrefixError, match="sliding window of 8 tokens"):
        generate_kwargs(model, IDS, rows)
    with pytest.raises(PrefixError, match="sliding window of 8 tokens"):
        Prefix.from_text(model, [1, 2, 3])


@pytest.mark.parametrize("call", [run, generate_kwargs])
def test_prefixes_that_do_not_fit_are_refused(plain_model, call):
    model = plain_model("gpt2")
    shape = PrefixShape.of(model)

    def made(length: int, offset: int = -1, size=shape.size) -> PrefixRows:
        return PrefixRows.of([Prefix(torch.zeros(size(length)), offset)] * 3)

    def called(rows: PrefixRows):
        with torch.no_grad():
            return call(model, IDS, prefix=rows)

    called(made(507))
    for rows, message in (
        (made(508), "5 tokens that begins at position 508 needs 513 positions.* knows 512"),
        (made(1, 508), "needs 513"),
        (PrefixRows.same(torch.zeros(shape.size(2)), 2), "2 prefixes for 3 rows"),
        (made(2, size=PrefixShape(3, 2, 64).size), "do not fit the model.*3, 2, 64.*has 2, 2, 64"),
        (made(2, size=PrefixShape(2, 1, 64).size), "2, 1, 64"),
        (made(2, size=PrefixShape(2, 2, 32).size), "2, 2, 32"),
    ):
        with pytest.raises(PrefixError, match=message):
            called(rows)
