"""The rules of Prefix-RFT against tables worked out by hand, and what demonstrations may be."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foreword._errors import ParameterError
from foreword.training._demonstrations import Demonstrations
from foreword.training._prefix_rft_plan import Beginning, continued, plan
from foreword.training._prefix_rft_rules import (
    baseline_advantages,
    draw,
    lower_bound,
    prefix_length,
    top_entropy,
)

NAN = math.nan


def bound(step: int, schedule: str = "cosine") -> float:
    return lower_bound(step, start=0.95, end=0.05, steps=500, schedule=schedule)


def test_the_lower_bound_falls_along_half_a_cosine_and_stays() -> None:
    quarter = 0.05 + 0.9 * (1 + math.sqrt(0.5)) / 2
    told = [bound(step) for step in (0, 125, 250, 500, 501, 10_000)]
    assert told == pytest.approx([0.95, quarter, 0.5, 0.05, 0.05, 0.05])


def test_a_uniform_schedule_has_the_last_bound_from_the_beginning() -> None:
    assert {bound(step, "uniform") for step in (0, 250, 9999)} == {0.05}


def test_shares_fill_the_interval_and_depend_on_every_argument() -> None:
    shares = [draw(7, step, 0, row, 0.25, 0.75) for step in range(40) for row in range(50)]
    assert 0.25 <= min(shares) < 0.27
    assert 0.73 < max(shares) <= 0.75
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.02)
    base = (7, 3, 0, 5)
    others = [(8, 3, 0, 5), (7, 4, 0, 5), (7, 3, 1, 5), (7, 3, 0, 6)]
    assert len({draw(*key, 0.0, 1.0) for key in [base, *others, base]}) == 5


@pytest.mark.parametrize(
    ("share", "tokens", "limit", "length"),
    [(0.5, 9, 8, 4), (0.01, 9, 8, 1), (1.0, 9, 8, 8), (0.95, 20, 12, 12), (0.95, 20, 19, 19)],
)
def test_a_prefix_has_a_token_at_least_and_the_limit_at_most(
    share: float, tokens: int, limit: int, length: int
) -> None:
    assert prefix_length(share, tokens, limit) == length


def test_advantages_against_the_rows_without_a_prefix() -> None:
    """Two groups of four. In the second two rows have a prefix, and one reward is missing."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 2.0, NAN, 1.0, 0.5])
    hybrid = torch.tensor([False, False, False, True, False, False, True, True])
    continuation, prefix = baseline_advantages(rewards, hybrid, 4, 2)
    third = 1 / 3
    expected = [1 - third, -third, -third, 1.0, 0.0, 0.0, 1.0, 0.5]
    assert continuation.tolist() == pytest.approx(expected)
    told = prefix[hybrid].tolist()
    assert told == pytest.approx([(1 - third) / 2, (1 - 2) / 2, (0.5 - 2) / 2])


def test_a_group_without_a_prefix_has_its_own_mean() -> None:
    continuation, _ = baseline_advantages(torch.tensor([1.0, 3.0]), torch.zeros(2).bool(), 2, 1)
    assert continuation.tolist() == [-1.0, 1.0]


def test_the_highest_entropies_are_kept_over_all_rows_together() -> None:
    entropy = torch.tensor([[9.0, 1.0, 2.0, 8.0], [7.0, 3.0, 9.5, 0.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    keep, threshold = top_entropy(entropy, mask, 0.4)  # 5 tokens, 3 of them not kept
    assert keep.nonzero().tolist() == [[0, 0], [1, 0]]
    assert threshold == 7.0


def test_between_equal_entropies_the_earlier_is_kept() -> None:
    keep, _ = top_entropy(torch.ones(2, 3), torch.ones(2, 3).bool(), 0.5)
    assert keep.tolist() == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize(
    ("share", "tokens", "kept"), [(0.2, 10, 2), (0.2, 4, 1), (0.9, 10, 9), (0.3, 10, 3), (1, 7, 7)]
)
def test_the_number_kept_is_exact(share: float, tokens: int, kept: int) -> None:
    entropy = torch.rand(1, tokens)
    keep, _ = top_entropy(entropy, torch.ones(1, tokens).bool(), share)
    assert int(keep.sum()) == kept


def test_no_prefix_token_has_no_threshold() -> None:
    keep, threshold = top_entropy(torch.rand(2, 3), torch.zeros(2, 3).bool(), 0.2)
    assert not keep.any()
    assert threshold is None


def settings(**changed: Any) -> Any:
    base = {
        "prefix_rollouts": 1,
        "prefix_low_start": 0.5,
        "prefix_low_end": 0.5,
        "prefix_decay_steps": 10,
        "prefix_high": 0.5,
        "prefix_schedule": "cosine",
        "demonstration_loss": 0.0,
        "num_generations": 4,
        "seed": 3,
    }
    return SimpleNamespace(**{**base, **changed})


ROWS = [{"prompt": "p", "demonstration": [1, 2, 3, 4, 5, 6]}] * 4 + [
    {"prompt": "q", "demonstration": None}
] * 4


def planned(rows: Any, tokenizer: Any, first: int = 0, **changed: Any) -> list[Beginning]:
    read = Demonstrations(tokenizer, longest=100)
    return plan(rows, read, settings(**changed), step=0, generation=0, first=first)


def test_the_last_rows_of_each_group_with_a_demonstration_are_hybrid(tokenizer: Any) -> None:
    rows = planned(ROWS, tokenizer, prefix_rollouts=2, demonstration_loss=1.0)
    assert [row.prefix for row in rows] == [(), (), (1, 2, 3), (1, 2, 3), (), (), (), ()]
    assert [row.share for row in rows if row.prefix] == [0.5, 0.5]
    whole = [row.demonstration for row in rows]
    assert whole == [(1, 2, 3, 4, 5, 6), *[()] * 7]


def test_groups_cut_by_processes_are_planned_as_whole_ones(tokenizer: Any) -> None:
    changed = {"prefix_low_start": 0.1, "prefix_low_end": 0.1, "prefix_high": 1.0}
    rows = [{"prompt": "p", "demonstration": list(range(1, 60))}] * 8
    whole = planned(rows, tokenizer, **changed)
    parts = [planned(rows[i : i + 2], tokenizer, first=i, **changed) for i in (0, 2, 4, 6)]
    prefixes = [row.prefix for part in parts for row in part]
    assert prefixes == [row.prefix for row in whole]
    assert [i for i, prefix in enumerate(prefixes) if prefix] == [3, 7]
    assert prefixes[3] != prefixes[7]


def test_what_is_kept_is_never_handed_out_and_is_reported(tokenizer: Any) -> None:
    read = Demonstrations(tokenizer, keep=4, longest=100)
    [*_, last] = plan(ROWS[:4], read, settings(), step=0, generation=0, first=0)
    assert (last.prefix, last.capped) == ((1, 2), 1.0)


def test_completions_start_with_their_prefix_and_keep_to_the_limit() -> None:
    def generate(prompts: list[list[int]]) -> Any:
        assert prompts == [[1, 2], [1, 2, 8, 9]]
        return [[3, 4], [5, 6, 7]], [[-0.1, -0.2], [-0.3, -0.4, -0.5]]

    rows = [Beginning(), Beginning((8, 9))]
    whole, logps = continued(generate, [[1, 2], [1, 2]], rows, 4)
    assert whole == [[3, 4], [8, 9, 5, 6]]
    assert logps == [[-0.1, -0.2], [None, None, -0.3, -0.4]]


def test_a_text_ends_and_ids_stay_as_they_are(tokenizer: Any) -> None:
    read = Demonstrations(tokenizer, longest=100)
    text = read.read(" a small house")
    assert text is not None
    assert tokenizer.decode(text.ids[:-1]) == " a small house"
    assert text.ids[-1] == tokenizer.eos_token_id
    assert text.limit == len(text.ids) - 1
    ids = read.read([5, 6, 7])
    assert ids is not None
    assert (ids.ids, ids.limit) == ((5, 6, 7), 2)
    assert read.read(None) is None
    twice = read.read(f" a small house{tokenizer.eos_token}")
    assert twice == text


def test_nothing_is_handed_out_from_the_named_text_on(tokenizer: Any) -> None:
    text = " one and two #### then three.\n#### 3"
    shown = Demonstrations(tokenizer, stop_at="####", longest=100).read(text)
    assert shown is not None
    given = tokenizer.decode(shown.ids[: shown.limit])
    assert text.startswith(given)
    assert " one and two #### then three." in given
    assert len(given) <= text.rindex("####")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("", "is empty"),
        ([], "is empty"),
        ([1], "nothing of"),
        ([1, 2, 3], "nothing of"),
        (list(range(1, 12)), "max_completion_length=10"),
        ([1, -2, 3, 4, 5], "-2"),
        ([1, "x", 3, 4, 5], "'x'"),
        ([1, 10**9, 3, 4, 5], "1000000000"),
    ],
)
def test_a_demonstration_that_cannot_be_used_is_named(
    tokenizer: Any, value: Any, told: str
) -> None:
    datasets = pytest.importorskip("datasets")
    read = Demonstrations(tokenizer, keep=3, longest=10)
    with pytest.raises(ParameterError, match=told):
        read.read(value)
    if not (isinstance(value, list) and "x" in value):  # a column has one type
        fine: Any = " and then he was happy" if isinstance(value, str) else [1, 2, 3, 4]
        data = datasets.Dataset.from_list([{"demonstration": d} for d in (fine, None, value)])
        with pytest.raises(ParameterError, match="row 2 of train_dataset"):
            read.check(data)


def test_a_named_text_has_to_be_there(tokenizer: Any) -> None:
    read = Demonstrations(tokenizer, stop_at="####", longest=50)
    with pytest.raises(ParameterError, match="prefix_stop_at"):
        read.read(" no such text")
    with pytest.raises(ParameterError, match="nothing of"):
        read.read("#### 7")


def test_a_tokenizer_without_an_end_takes_ids_only(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    read = Demonstrations(tokenizer, longest=50)
    assert read.read([1, 2]) is not None
    with pytest.raises(ParameterError, match="end-of-sequence"):
        read.read(" some text")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prefix_rollouts": 4}, "prefix_rollouts is 4"),
        ({"prefix_rollouts": -1}, "prefix_rollouts is -1"),
        ({"prefix_low_end": 0.96}, "prefix_low_end"),
        ({"prefix_high": 0.9}, "prefix_high"),
        ({"prefix_high": 1.1}, "prefix_high"),
        ({"prefix_low_end": float("nan")}, "prefix_low_end"),
        ({"prefix_decay_steps": 0}, "prefix_decay_steps is 0"),
        ({"prefix_schedule": "linear"}, "cosine, uniform"),
        ({"prefix_keep": -1}, "prefix_keep is -1"),
        ({"prefix_stop_at": ""}, "prefix_stop_at is empty"),
        ({"prefix_update": "some"}, "entropy, all, none"),
        ({"prefix_entropy_share": 0.0}, "prefix_update='none'"),
        ({"prefix_advantage": "mean"}, "group, prefix_baseline"),
        ({"prefix_advantage": "prefix_baseline", "scale_rewards": "group"}, "scale_rewards"),
        ({"demonstration_loss": -1.0}, "demonstration_loss is -1"),
        ({"demonstration_loss": float("nan")}, "demonstration_loss is nan"),
        ({"use_vllm": True, "vllm_mode": "server"}, "server mode"),
        ({"max_completion_length": None}, "max_completion_length is None"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    trainer_settings: dict[str, Any], changed: Any, told: str
) -> None:
    pytest.importorskip("trl")
    from foreword.training import PrefixRFTConfig

    base = {**trainer_settings, "num_generations": 4}
    with pytest.raises(ParameterError, match=told):
        PrefixRFTConfig(**{**base, **changed})
