"""What the benchmark of training counts, and that its arms compute the same thing."""

from __future__ import annotations

import pytest
import torch

from benchmarks.training._cells import Cell, grid, read_cell


def test_the_token_bound_is_that_of_the_formula() -> None:
    for cell in grid():
        p, r, g = cell.prefix, cell.response, cell.group
        assert cell.token_bound() == pytest.approx(g * (p + r) / (p + g * r))
    assert len({cell.name for cell in grid()}) == 36


def test_work_is_bounded_by_tokens_alone_only_where_attention_costs_nothing() -> None:
    for cell in grid():
        assert cell.work_bound(1, 0) == pytest.approx(cell.token_bound())
    long = Cell(4096, 512, 16)
    assert 1 < long.work_bound(15_000_000, 1792) < long.token_bound()


def test_work_of_attention_is_that_of_counted_pairs() -> None:
    cell = Cell(30, 20, 3)
    alone = sum(t + 1 for _ in range(3) for t in range(50))
    shared = sum(t + 1 for t in range(30)) + sum(30 + t + 1 for _ in range(3) for t in range(20))
    assert cell.work_bound(0, 1) == pytest.approx(alone / shared, rel=0.02)


def test_unequal_responses_run_evenly_from_a_quarter_to_the_whole() -> None:
    cell = Cell(10, 400, 4, unequal=True)
    assert cell.lengths == [100, 200, 300, 400]
    assert cell.repeated == 4 * 10 + 1000
    assert [len(row) for row in cell.rows(1000)] == [110, 210, 310, 410]


def test_rows_share_the_prefix_and_not_a_token_more() -> None:
    rows = Cell(10, 5, 8).rows(64)
    assert len({tuple(row[:10]) for row in rows}) == 1
    assert len({row[10] for row in rows}) == 8


@pytest.mark.parametrize("cell", [Cell(1, 2, 3), Cell(16, 512, 2, unequal=True)])
def test_a_cell_is_read_by_its_name(cell: Cell) -> None:
    assert read_cell(cell.name) == cell


@pytest.mark.parametrize("text", ["", "1,2", "1,2,x", "0,1,2", "1,2,3,even"])
def test_what_is_no_cell_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no cell"):
        read_cell(text)


@pytest.mark.parametrize("cell", [Cell(24, 9, 3), Cell(24, 12, 4, unequal=True)])
def test_all_arms_compute_the_same_gradients(cell: Cell) -> None:
    pytest.importorskip("trl")
    from benchmarks.training._arms import Arms
    from foreword.training import Sharing

    arms = Arms("tiny", Sharing(min_gain=0, self_check=False))
    found = {}
    for name, run, model in (
        ("rectangle", arms.rectangle(cell), arms.plain),
        ("rows", arms.rows(cell, cell.group), arms.plain),
        ("ours", arms.ours(cell), arms.shared),
    ):
        arms.forget()
        run()
        found[name] = [p.grad.clone() for p in model.parameters()]
    assert arms.shared.forward.tally.shared_calls == 1
    for name in ("rows", "ours"):
        for mine, theirs in zip(found[name], found["rectangle"], strict=True):
            torch.testing.assert_close(
                mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())
            )


def test_kept_bytes_count_a_storage_once_and_no_weights() -> None:
    pytest.importorskip("trl")
    from benchmarks.training._arms import saved_bytes

    model = torch.nn.Linear(8, 8, bias=False)
    x = torch.ones(4, 8, requires_grad=True)

    def once() -> None:
        y = model(x)  # keeps x and the weight
        (y * y).sum().backward()  # keeps y, twice

    assert saved_bytes(model, once) == 2 * x.nbytes

    def again() -> None:
        once()
        once()

    assert saved_bytes(model, again) == 2 * x.nbytes


def test_parts_of_a_step_add_up() -> None:
    from benchmarks.training.step import lines, part_ratio

    def step(generation: float, back: float) -> dict[str, float]:
        whole = generation + back + 1
        return {
            "generation": generation,
            "there and back": back,
            "rest": 1.0,
            "step": whole,
            "completion": 7.0,
        }

    kept = {"trl": [step(4, 5), step(4, 5), step(5, 6)], "ours": [step(2, 2)]}
    table = lines({"model": "m"}, kept)
    assert [line["step s"] for line in table] == [10, 5]
    assert [line["times TRL's speed"] for line in table] == [1, 2]
    assert part_ratio(kept, "there and back", "ours") == 2.5
