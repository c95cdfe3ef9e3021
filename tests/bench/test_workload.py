"""Prompts with a known amount in common, and the count that the engine's own is held against."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreword.bench._workload import FIRST_TOKEN, TokenSource, distinct_tokens


def trie_nodes(texts: list[list[int]]) -> int:
    """The same count, the slow and obvious way: all distinct non-empty prefixes."""
    return len({tuple(text[:i]) for text in texts for i in range(1, len(text) + 1)})


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=8))
def test_distinct_tokens_are_the_nodes_of_the_trie(texts: list[list[int]]) -> None:
    assert distinct_tokens(texts) == trie_nodes(texts)


def test_nothing_is_distinct_in_nothing() -> None:
    assert distinct_tokens([]) == 0
    assert distinct_tokens([[], []]) == 0


def test_prompts_share_their_prefix_and_repeat_with_the_seed() -> None:
    def make(seed: int) -> list[list[int]]:
        source = TokenSource(50, seed)
        return source.behind(source.tokens(10), requests=3, suffix=4)

    prompts = make(1)
    assert [len(prompt) for prompt in prompts] == [14, 14, 14]
    assert len({tuple(prompt[:10]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert all(FIRST_TOKEN <= token < 50 for prompt in prompts for token in prompt)
    assert make(1) == prompts
    assert make(2) != prompts
