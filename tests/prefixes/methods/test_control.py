"""Control Prefixes: what conformance does not look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from foreword.prefixes import Prefix, PrefixError, PrefixRows, PrefixShape, run
from foreword.prefixes.methods import Batch, ControlPrefixes, Example

SHAPE = PrefixShape(2, 1, 4)
TWO = {"style": ["x", "y", "z"], "tone": ["loud", "very low"]}


def text(*ids: int, **attributes: str) -> Example:
    return Example(ids, 1, {"attributes": attributes})


def made(shape: PrefixShape = SHAPE, **settings: Any) -> ControlPrefixes:
    torch.manual_seed(3)
    known = {"attributes": TWO, "length": 3, "control_length": 2, **settings}
    method = ControlPrefixes(shape, **known)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return method


def served(method: ControlPrefixes, model: Any, **attributes: str) -> Prefix:
    parts = method.export(model)
    return Prefix.concat([parts[name] for name in method.names(attributes)])


@pytest.fixture
def model(plain_model: Callable[[str], Any]) -> Any:
    return plain_model("llama-bias-llama3-rope")


@pytest.mark.parametrize("settings", [{}, {"hidden": 5, "width": 4}], ids=["direct", "mlp"])
def test_blocks_and_task_prefix_served_together_are_the_rows(
    model: Any, settings: dict[str, Any]
) -> None:
    method = made(PrefixShape.of(model), unseen="zero", **settings)
    examples = [
        text(5, 6, 7, style="y", tone="very low"),
        text(8, 9, style="new", tone="loud"),
        text(3, 4, 5, 6, tone="loud"),
        text(3, 4),
    ]
    batch = Batch.of(examples)
    with torch.no_grad():
        mine = run(model, batch.ids, batch.mask, method.rows(model, batch)).logits
        for row, example in enumerate(examples):
            prefix = served(method, model, **example.fields["attributes"])
            alone = run(model, torch.tensor([example.ids]), None, PrefixRows.of([prefix])).logits
            assert (mine[row, : len(example.ids)] - alone[0]).abs().max() < 1e-5


def test_order_is_that_of_the_paper_and_any_order_attends_alike(model: Any) -> None:
    method = made(PrefixShape.of(model))
    names = method.names({"style": "x", "tone": "loud"})
    assert names == ["tone.loud", "style.x", "task"]
    parts = method.export(model)
    rows = method.rows(model, Batch.of([text(5, 6, style="x", tone="loud")]))
    assert torch.equal(Prefix.concat([parts[name] for name in names]).kv, rows.kv[0])
    ids = torch.tensor([[5, 6, 7]])
    first, second = (
        run(model, ids, None, PrefixRows.of([Prefix.concat([parts[n] for n in order])])).logits
        for order in (names, names[::-1])
    )
    assert (first - second).abs().max() < 1e-5


def test_every_part_stands_at_the_offset_of_the_whole_set(model: Any) -> None:
    method = made(PrefixShape.of(model))
    parts = method.export(model)
    assert {part.position_offset for part in parts.values()} == {7}
    assert sorted(parts) == ["style.x", "style.y", "style.z", "task", "tone.loud", "tone.very-low"]
    assert served(method, model, style="x").position_offset == 7
    stored = sum(part.kv.numel() for part in parts.values())
    assert stored == method.stored


@pytest.mark.parametrize(("settings", "mlps"), [({}, 1), ({"shared": False}, 3)])
def test_one_mlp_is_shared_or_each_part_has_its_own(settings: dict[str, Any], mlps: int) -> None:
    method = made(hidden=5, width=4, **settings)
    assert len(method.mlps) == mlps
    method.rows(None, Batch.of([text(1, 2, style="x")])).kv.square().sum().backward()
    reached = [mlp[0].weight.grad is not None for mlp in method.mlps]  # type: ignore[index]
    assert reached[:2] == [True] * min(2, mlps)


def test_only_the_asked_labels_are_computed() -> None:
    method = made(hidden=5, width=4)
    seen: list[int] = []
    method.mlps[0].register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    examples = [text(1, 2, style="x"), text(1, 2, style="x"), text(1, 2, style="z")]
    rows = method.rows(None, Batch.of(examples))
    assert seen == [3 + 2 * 2]
    assert torch.equal(rows.kv[0], rows.kv[1])
    assert not torch.equal(rows.kv[0], rows.kv[2])
    assert rows.mask.tolist() == [[False, False, True, True, True, True, True]] * 3


def test_an_unseen_label_is_refused_by_name_unless_there_is_a_fall_back() -> None:
    batch = Batch.of([text(1, 2, style="q")])
    with pytest.raises(PrefixError, match=r"'style' has no label 'q'"):
        made().rows(None, batch)
    near = {"style": {"x": [1, 0], "y": [-3, 9], "z": [-1, 0], "q": [-2, 0.5]},
            "tone": {"loud": [1], "very low": [-1]}}  # fmt: skip
    method = made(unseen="nearest", embeddings=near)
    like_z = method.rows(None, Batch.of([text(1, 2, style="z")])).kv
    assert torch.equal(method.rows(None, batch).kv, like_z)
    assert method.names({"style": "q"}) == ["style.z", "task"]
    with pytest.raises(PrefixError, match="give it an embedding"):
        method.names({"style": "r"})


def test_the_zero_block_is_the_embedding_of_zeros() -> None:
    method = made(hidden=5, width=4, unseen="zero")
    rows = method.rows(None, Batch.of([text(1, 2, style="q")]))
    blocks = rows.kv[0, :, :, :, 2:4].permute(3, 0, 1, 2, 4).flatten(1)
    assert torch.allclose(blocks, method.mlps[0](torch.zeros(2, 4)))
    assert method.names({"style": "q"}) == ["style.unseen", "task"]


def test_the_direct_start_is_the_cache_of_real_text(model: Any) -> None:
    method = ControlPrefixes(PrefixShape.of(model), attributes=TWO, length=3, control_length=2)
    ids = (9, 8, 7, 6, 5, 4, 3)
    method.start(model, [Example(ids, 1, {"attributes": {"style": "x", "tone": "loud"}})])
    rows = method.rows(model, Batch.of([text(1, 2, style="z", tone="loud")]))
    assert torch.allclose(rows.kv[0], Prefix.from_text(model, ids).kv)


def test_training_refuses_labels_that_were_not_declared(model: Any) -> None:
    method = made(PrefixShape.of(model), unseen="zero")
    with pytest.raises(PrefixError, match=r"example 1: attribute 'style' has no label 'q'"):
        method.start(model, [text(1, 2, style="x"), text(1, 2, style="q")])
    with pytest.raises(PrefixError, match="no attribute is called 'mood'"):
        method.start(model, [text(1, 2, mood="x")])


def test_attributes_come_from_the_data() -> None:
    found = ControlPrefixes.settings_from([text(1, 2, style="y"), text(1, 2, style="x", age="3")])
    assert found == {"attributes": {"age": ["3"], "style": ["x", "y"]}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attributes": {}}, "no attributes"),
        ({"attributes": {"style": []}}, "'style' has no labels"),
        ({"attributes": {"style": ["a b", "a-b"]}}, "rename one"),
        ({"attributes": {"style": ["unseen"]}}, "cannot be a prefix's name"),
        ({"length": 0}, "at least 1"),
        ({"unseen": "guess"}, "refuse, zero, nearest"),
        ({"unseen": "nearest", "embeddings": {"style": {"x": [1.0]}}}, "lacks y, z"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(PrefixError, match=said):
        made(**settings)
