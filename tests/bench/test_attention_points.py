"""PAT's trees and the points made of them, against values worked out by hand. No torch."""

from __future__ import annotations

import pytest

from foreword._errors import ParameterError
from foreword.bench import CONTENDERS, attention_settings
from foreword.bench.attention._points import Heads, Point, points
from foreword.bench.attention._trees import (
    AS_PUBLISHED,
    LEAST_TOKENS,
    PAT_TREES,
    Scale,
    Tree,
    shrink,
)

# number, batch, context, thousands of unique and of total tokens, dedup ratio, MB of unique keys
# and values at 32/32 and at 32/8 heads of 128 in half precision, GFLOP at 32 query heads
STATISTICS = [
    (1, 10, 4512, 8.3, 45.1, 5.5, 135, 34, 0.7),
    (3, 1024, 2080, 34.8, 2129.9, 61.2, 570, 143, 34.9),
    (10, 512, 1440, 20.5, 737.3, 36.0, 336, 84, 12.1),
    (11, 1024, 896, 278.9, 917.5, 3.3, 4570, 1142, 15.0),
    (15, 1024, 576, 46.3, 589.8, 12.7, 759, 190, 9.7),
    (18, 256, 1312, 28.7, 335.9, 11.7, 470, 117, 5.5),
    (20, 256, 4096, 1048.6, 1048.6, 1.0, 17180, 4295, 17.2),
]


@pytest.mark.parametrize("row", STATISTICS, ids=lambda row: f"tree-{row[0]}")
def test_statistics_of_the_published_trees(row: tuple[float, ...]) -> None:
    number, batch, context, unique, total, dedup, wide, grouped, gflop = row
    tree = Tree.parse(PAT_TREES[int(number) - 1])
    assert (tree.batch, tree.context) == (batch, context)
    assert tree.unique_tokens / 1e3 == pytest.approx(unique, abs=0.05)
    assert tree.total_tokens / 1e3 == pytest.approx(total, abs=0.05)
    assert tree.dedup == pytest.approx(dedup, abs=0.05)
    for heads, megabytes in ((Heads(32, 32, 128), wide), (Heads(32, 8, 128), grouped)):
        point = Point("trees", tree, heads, "bfloat16")
        assert point.kv_bytes / 1e6 == pytest.approx(megabytes, abs=0.5)
        assert point.flops / 1e9 == pytest.approx(gflop, abs=0.05)


def test_there_are_twenty_trees_and_they_read_as_written() -> None:
    assert len(PAT_TREES) == 20
    assert [str(Tree.parse(text)) for text in PAT_TREES] == list(PAT_TREES)


def test_every_request_hangs_below_one_node_of_each_level() -> None:
    tree = Tree.parse("2,8,16,256_256,256,32,32")
    for level, count in enumerate(tree.nodes):
        ranges = [tree.requests(level, node) for node in range(count)]
        assert [row for rows in ranges for row in rows] == list(range(tree.batch))
        assert {len(rows) for rows in ranges} == {tree.batch // count}
        if level:
            for node, rows in enumerate(ranges):
                above = tree.requests(level - 1, tree.parent(level, node))
                assert above.start <= rows.start < rows.stop <= above.stop


def test_uneven_levels_lose_no_request() -> None:
    tree = Tree.parse("2,3,7_1,1,1")
    for level, count in enumerate(tree.nodes):
        rows = [row for node in range(count) for row in tree.requests(level, node)]
        assert rows == list(range(7))


def test_a_tree_that_fits_is_left_alone() -> None:
    tree = Tree.parse("1,1024_2048,32")
    assert shrink(tree, tree.total_tokens) == (tree, AS_PUBLISHED)


def test_a_tree_loses_requests_first_and_tokens_then() -> None:
    tree = Tree.parse("1,1024_2048,32")
    assert shrink(tree, tree.total_tokens - 1) == (Tree.parse("1,512_2048,32"), Scale(2, 1))
    assert shrink(tree, 64 * 2080) == (Tree.parse("1,64_2048,32"), Scale(16, 1))
    small, scale = shrink(tree, 64 * 2080 - 1)
    assert (small, scale) == (Tree.parse("1,64_1024,16"), Scale(16, 2))
    assert str(scale) == "1/16 nodes, 1/2 tokens"


def test_shrinking_ends() -> None:
    for text in PAT_TREES:
        small, _ = shrink(Tree.parse(text), 1)
        assert small.batch == 1
        assert max(small.tokens) < 2 * LEAST_TOKENS


@pytest.mark.parametrize("text", ["", "1,2", "1,2_3", "2,1_3,4", "1_0", "a_b", "1_2_3"])
def test_what_is_no_tree_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="tree"):
        Tree.parse(text)


def test_the_default_run_covers_what_it_is_named_after() -> None:
    found = list(points(attention_settings()))
    by_case = {case: [p for p in found if p.case == case] for case in ("trees", "chunk", "sweep")}
    assert len({str(p.published) for p in by_case["trees"]}) == 18  # two of the 20 share nothing
    assert len({p.heads for p in by_case["trees"]}) == 4
    shared = {(p.tree.tokens[0], p.tree.batch) for p in by_case["chunk"] if p.tree.dedup > 1}
    assert shared == {(n, b) for n in (1024, 2048, 4096) for b in (32, 64)}
    assert {p.tree.tokens[0] for p in by_case["sweep"]} == {1024 * 2**i for i in range(5)}
    assert max(p.tree.batch for p in by_case["sweep"]) == 256
    assert any(p.dtype == "float32" and p.heads == (32, 32, 128) for p in by_case["chunk"])
    gpu = points(attention_settings(device="cuda", cases=("sweep",)))
    assert max(p.tree.batch for p in gpu) == 1024


def test_points_that_are_scaled_fit() -> None:
    settings = attention_settings(cases=("trees", "alone"))
    for point in points(settings):
        if point.published:
            assert point.tree.total_tokens * point.token_bytes <= settings.call_bytes


def test_dtypes_hold_for_every_case() -> None:
    found = points(attention_settings(dtypes=("float16",), quick=True))
    assert {point.dtype for point in found} == {"float16"}


def test_names_are_taken_in_any_order_and_unknown_ones_refused() -> None:
    settings = attention_settings(cases=("sweep", "trees"), contenders=("sdpa-each", "torch"))
    assert settings.cases == ("trees", "sweep")
    assert settings.contenders == ("torch", "sdpa-each")
    with pytest.raises(ParameterError, match="case 'forest' is unknown: use some of trees"):
        attention_settings(cases=("forest",))
    with pytest.raises(ParameterError, match=f"unknown: use some of {CONTENDERS[0]}"):
        attention_settings(contenders=("everybody",))
    with pytest.raises(ParameterError, match="no contenders"):
        attention_settings(contenders=())
    with pytest.raises(ParameterError, match="dtype 'int8'"):
        attention_settings(dtypes=("int8",))
    with pytest.raises(ParameterError, match="threads is 0"):
        attention_settings(threads=0)
