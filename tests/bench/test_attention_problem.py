"""Problems in memory: spans, copies and the float64 check all mean the same tree."""

from __future__ import annotations

import pytest
import torch

from foreword._layout import PLAIN, PlainLayout
from foreword.attention import choose, plan
from foreword.bench.attention._points import Heads, Point
from foreword.bench.attention._problem import PAGE, Noise, Problem, SkippedError
from foreword.bench.attention._trees import Tree

CPU = torch.device("cpu")


def problem(text: str = "1,2,6_20,16,5", dtype: str = "float32", memory: int = 10**9) -> Problem:
    point = Point("trees", Tree.parse(text), Heads(4, 2, 32), dtype)
    return Problem(point, Noise(0, CPU), CPU, memory)


@pytest.mark.parametrize("text", ["1,2,6_20,16,5", "3_17", "2,4_16,1", "1,1,1_3,4,5"])
def test_all_three_span_lists_show_each_request_the_same_keys(text: str) -> None:
    made = problem(text)
    copies, _ = made.copied_pool(PLAIN)
    batch = made.tree.batch
    shared, apart, copied = (
        plan(spans, batch, group=2)
        for spans in (made.spans, made.spans_apart(), made.spans_copied())
    )
    for row in range(batch):
        expected = [slot for start, n in made.paths[row] for slot in range(start, start + n)]
        assert sorted(shared.visible(row)) == expected
        assert sorted(apart.visible(row)) == expected
        assert len(expected) == made.tree.context
        keys = made.keys[:, torch.tensor(expected)]
        assert torch.equal(copies[:, torch.from_numpy(copied.visible(row)).long()], keys)
        assert torch.equal(made.stacked[0][row], keys)
    assert shared.keys_read <= made.tree.unique_tokens
    assert apart.keys_read == made.tree.total_tokens


def test_the_tree_can_advance_once_without_a_request_meeting_another() -> None:
    made = problem("1,6_32,16")  # nodes that fill their pages exactly
    work = plan(made.spans, 6, group=2)
    work.advance()
    work.check()
    own = work.tail_slots().tolist()
    assert len(set(own)) == 6
    assert not any(slot in work.visible(row) for row in range(6) for slot in own[:row])
    assert all(start % PAGE == 0 for starts in made.starts for start in starts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_right_answer_has_hardly_an_error_and_a_wrong_one_has(dtype: str) -> None:
    made = problem(dtype=dtype)
    work = plan(made.spans, made.tree.batch, group=2)
    reference = choose(CPU, made.dtype, 32, "reference")
    out = reference.run(made.q, made.keys, made.values, work, made.scale).out
    assert made.error(out) < (1e-5 if dtype == "float32" else 1e-2)
    swapped = reference.run(made.q, made.values, made.keys, work, made.scale).out
    assert made.error(swapped) > 0.1
    assert made.error(out.roll(1, 0)) > 0.1  # requests exchanged
    assert made.error(out * 1.1) == pytest.approx(0.1, abs=0.01)
    assert made.error(torch.full_like(out, torch.nan)) == float("inf")


def test_noise_goes_on_where_it_stopped_and_begins_again_at_the_end() -> None:
    noise, length = Noise(0, CPU), 1_999_993
    whole = noise.fill(torch.empty(length + 5))
    assert torch.equal(whole[length:], whole[:5])
    assert torch.equal(noise.fill(torch.empty(2, 3)).view(-1), whole[5:11])
    assert torch.equal(Noise(0, CPU).fill(torch.empty(9)), whole[:9])
    assert abs(float(whole.mean())) < 0.01
    assert abs(float(whole.std()) - 1) < 0.01


def test_memory_is_claimed_and_refused_by_its_size() -> None:
    unique = problem().slots * 2 * 2 * 32 * 4
    with pytest.raises(SkippedError, match="keys and values would take"):
        problem(memory=unique - 1)
    made = problem(memory=unique)
    assert made.pool(PLAIN) == (made.keys, made.values)
    with pytest.raises(
        SkippedError, match=r"every request's own keys and values would take 0\.00 GB"
    ):
        made.copied_pool(PLAIN)


def test_another_layout_gets_the_same_keys() -> None:
    class Reversed(PlainLayout):  # type: ignore[misc]
        name = "reversed"

        def write(self, keys, values, slots, k, v):  # type: ignore[no-untyped-def]
            super().write(keys, values, keys.shape[1] - 1 - slots, k, v)

    made = problem()
    for pool, plain in ((made.pool, made.keys), (made.copied_pool, made.copied_pool(PLAIN)[0])):
        keys, values = pool(Reversed())
        assert torch.equal(keys.flip(1), plain)
        assert pool(Reversed())[1] is values  # made once for all who ask
