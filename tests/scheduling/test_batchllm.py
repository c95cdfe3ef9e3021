"""BatchLLM's order, holds and admission by hand; and that it neither loses nor blocks anybody."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword._errors import ParameterError
from foreword.admission import Desk
from foreword.cache import PrefixTree
from foreword.scheduling import BatchLLM, Candidate, find_groups, make_policy
from tests.admission.guests import Visitor
from tests.scheduling.doors import FakeDoor, candidate


def letters(id: int, text: str, **more) -> Candidate:
    return candidate(id, list(map(ord, text)), **more)


def batch(texts: Iterable[str], **more) -> list[Candidate]:
    return [letters(id, text, **more) for id, text in enumerate(texts)]


def policy_of(candidates: Iterable[Candidate], **more) -> BatchLLM:
    policy = BatchLLM(**more)
    for one in candidates:
        policy.add(one)
    return policy


def order_of(candidates: Iterable[Candidate], **more) -> list[int]:
    door = FakeDoor()
    policy_of(candidates, **more).admit(door)
    return door.admitted


def run_alone(policy: BatchLLM, door: FakeDoor) -> None:
    """One request after the other, each gone before the next comes."""
    while len(policy):
        policy.admit(door)
        assert len(door.runners) == 1
        for id in list(door.runners):
            door.leave(id)
            policy.left(id, "finished")


class TestOrder:
    def test_tree_is_depth_first(self) -> None:
        texts = ["ab2", "b", "aa1", "ab1", "aa2", "a"]
        assert order_of(batch(texts), order="tree") == [5, 2, 4, 3, 0, 1]

    def test_ratio_counts_a_prefix_once(self) -> None:
        # Ten requests with 100 tokens in common: 10 * 10 to write per 100 + 10 to read.
        # One of 60: 10 per 60. Counted ten times the prefix would make it 100 per 1010.
        group = [letters(id, "g" * 100 + str(id), max_output=10) for id in range(1, 10)]
        lone = letters(0, "x" * 60, max_output=10)
        assert order_of([lone, *group])[-1] == 0
        assert order_of([lone, *group], order="flat")[-1] == 0

    def test_ratio_puts_much_writing_first(self) -> None:
        texts = ["a" * 50 + "1", "a" * 50 + "2", "b" * 9 + "1", "b" * 9 + "2", "c" * 30]
        # To write per token to read: a 40/52, b 40/11, c 20/30.
        assert order_of(batch(texts, max_output=20)) == [2, 3, 0, 1, 4]
        writers = [*batch(texts[:4], max_output=20), letters(4, texts[4], max_output=999)]
        assert order_of(writers) == [4, 2, 3, 0, 1]

    def test_ratio_holds_at_every_fork_and_keeps_branches_together(self) -> None:
        # Below "ss": x reads 20 + 2 and y reads 2 + 2; z, on its own, lies between the two.
        texts = ["ss" + "x" * 20 + "1", "ss" + "x" * 20 + "2", "ssyy1", "ssyy2", "z" * 9]
        given = batch(texts, max_output=10)
        # ss: 40/28 = 1.4; z: 10/9 = 1.1. Inside: y 20/4, x 20/22.
        assert order_of(given, global_level=False) == [2, 3, 0, 1, 4]
        # Group by group: y 20/6, z 10/9, x 20/24.
        assert order_of(given, global_level=False, order="flat") == [2, 3, 4, 0, 1]

    def test_ratio_sees_what_lies_deep_in_a_branch(self) -> None:
        # "aa" reads 2 + 60 + 3 for 30, z 10 for 10; the 60 are two forks down.
        texts = ["aa" + "b" * 60 + "1", "aa" + "b" * 60 + "2", "aac", "z" * 10]
        assert order_of(batch(texts, max_output=10)) == [3, 2, 0, 1]

    def test_flat_counts_from_the_global_level_on(self) -> None:
        # "s" * 40 is global. x reads 4 + 2 more, the lone y 9: 20/6 and 10/9, z 10/5.
        texts = ["s" * 40 + "xxxx1", "s" * 40 + "xxxx2", "s" * 40 + "y" * 9, "z" * 5]
        assert order_of(batch(texts, max_output=10), order="flat") == [0, 1, 3, 2]
        # Without it x reads 46 and y 49.
        unheld = order_of(batch(texts, max_output=10), order="flat", global_level=False)
        assert unheld == [3, 0, 1, 2]

    def test_flat_keeps_a_tree_without_inner_groups_together(self) -> None:
        # p1 alone would have the best ratio of all, p2 the worst; q lies between p as a whole.
        p1, p2 = letters(0, "pppp1", max_output=50), letters(1, "pppp2", max_output=1)
        q = letters(2, "q", max_output=9)
        assert order_of([p1, q, p2], order="flat") == [2, 0, 1]

    def test_scopes_are_apart(self) -> None:
        one = [letters(id, f"aaaa{id}", scope="x") for id in range(2)]
        two = [letters(id, f"aaaa{id}", scope="y") for id in range(2, 4)]
        mixed = [one[0], two[0], one[1], two[1]]
        door = FakeDoor()
        policy_of(mixed).admit(door)
        assert door.admitted in ([0, 1, 2, 3], [2, 3, 0, 1])
        assert door.computed == 2 * (4 + 2)

    @pytest.mark.parametrize("order", ["ratio", "tree", "flat"])
    def test_twelve_thousand_lone_requests_are_no_trouble(self, order: str) -> None:
        given = [candidate(id, [id, 1]) for id in range(12_000)]
        assert sorted(order_of(given, order=order)) == list(range(12_000))


class TestHolds:
    def test_a_prefix_stays_from_its_first_member_to_the_admission_of_its_last(self) -> None:
        door = FakeDoor(seats=1)
        policy = policy_of(batch(["pppp1", "pppp2", "pppp3"]), global_level=False)
        prefix = list(map(ord, "pppp"))
        for left in (2, 1, 0):
            policy.admit(door)
            (id,) = door.runners
            door.leave(id)
            policy.left(id, "finished")
            door.evict(100)
            assert len(policy) == left
            assert door.held(prefix) == (4 if left else 0)
        assert door.computed == 4 + 3

    def test_outer_groups_stay_with_inner_ones(self) -> None:
        texts = ["ss1", "ss2", "ssdddddd1", "ssdddddd2", "ssdddddd3"]
        door = FakeDoor(seats=1)
        policy = policy_of(batch(texts, max_output=1), order="tree")
        seen = []
        while len(policy):
            policy.admit(door)
            (id,) = door.runners
            door.leave(id)
            policy.left(id, "finished")
            door.evict(100)
            seen.append(door.held(list(map(ord, "ssdddddd"))))
        assert door.admitted == [0, 1, 2, 3, 4]
        assert seen == [2, 2, 8, 8, 0]

    @pytest.mark.parametrize(("order", "left"), [("ratio", 2), ("flat", 0)])
    def test_in_flat_order_a_group_holds_for_itself_alone(self, order: str, left: int) -> None:
        given = batch(["ss1", "ss2", "ssdddddd1", "ssdddddd2"], max_output=1)
        given = [*given[:2], *(letters(2 + k, f"ssdddddd{k}", max_output=99) for k in range(2))]
        door = FakeDoor(seats=1)
        policy = policy_of(given, order=order, global_level=False)
        for _ in range(2):
            policy.admit(door)
            (id,) = door.runners
            door.leave(id)
            policy.left(id, "finished")
        assert door.admitted == [2, 3]
        door.evict(100)
        assert door.held(given[0].path) == left

    def test_taking_back_the_last_member_lets_the_prefix_go(self) -> None:
        door = FakeDoor(seats=1)
        policy = policy_of(batch(["pppp1", "pppp2", "pppp3"]))
        policy.admit(door)
        (first,) = door.runners
        others = {0, 1, 2} - {first}
        door.leave(first)
        policy.left(first, "finished")
        policy.remove(others.pop())
        door.evict(100)
        assert door.held(list(map(ord, "pppp"))) == 4
        policy.remove(others.pop())
        door.evict(100)
        assert door.held(list(map(ord, "pppp"))) == 0
        policy.admit(door)  # nobody is in line

    def test_one_that_was_taken_back_is_not_offered(self) -> None:
        policy = policy_of(batch(["pppp1", "pppp2", "pppp3", "q"]), order="tree")
        door = FakeDoor(seats=1)
        policy.admit(door)
        policy.remove(1)
        door.most_seats = 9
        policy.admit(door)
        assert door.admitted == [0, 2, 3]

    def test_one_that_was_taken_back_may_come_again(self) -> None:
        given = batch(["pppp1", "pppp2", "pppp3", "q"])
        policy = policy_of(given, order="tree")
        door = FakeDoor(seats=1)
        policy.admit(door)
        policy.remove(1)
        policy.add(given[1])
        door.most_seats = 9
        policy.admit(door)
        assert sorted(door.admitted) == [0, 1, 2, 3]

    def test_preemption_means_that_memory_is_out(self) -> None:
        door = FakeDoor(seats=1)
        policy = policy_of(batch(["pppp1", "pppp2"]))
        policy.admit(door)
        (id,) = door.runners
        again = door.leave(id)
        policy.left(id, "preempted")
        door.evict(100)
        assert door.held(again.path) == 0

    @pytest.mark.parametrize("back", [False, True])
    def test_a_held_prefix_gives_way_when_nobody_runs(self, back: bool) -> None:
        # In flat order a stranger's turn comes between two groups while the global prefix of both
        # is held; one that was preempted comes at any time. 30 + 65 tokens are more than there are.
        head = "a" * 30
        inner = [head + "xx1", head + "xx2", head + "y" * 30 + "1", head + "y" * 30 + "2"]
        stranger = letters(9, "b" * 65, max_output=100, preempted=back)
        door = FakeDoor(capacity=80, seats=1)
        policy = policy_of(batch(inner, max_output=10), order="flat")
        if not back:
            policy.add(stranger)
        expected = [0, 9, 1, 2, 3] if back else [0, 1, 9, 2, 3]
        for turn, id in enumerate(expected, 1):
            policy.admit(door)
            assert door.admitted == expected[:turn]
            door.leave(id)
            policy.left(id, "finished")
            if back and turn == 1:
                policy.add(stranger)

    def test_a_prefix_that_stays_is_not_computed_again(self) -> None:
        # A stranger with as many tokens as the cache can spare runs between two members.
        door = FakeDoor(capacity=100, seats=1)
        policy = policy_of([letters(0, "p" * 40 + "1"), letters(1, "p" * 40 + "2")])
        policy.admit(door)
        door.leave(0)
        policy.left(0, "finished")
        door.keep(range(1000, 1060))
        policy.admit(door)
        assert door.computed == 41 + 1


class TestMemory:
    def test_the_watermark_counts_what_all_are_expected_to_write(self) -> None:
        # 100 tokens, of which 90 to plan with; everybody reads 20 and may write 20.
        given = [candidate(id, range(id * 100, id * 100 + 20), max_output=20) for id in range(5)]

        def admitted(share: float, watermark: float) -> int:
            door = FakeDoor(capacity=100)
            policy_of(given, output_estimate=share, watermark=watermark).admit(door)
            return len(door.admitted)

        assert admitted(1.0, 0.9) == 2  # 2 * (20 + 20) <= 90 < 3 * (20 + 20)
        assert admitted(0.5, 0.9) == 3  # 3 * (20 + 10) <= 90
        assert admitted(0.5, 0.89) == 2
        assert admitted(0.1, 0.9) == 4  # 4 * (20 + 2) <= 90
        assert admitted(1.0, 0.01) == 1  # alone, everybody gets in

    def test_what_was_written_is_not_expected_again(self) -> None:
        given = [candidate(id, range(id * 100, id * 100 + 20), max_output=20) for id in range(3)]
        for capacity in (119, 120):  # 3 * (20 + 20) is just enough
            door = FakeDoor(capacity=capacity)
            policy = policy_of(given, output_estimate=1.0, watermark=1.0)
            policy.admit(door)
            assert len(door.admitted) == capacity - 117
            policy = policy_of(given[:2], output_estimate=1.0, watermark=1.0)
            door = FakeDoor(capacity=capacity)
            policy.admit(door)
            for id in (0, 1):
                assert door.write(id, 20)
                policy.produced({id: 20})
            policy.add(given[2])
            policy.admit(door)
            assert len(door.admitted) == capacity - 117

    def test_one_that_came_back_is_expected_to_write_what_it_still_may(self) -> None:
        for capacity, admitted in ((44, 1), (45, 2)):
            door = FakeDoor(capacity=capacity)
            back = candidate(0, range(10), max_output=20, preempted=True)
            other = candidate(1, range(50, 60), max_output=5)
            policy_of([back, other], output_estimate=1.0, watermark=1.0).admit(door)
            assert len(door.admitted) == admitted

    def test_the_share_is_learned(self) -> None:
        class Watched(FakeDoor):
            def offer(self, candidate, *, spare=0):
                self.spare = spare
                return super().offer(candidate, spare=spare)

        door = Watched(seats=1)
        given = [candidate(id, [id, 7], max_output=100) for id in range(4)]
        policy = policy_of(given, output_estimate=1.0, watermark=1.0)
        policy.admit(door)
        assert door.spare == 100
        for id, written, expected in ((0, 20, 60), (1, 30, 50), (2, 10, 40)):
            # (100 beforehand + all written) / (1 + finished)
            policy.produced({id: written})
            door.leave(id)
            policy.left(id, "finished")
            policy.admit(door)
            assert door.spare == expected

    def test_a_group_learns_from_its_own(self) -> None:
        spares = {}

        class Watched(FakeDoor):
            def offer(self, candidate, *, spare=0):
                spares[candidate.id] = spare
                return super().offer(candidate, spare=spare)

        door = Watched(seats=1)
        texts = ["pppp1", "pppp2", "qqqq1", "qqqq2"]
        policy = policy_of(
            batch(texts, max_output=100),
            output_estimate=0.5,
            watermark=1.0,
            order="tree",
            global_level=False,
        )
        policy.admit(door)
        policy.produced({0: 10})
        door.leave(0)
        policy.left(0, "finished")
        policy.admit(door)
        # Over all (50 + 10) / 2 = 30; in the group (30 + 10) / 2 = 20.
        assert spares[1] == 20
        policy.produced({1: 30})
        door.leave(1)
        policy.left(1, "cancelled")  # what it wrote counts, its end does not
        policy.admit(door)
        # Over all (50 + 10 + 30) / 2 = 45; the second group has none of its own.
        assert spares[2] == 45

    def test_whoever_finds_no_room_is_not_overtaken(self) -> None:
        given = [
            candidate(0, range(50), max_output=2),
            candidate(1, range(100, 160), max_output=2),
            candidate(2, [500], max_output=2),
        ]
        door = FakeDoor(capacity=100)
        policy = policy_of(given, order="tree")
        policy.admit(door)
        assert door.admitted == [0]
        assert [id for id, _ in door.offers] == [0, 1]


class TestNewcomers:
    def test_they_are_planned_for_when_they_are_an_eighth(self) -> None:
        door = FakeDoor(seats=1)
        policy = policy_of([candidate(id, [id] * 20) for id in range(16)])
        policy.admit(door)
        policy.add(candidate(99, [99]))  # the best ratio of all
        for id in list(door.runners):
            door.leave(id)
        run_alone(policy, door)
        # 15 planned and 1 new; when 7 planned are left they are 8 together.
        assert door.admitted.index(99) == 9

    def test_they_do_not_come_between_a_group(self) -> None:
        door = FakeDoor(seats=1)
        policy = policy_of(batch([f"pppp{k}" for k in range(4)]), global_level=False)
        policy.admit(door)
        for id in range(10, 14):
            policy.add(candidate(id, [id]))
        for id in list(door.runners):
            door.leave(id)
        run_alone(policy, door)
        assert door.admitted == [0, 1, 2, 3, 10, 11, 12, 13]

    def test_they_join_what_is_still_in_line(self) -> None:
        door = FakeDoor(seats=1)
        policy = policy_of(batch(["x", "pppp1", "pppp2"]), order="tree")
        policy.admit(door)
        assert door.admitted == [1]
        policy.add(letters(3, "x1"))
        policy.add(letters(4, "x2"))
        for id in list(door.runners):
            door.leave(id)
        run_alone(policy, door)
        assert door.admitted == [1, 2, 0, 3, 4]
        assert door.computed == 5 + 1 + 1 + 1 + 1

    def test_the_preempted_come_back_first(self) -> None:
        policy = policy_of(batch(["pppp1", "pppp2"]))
        policy.add(letters(7, "zzz", preempted=True))
        door = FakeDoor()
        policy.admit(door)
        assert door.admitted == [7, 0, 1]


class TestSettings:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("batchllm:method=best", "exact or greedy"),
            ("batchllm:order=random", "ratio, tree or flat"),
            ("batchllm:watermark=0", "watermark is 0"),
            ("batchllm:watermark=1.5", "watermark is 1.5"),
            ("batchllm:watermark=nan", "watermark is nan"),
            ("batchllm:output_estimate=-1", "output_estimate is -1"),
            ("batchllm:global_level=3", "global_level is 3"),
            ("batchllm:levels=3", "no setting 'levels'"),
        ],
    )
    def test_out_of_range(self, text: str, message: str) -> None:
        with pytest.raises(ParameterError, match=message):
            make_policy(text)

    def test_from_text(self) -> None:
        policy = make_policy("batchllm:method=greedy,global_level=false,order=flat,watermark=0.8")
        assert isinstance(policy, BatchLLM)
        assert (policy.method, policy.global_level, policy.order) == ("greedy", False, "flat")
        assert policy.watermark == 0.8


# -- with a real cache ----------------------------------------------------------------------------

ORDERS = st.sampled_from(["ratio", "tree", "flat"])
METHODS = st.sampled_from(["exact", "greedy"])
PATHS = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=4),
    min_size=1,
    max_size=12,
).map(lambda given: [[k for k, count in steps for _ in range(count)] for steps in given])


@settings(deadline=None, max_examples=80)
@given(PATHS, METHODS, st.booleans(), ORDERS)
def test_it_computes_no_more_than_the_plan_says(
    paths: list[list[int]], method: str, shared: bool, order: str
) -> None:
    plan = find_groups([(path, len(path)) for path in paths], method=method, global_level=shared)
    # Room for the longest request and for what may be held beside it.
    tree = PrefixTree(1 + plan.longest + (3 * plan.longest if order == "flat" else 0), 1)
    policy = BatchLLM(method=method, global_level=shared, order=order)
    desk: Desk[Visitor] = Desk(tree, policy, 1)
    for arrival, path in enumerate(paths):
        desk.add(Visitor(arrival, list(path), len(path)))
    computed = 0
    while desk.waiting:
        (guest,) = desk.admit()
        for node in tree.path(guest.lease):
            computed += node.pending
            tree.commit(node, len(node.tokens))
        desk.leave(guest, "finished")
    limit = plan.computed_tokens if order == "flat" else plan.distinct_tokens
    assert computed <= limit <= plan.computed_tokens
    assert tree.stats().leases == 0


@settings(deadline=None, max_examples=120)
@given(
    PATHS,
    METHODS,
    st.booleans(),
    ORDERS,
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
def test_nobody_is_lost_and_nothing_hangs(
    paths: list[list[int]],
    method: str,
    shared: bool,
    order: str,
    seats: int,
    page_size: int,
    seed: int,
) -> None:
    draw = random.Random(seed)
    most = 6
    pages = -(-(max(map(len, paths)) + most) // page_size) + draw.randint(0, 4)
    tree = PrefixTree(1 + pages, page_size)
    policy = BatchLLM(
        method=method, global_level=shared, order=order, watermark=1.0, output_estimate=0.1
    )
    desk: Desk[Visitor] = Desk(tree, policy, seats)
    coming = [
        Visitor(arrival, list(path), len(path), max_output=draw.randint(1, most))
        for arrival, path in enumerate(paths)
    ]
    ends = {guest.arrival: len(guest.tokens) + draw.randint(1, most) for guest in coming}
    done: list[int] = []
    steps = 0
    while coming or desk.waiting or desk.running:
        steps += 1
        assert steps < 2000, "no end in sight"
        for _ in range(draw.randint(0, 3)):
            if coming:
                desk.add(coming.pop(0))
        desk.admit()
        assert desk.running or not desk.waiting
        everybody = [*desk.running, *desk.waiting.values()]
        if everybody and draw.random() < 0.1:
            gone = draw.choice(everybody)
            desk.leave(gone, "cancelled")
            done.append(gone.arrival)
        runners = list(desk.running)
        for guest in runners:
            for node in tree.path(guest.lease):
                tree.commit(node, len(node.tokens))
            guest.tokens.append(1000 + guest.arrival)
            guest.max_output = max(guest.max_output, len(guest.tokens) - guest.prompt_units + 1)
        desk.produced({guest.arrival: 1 for guest in runners})
        for guest in runners:
            if len(guest.tokens) >= ends[guest.arrival]:
                desk.leave(guest, "finished")
                done.append(guest.arrival)
        for guest in runners:
            if guest.lease is not None:
                desk.grow(guest, guest.tokens[-1:])
        tree.check()
    assert sorted(done) == list(range(len(paths)))
    assert len(policy) == 0
    assert tree.stats().leases == 0
