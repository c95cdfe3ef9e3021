"""The additions that training is tried on: what is written, what is read, what is held apart."""

from __future__ import annotations

import random

import pytest

from experiments._arithmetic import (
    ALPHABET,
    END,
    PAD,
    Problem,
    any_of,
    distinct,
    given,
    ids,
    right,
    room,
    share,
    text,
)


def test_a_solution_adds_the_columns_from_the_right_with_their_carries() -> None:
    problem = Problem(4, 47, 385)
    assert problem.prompt == "0047+0385="
    assert problem.solution == "75=12;48=13;03=04;00=00;#0432"
    assert Problem(2, 99, 1).solution == "91=10;90=10;#100"


def test_every_solution_says_the_answer_and_fits_its_room() -> None:
    for digits in (1, 2, 3, 4):
        for problem in distinct(random.Random(digits), digits, 40, set()):
            assert given(problem.solution) == problem.a + problem.b
            assert len(problem.solution + END) <= room(digits)


@pytest.mark.parametrize("written", ["", "12", "#", "#1#2", "#12;", "12=03;#-4", "#1 2"])
def test_what_is_no_answer_is_none(written: str) -> None:
    assert given(written) is None


def test_the_reward_is_for_the_right_answer_alone() -> None:
    assert right(["", "", ""], ["#012\n", "12\n", "1;#13"], answer=[12, 12, 12]) == [1.0, 0.0, 0.0]


def test_problems_drawn_with_the_same_memory_are_never_alike() -> None:
    taken: set[Problem] = set()
    one, other = (distinct(random.Random(0), 2, 300, taken) for _ in range(2))
    assert len({frozenset((each.a, each.b)) for each in (*one, *other)}) == 600


def test_the_tokenizer_has_a_token_for_each_character_and_no_more() -> None:
    pytest.importorskip("transformers")
    from experiments._arithmetic import tokenizer

    made = tokenizer()
    said = Problem(3, 47, 385).text
    assert tuple(made(said)["input_ids"]) == ids(said)
    assert text(ids(said)) == said
    assert made.decode(ids("47=1;#"), skip_special_tokens=True) == "47=1;#"
    assert (made.pad_token_id, made.eos_token_id, len(made)) == (
        ALPHABET.index(PAD),
        ALPHABET.index(END),
        len(ALPHABET),
    )


def test_shares_are_over_answers_and_over_problems() -> None:
    verdicts = [[True, False], [False, False], [True, True], [False, True]]
    assert (share(verdicts), any_of(verdicts)) == (0.5, 0.75)
