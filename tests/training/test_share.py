"""A model that TRL prepared, called with padded rows: shared and plain say the same."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from foreword.training import Sharing, SharingError, share_prefixes
from foreword.training._model import ATTENTION_NAME
from tests.training.padded import EAGER, OTHER, OUTPUTS, PROMPT, gradients, group, rectangle


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("ask_from", [1, 20, 30])
def test_every_field_and_gradient_is_that_of_the_plain_call(
    pair: Callable[..., tuple[Any, Any]], left: bool, ask_from: int
) -> None:
    plain, shared = pair()
    batch = rectangle(group(), left=left, ask_from=ask_from)
    theirs, ours = plain(**batch, fused_lm_head=True), shared(**batch, fused_lm_head=True)
    asked = batch["labels"][:, 1:] != -100
    assert torch.equal(ours.label_mask, asked)
    for name in OUTPUTS:
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.dtype == other.dtype, name
        assert mine.shape == other.shape, name
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(ours.loss, theirs.loss)
    weights = torch.randn(asked.shape)

    def gradient(model: Any, result: Any) -> dict[str, torch.Tensor]:
        return gradients(model, (weights * (result.log_probs + 0.1 * result.entropy)).sum())

    mine, other = gradient(shared, ours), gradient(plain, theirs)
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=2e-5, msg=name)
    tally = shared.forward.tally
    assert (tally.calls, tally.shared_calls, tally.reasons) == (1, 1, {})
    assert tally.saved_tokens == batch["input_ids"].numel() - tally.computed_tokens > 0
    assert tally.check_gap is not None


def test_the_number_of_items_divides_the_loss(pair: Callable[..., tuple[Any, Any]]) -> None:
    plain, shared = pair()
    batch = rectangle(group())
    for items in (7, torch.tensor(7)):
        given = {**batch, "num_items_in_batch": items, "fused_lm_head": True}
        torch.testing.assert_close(shared(**given).loss, plain(**given).loss)


def test_no_mask_means_that_all_tokens_are_there(pair: Callable[..., tuple[Any, Any]]) -> None:
    plain, shared = pair()
    rows = [[*PROMPT, 80 + i] for i in range(4)]
    ids = torch.tensor(rows)
    given = {"input_ids": ids, "labels": ids, "fused_lm_head": True}
    for extra in ({}, {"attention_mask": None}):
        theirs, ours = plain(**given, **extra), shared(**given, **extra)
        torch.testing.assert_close(ours.log_probs, theirs.log_probs, rtol=1e-5, atol=1e-5)
    assert shared.forward.tally.shared_calls == 2


def test_rows_without_tokens_or_labels_stay_out_of_the_way(
    pair: Callable[..., tuple[Any, Any]],
) -> None:
    plain, shared = pair()
    batch = rectangle([*group(), [], [7], PROMPT[:20]])
    theirs, ours = plain(**batch, fused_lm_head=True), shared(**batch, fused_lm_head=True)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, rtol=1e-5, atol=1e-5)
    assert shared.forward.tally.shared_calls == 1


def test_a_batch_that_asks_for_nothing_has_gradients_of_zero(
    pair: Callable[..., tuple[Any, Any]],
) -> None:
    _, shared = pair()
    batch = rectangle(group())
    batch["labels"].fill_(-100)
    result = shared(**batch, fused_lm_head=True)
    assert shared.forward.tally.shared_calls == 1
    found = gradients(shared, result.loss + result.log_probs.sum() + result.entropy.sum())
    assert found
    assert all(bool((value == 0).all()) for value in found.values())


def _hole(batch: dict[str, Any]) -> None:
    batch["attention_mask"][0, 12] = 0


def _other_label(batch: dict[str, Any]) -> None:
    batch["labels"][0, -1] = 3


def _label_on_padding(batch: dict[str, Any]) -> None:
    batch["labels"][1, 1] = 0


def _label_behind_padding(batch: dict[str, Any]) -> None:
    first = int(batch["attention_mask"][1].argmax())
    batch["labels"][1, first] = batch["input_ids"][1, first]


def _positions(batch: dict[str, Any]) -> None:
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]


def _square_mask(batch: dict[str, Any]) -> None:
    width = batch["input_ids"].shape[1]
    batch["attention_mask"] = torch.ones(width, width, dtype=torch.bool).tril()[None, None]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_hole, "padding inside a row"),
        (_other_label, "labels other than the rows' own tokens"),
        (_label_on_padding, "labels at or right behind padding"),
        (_label_behind_padding, "labels at or right behind padding"),
        (_positions, "arguments position_ids"),
        (_square_mask, "an attention mask that is not one number for each token"),
    ],
)
def test_what_cannot_be_packed_goes_through_as_it_came(
    pair: Callable[..., tuple[Any, Any]], change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    plain, shared = pair()
    batch = rectangle(group())
    change(batch)
    theirs, ours = plain(**batch, fused_lm_head=True), shared(**batch, fused_lm_head=True)
    assert torch.equal(ours.log_probs, theirs.log_probs)
    tally = shared.forward.tally
    assert tally.reasons == {reason: 1}
    assert tally.shared_calls == tally.saved_tokens == 0
    assert tally.repeated_tokens == batch["input_ids"].numel()


def test_positional_arguments_go_through_as_they_came(
    pair: Callable[..., tuple[Any, Any]],
) -> None:
    plain, shared = pair()
    batch = rectangle(group())
    given = (batch["input_ids"], batch["attention_mask"])
    theirs = plain(*given, labels=batch["labels"], fused_lm_head=True)
    ours = shared(*given, labels=batch["labels"], fused_lm_head=True)
    assert torch.equal(ours.log_probs, theirs.log_probs)
    assert shared.forward.tally.reasons == {"positional arguments": 1}


@pytest.mark.parametrize(
    ("rows", "sharing", "reason"),
    [
        ([PROMPT], EAGER, "nothing in common"),
        ([PROMPT, OTHER], EAGER, "nothing in common"),
        ([PROMPT, [*PROMPT[:5], *OTHER]], Sharing(min_run=6, min_gain=0), "nothing in common"),
        (
            [PROMPT, [*PROMPT[:5], *OTHER]],
            Sharing(min_run=4, min_gain=2),
            "too little in common to be quicker",
        ),
    ],
)
def test_where_sharing_does_not_pay_the_call_goes_through_as_it_came(
    pair: Callable[..., tuple[Any, Any]], rows: list[list[int]], sharing: Sharing, reason: str
) -> None:
    plain, shared = pair(sharing)
    batch = rectangle(rows)
    theirs, ours = plain(**batch, fused_lm_head=True), shared(**batch, fused_lm_head=True)
    assert torch.equal(ours.log_probs, theirs.log_probs)
    assert shared.forward.tally.reasons == {reason: 1}


def test_a_rectangle_too_small_to_gain_is_not_looked_at(
    pair: Callable[..., tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, shared = pair(Sharing())
    monkeypatch.setattr("foreword.training._share.pack", lambda *_, **__: pytest.fail("looked"))
    batch = rectangle(group())
    ours = shared(**batch, fused_lm_head=True)
    assert torch.equal(ours.log_probs, plain(**batch, fused_lm_head=True).log_probs)
    assert shared.forward.tally.reasons == {"too little in common to be quicker": 1}


def test_rows_longer_than_the_context_are_refused_by_name(
    pair: Callable[..., tuple[Any, Any]],
) -> None:
    _, shared = pair()
    batch = rectangle([[*PROMPT, 80], [*PROMPT, *([5] * 600)]])
    with pytest.raises(SharingError, match=r"row 1 has 630 tokens.*512"):
        shared(**batch, fused_lm_head=True)


def test_the_first_calls_without_sharing_are_told_once_with_the_way_out(
    pair: Callable[..., tuple[Any, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    _, shared = pair()
    alone = rectangle([PROMPT, OTHER])
    with caplog.at_level(logging.WARNING, "foreword.training"), torch.no_grad():
        for _ in range(7):
            shared(**alone, fused_lm_head=True)
        assert not caplog.records
        for _ in range(9):
            shared(**alone, fused_lm_head=True)
    [record] = caplog.records
    assert "none of the first 8 calls" in record.getMessage()
    assert (
        ". A batch holds no two rows that begin with the same Sharing(min_run"
        in record.getMessage()
    )
    assert "per_device_train_batch_size" in record.getMessage()


def test_nothing_is_told_once_something_was_shared(
    pair: Callable[..., tuple[Any, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    _, shared = pair()
    with torch.no_grad():
        shared(**rectangle(group()), fused_lm_head=True)
        for _ in range(9):
            shared(**rectangle([PROMPT, OTHER]), fused_lm_head=True)
    assert not caplog.records


def test_calls_without_the_fused_head_are_the_models_own(
    pair: Callable[..., tuple[Any, Any]],
) -> None:
    plain, shared = pair()
    batch = rectangle(group())
    theirs, ours = plain(**batch), shared(**batch)
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert shared.forward.tally.calls == 0
    prompt = {k: batch[k][:, :-4] for k in ("input_ids", "attention_mask")}
    generate = {**prompt, "do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    assert torch.equal(shared.generate(**generate), plain.generate(**generate))
    assert inspect.signature(shared.forward) == inspect.signature(plain.forward)


def test_a_second_time_only_the_settings_change(pair: Callable[..., tuple[Any, Any]]) -> None:
    _, shared = pair()
    forward = shared.forward
    other = Sharing(min_run=3)
    assert share_prefixes(shared) is forward
    assert forward.sharing is EAGER
    assert share_prefixes(shared, other) is forward is shared.forward
    assert forward.sharing is other


def test_a_deep_copy_shares_its_own_weights(pair: Callable[..., tuple[Any, Any]]) -> None:
    plain, shared = pair()
    batch = rectangle(group())
    twin = copy.deepcopy(shared)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
        for parameter in plain.parameters():
            parameter.mul_(1.1)
        ours = twin(**batch, fused_lm_head=True)
        theirs = plain(**batch, fused_lm_head=True)
        before = shared(**batch, fused_lm_head=True)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before.log_probs, ours.log_probs, atol=1e-2)
    assert twin.forward.tally.calls == shared.forward.tally.calls == 1


def test_saving_keeps_nothing_of_it(
    pair: Callable[..., tuple[Any, Any]], tmp_path: Any, tiny_path: Any
) -> None:
    from transformers import AutoModelForCausalLM

    plain, shared = pair()
    assert shared.state_dict().keys() == plain.state_dict().keys()
    shared.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation != ATTENTION_NAME
    assert not hasattr(again.forward, "tally")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in tiny_path.iterdir() if not path.name.startswith("tokenizer")
    )


@pytest.mark.parametrize(
    "settings", [{"min_run": 0}, {"min_gain": -1.0}, {"min_gain": float("nan")}]
)
def test_settings_out_of_their_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SharingError, match=f"{next(iter(settings))} is"):
        Sharing(**settings)


def test_tokens_that_are_no_rectangle_go_through(
    pair: Callable[..., tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shared = pair()
    monkeypatch.setattr(shared.forward, "_plain", lambda **_: "as it came")
    for shape in ((512,), (2, 16, 256)):
        ids = torch.ones(shape, dtype=torch.long)
        assert shared(input_ids=ids, labels=ids, fused_lm_head=True) == "as it came"
