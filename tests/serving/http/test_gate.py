"""The gate: bounds that hold at every moment, waits that are true, places that come back."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from foreword.serving.http import ApiError, Caller, Limits, ServerConfig
from foreword.serving.http.guard._gate import Gate, Ticket
from foreword.serving.http.guard._window import MinuteWindow


class Clock:
    def __init__(self) -> None:
        self.now = 1000.25

    def __call__(self) -> float:
        return self.now


def gate_of(
    seats: int = 2,
    waiting: int = 3,
    tokens: int = 1000,
    *,
    shared: bool = False,
    clock: Clock | None = None,
) -> Gate:
    config = ServerConfig(max_waiting=waiting, max_waiting_tokens=tokens)
    weights = {"one": 1.0, "other": 1.0} if shared else None
    return Gate(config, seats, weights=weights, clock=clock or Clock())


def caller(tenant: str = "alice", **limits: int) -> Caller:
    return Caller(tenant, limits=Limits(**limits))


def enter(gate: Gate, who: Caller | None = None, answers: int = 1, tokens: int = 10) -> Ticket:
    return gate.enter(who or caller(), answers=answers, prompt_tokens=tokens)


def refused(gate: Gate, who: Caller | None = None, answers: int = 1, tokens: int = 10) -> ApiError:
    with pytest.raises(ApiError) as caught:
        enter(gate, who, answers, tokens)
    return caught.value


def fill(gate: Gate, who: Caller, tokens: int = 10) -> list[Ticket]:
    """All the places a tenant can get."""
    tickets: list[Ticket] = []
    while True:
        try:
            tickets.append(enter(gate, who, tokens=tokens))
        except ApiError as error:
            if error.status != 503:
                raise
            return tickets


def wait_of(error: ApiError) -> float:
    """What an error tells to wait, in seconds; the header in whole seconds is never less."""
    exact = int(error.headers["retry-after-ms"]) / 1000
    assert exact <= int(error.headers["Retry-After"]) < exact + 1
    return exact


# -- the line --------------------------------------------------------------------------------------


def test_the_line_holds_what_has_no_seat_and_no_more() -> None:
    gate = gate_of(seats=2, waiting=3)
    tickets = [enter(gate) for _ in range(5)]
    error = refused(gate)
    assert (error.status, error.code) == (503, "queue_full")
    assert wait_of(error) > 0
    with pytest.raises(ApiError, match="no room in its line of 3"):
        gate.check(caller())
    tickets[0].close()
    gate.check(caller())
    enter(gate)
    assert gate.answers == gate.waiting == 5


def test_the_line_holds_only_so_many_prompt_tokens() -> None:
    gate = gate_of(tokens=100)
    first = enter(gate, tokens=60)
    enter(gate, tokens=40)
    assert refused(gate, tokens=1).status == 503
    first.started(1, 60)
    assert gate.waiting_tokens == 40
    enter(gate, tokens=60)


def test_a_ticket_gives_back_just_what_it_has() -> None:
    gate = gate_of(waiting=20)
    other = enter(gate, caller("bob"), answers=2, tokens=7)
    ticket = enter(gate, answers=5, tokens=50)
    ticket.started(2, 20)
    assert (gate.answers, gate.waiting, gate.waiting_tokens) == (7, 5, 37)
    ticket.ended(1)
    assert (gate.answers, gate.waiting, gate.waiting_tokens) == (6, 5, 37)
    ticket.ended(9)  # only one runs
    assert gate.load() == {"bob": (2, 0), "alice": (3, 0)}
    ticket.close()
    for late in (ticket.close, lambda: ticket.started(1, 1), lambda: ticket.ended(1)):
        late()
        assert (gate.answers, gate.waiting, gate.waiting_tokens) == (2, 2, 7)
    other.close()
    assert (gate.answers, gate.waiting, gate.waiting_tokens, gate.load()) == (0, 0, 0, {})


@pytest.mark.parametrize(
    ("who", "answers", "tokens", "limit"),
    [
        (caller(), 6, 10, "the line has 5"),
        (caller(), 1, 1001, "room for 1000"),
        (caller(concurrent=2), 3, 10, "at one time is 2"),
        (caller(tokens_per_minute=20), 1, 21, "minute has 20"),
    ],
)
def test_what_can_never_be_let_in_is_told_not_to_come_back(
    who: Caller, answers: int, tokens: int, limit: str
) -> None:
    gate = gate_of()
    error = refused(gate, who, answers, tokens)
    assert (error.status, error.code) == (400, "request_too_large")
    assert error.headers == {"x-should-retry": "false"}
    assert limit in str(error)
    # One less is let in.
    gate.enter(who, answers=answers - (tokens == 10), prompt_tokens=tokens - (tokens != 10))


def test_the_wait_for_a_place_is_what_places_take_to_become_free() -> None:
    clock = Clock()
    gate = gate_of(seats=2, waiting=2, clock=clock)
    assert wait_of(_full(gate)) == 5  # nothing is known yet
    gate = gate_of(seats=2, waiting=2, clock=clock)
    for _ in range(8):  # an answer each half second
        ticket = enter(gate)
        clock.now += 0.5
        ticket.close()
    slow = wait_of(_full(gate))
    assert 0.3 < slow < 0.7
    gate = gate_of(seats=2, waiting=2, clock=clock)
    ticket = enter(gate)
    ticket.close()
    clock.now += 59
    enter(gate).close()
    assert 25 < wait_of(_full(gate)) < 60
    assert wait_of(refused(gate, answers=3)) == 60  # at that pace it would be longer
    clock.now += 200  # long ago
    assert wait_of(refused(gate)) == 5


def _full(gate: Gate) -> ApiError:
    for _ in range(4):
        enter(gate)
    return refused(gate)


# -- one tenant's limits ---------------------------------------------------------------------------


def test_a_tenant_has_only_so_many_answers_at_one_time() -> None:
    gate, who = gate_of(waiting=20), caller(concurrent=3)
    ticket = enter(gate, who, answers=2)
    enter(gate, who)
    error = refused(gate, who)
    assert (error.status, error.code) == (429, "concurrency_limit")
    assert 0 < wait_of(error) <= 60
    enter(gate, caller("bob", concurrent=3), answers=3)
    ticket.started(2, 10)
    assert refused(gate, who).status == 429
    ticket.ended(1)
    enter(gate, who)
    assert refused(gate, who).status == 429


@pytest.mark.parametrize(
    ("limit", "code"),
    [("requests_per_minute", "requests_per_minute"), ("tokens_per_minute", "tokens_per_minute")],
)
def test_the_wait_for_a_minutes_limit_is_true(limit: str, code: str) -> None:
    clock = Clock()
    gate = gate_of(waiting=50, clock=clock)
    who = caller(**{limit: 4})
    for _ in range(4):
        enter(gate, who, tokens=1).close()
        clock.now += 7.3
    error = refused(gate, who, tokens=1)
    assert (error.status, error.code) == (429, code)
    wait = wait_of(error)
    enter(gate, caller("bob", **{limit: 4}), tokens=1)  # another tenant has its own
    clock.now += wait - 0.002
    assert refused(gate, who, tokens=1).status == 429
    clock.now += 0.002
    enter(gate, who, tokens=1)
    assert refused(gate, who, tokens=1).status == 429


def test_what_was_written_counts_and_is_paid_for_later() -> None:
    clock = Clock()
    gate, who = gate_of(clock=clock), caller(tokens_per_minute=100)
    ticket = enter(gate, who, tokens=40)
    ticket.wrote(100)  # what was let in is written to its end
    with pytest.raises(ApiError, match="used 140 tokens within a minute, its limit is 100"):
        gate.check(who)
    clock.now += 30
    ticket.wrote(30)
    clock.now += 31  # 30 are left of the first minute
    enter(gate, who, tokens=70)
    assert refused(gate, who, tokens=1).status == 429


def test_what_is_refused_uses_nothing_up() -> None:
    clock = Clock()
    gate = gate_of(seats=1, waiting=0, clock=clock)
    who = caller(requests_per_minute=2, tokens_per_minute=100)
    ticket = enter(gate, who)
    for _ in range(5):
        assert refused(gate, who).status == 503
        with pytest.raises(ApiError):
            gate.check(who)
    ticket.close()
    enter(gate, who, tokens=90)


def test_a_tenant_that_has_nothing_here_any_more_is_forgotten() -> None:
    clock = Clock()
    gate = gate_of(waiting=10, clock=clock)
    for i in range(1000):
        enter(gate, caller(f"t{i}", requests_per_minute=5)).close()
    clock.now += 62
    kept = enter(gate, caller("kept", requests_per_minute=1))
    assert set(gate._accounts) == {"kept"}
    clock.now += 62
    enter(gate, caller("other")).close()
    assert "kept" in gate._accounts
    kept.close()
    clock.now += 62
    enter(gate, caller("other"))
    assert set(gate._accounts) == {"other"}


# -- the line among several tenants ----------------------------------------------------------------


@pytest.mark.parametrize("waiting", [1, 2, 8, 9, 100])
@pytest.mark.parametrize("seats", [1, 7])
def test_one_tenant_never_fills_the_line_of_many(seats: int, waiting: int) -> None:
    gate = gate_of(seats=seats, waiting=waiting, tokens=10**9, shared=True)
    fill(gate, caller("hog"))
    if waiting > 1:
        assert gate.answers >= seats + waiting * 8 // 9 - 1
        for _ in range(max(1, waiting // 9)):
            enter(gate, caller("bob"))
    assert gate.answers <= seats + waiting


def test_a_full_line_is_shared_by_weight():
    """Who asks all the time holds as much of the line as its weight says, whoever came first."""
    config = ServerConfig(max_waiting=90, max_waiting_tokens=10**9)
    weights = {"light": 1.0, "heavy": 3.0, "narrow": 1.0}
    gate = Gate(config, 1, weights=weights, clock=Clock())
    gate.enter(Caller("narrow"), answers=1, prompt_tokens=1)  # takes the seat
    tickets: dict[str, list[Any]] = {"light": [], "heavy": []}
    for turn in range(2000):
        for tenant, held in tickets.items():
            with contextlib.suppress(ApiError):
                held.append(gate.enter(Caller(tenant), answers=1, prompt_tokens=1))
        leaver = tickets[("light", "heavy")[turn % 2]]
        if turn % 7 == 0 and leaver:
            leaver.pop(0).close()
    heavy, light = len(tickets["heavy"]), len(tickets["light"])
    assert 2.5 * light <= heavy <= 3.5 * light
    assert heavy + light > 80
    gate.enter(Caller("narrow"), answers=1, prompt_tokens=1)  # still finds a place


def test_a_place_that_becomes_free_goes_to_whoever_has_less() -> None:
    gate = gate_of(seats=1, waiting=45, tokens=10**9, shared=True)
    hogs = fill(gate, caller("hog"))
    for _ in range(12):  # the hog is always the first to ask
        hogs.pop().close()
        hogs += fill(gate, caller("hog"))
        enter(gate, caller("bob"))
    assert gate.load()["bob"].waiting >= 12


def test_prompt_tokens_in_line_are_shared_alike() -> None:
    gate = gate_of(seats=1, waiting=1000, tokens=900, shared=True)
    assert fill(gate, caller("hog"), tokens=10)
    enter(gate, caller("bob"), tokens=100)


def test_a_request_too_large_for_its_part_of_an_empty_line_is_told_so() -> None:
    gate = gate_of(seats=2, waiting=18, tokens=90, shared=True)
    assert refused(gate, answers=2 + 17).status == 400
    enter(gate, answers=2 + 16).close()
    assert refused(gate, tokens=81).status == 400
    enter(gate, tokens=80)


# -- everything at once ----------------------------------------------------------------------------

LIMITS = {
    "": Limits(),
    "free": Limits(),
    "few": Limits(concurrent=3),
    "slow": Limits(requests_per_minute=4),
    "short": Limits(tokens_per_minute=60),
    "all": Limits(concurrent=2, requests_per_minute=5, tokens_per_minute=90),
}


class GateMachine(RuleBasedStateMachine):
    """The gate against a list of what happened, which nobody forgets anything of."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.open: list[dict[str, Any]] = []
        self.log: deque[tuple[float, str, int, int]] = deque()  # when, who, requests, tokens
        self.began = False

    @precondition(lambda self: not self.began)
    @rule(
        shared=st.booleans(),
        seats=st.integers(1, 4),
        waiting=st.integers(0, 12),
        tokens=st.integers(1, 120),
    )
    def begin(self, shared: bool, seats: int, waiting: int, tokens: int) -> None:
        self.began = True
        self.seats, self.most, self.most_tokens = seats, waiting, tokens
        self.gate = gate_of(seats, waiting, tokens, shared=shared, clock=self.clock)

    def used(self, tenant: str) -> tuple[int, int]:
        """Requests and tokens of the last 60 seconds, exactly."""
        recent = [e for e in self.log if e[1] == tenant and e[0] > self.clock.now - 60]
        return sum(e[2] for e in recent), sum(e[3] for e in recent)

    @precondition(lambda self: self.began)
    @rule(
        tenant=st.sampled_from(sorted(LIMITS)),
        prompts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 30)), min_size=1, max_size=3),
    )
    def enter(self, tenant: str, prompts: list[tuple[int, int]]) -> None:
        who = Caller(tenant, limits=LIMITS[tenant])
        answers, tokens = sum(p[0] for p in prompts), sum(p[1] for p in prompts)
        before = self.counts()
        try:
            ticket = self.gate.enter(who, answers=answers, prompt_tokens=tokens)
        except ApiError as error:
            assert self.counts() == before
            self.come_back_later(who, tokens, error)
            return
        self.log.append((self.clock.now, tenant, 1, tokens))
        self.open.append(
            {"tenant": tenant, "ticket": ticket, "waits": list(prompts), "runs": []},
        )
        limits = who.limits
        requests, spent = self.used(tenant)
        assert limits.requests_per_minute is None or requests <= limits.requests_per_minute
        assert limits.tokens_per_minute is None or spent <= limits.tokens_per_minute

    def come_back_later(self, who: Caller, tokens: int, error: ApiError) -> None:
        """A wait for a minute's limit is long enough: after it, that limit is not in the way."""
        if error.status == 400:
            return
        wait = wait_of(error)
        assert 0 < wait <= 61
        if error.status == 429 and error.code != "concurrency_limit":
            self.clock.now += wait
            assert self.why_not(who, tokens) != error.code

    def why_not(self, who: Caller, tokens: int) -> str | None:
        """Which limit of its own keeps a tenant out now."""
        try:
            self.gate._check_tenant(who, self.gate._accounts[who.tenant], 0, tokens, self.clock.now)
        except ApiError as error:
            return error.code
        return None

    @precondition(lambda self: any(job["waits"] for job in self.open))
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([job for job in self.open if job["waits"]]))
        answers, tokens = job["waits"].pop()
        job["ticket"].started(answers, tokens)
        job["runs"] += [1] * answers

    @precondition(lambda self: any(job["runs"] for job in self.open))
    @rule(data=st.data(), tokens=st.integers(0, 40))
    def write(self, data: st.DataObject, tokens: int) -> None:
        job = data.draw(st.sampled_from([job for job in self.open if job["runs"]]))
        job["ticket"].wrote(tokens)
        self.log.append((self.clock.now, job["tenant"], 0, tokens))

    @precondition(lambda self: any(job["runs"] for job in self.open))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([job for job in self.open if job["runs"]]))
        job["runs"].pop()
        job["ticket"].ended(1)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), twice=st.booleans())
    def close(self, data: st.DataObject, twice: bool) -> None:
        job = data.draw(st.sampled_from(self.open))
        self.open.remove(job)
        job["ticket"].close()
        if twice:
            job["ticket"].close()

    @rule(seconds=st.sampled_from([0.001, 0.5, 1, 7.7, 30, 59.5, 61, 200]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.now += seconds

    def counts(self) -> tuple[int, int, int]:
        return self.gate.answers, self.gate.waiting, self.gate.waiting_tokens

    @precondition(lambda self: self.began)
    @invariant()
    def the_counts_are_those_of_the_tickets(self) -> None:
        waits = [prompt for job in self.open for prompt in job["waits"]]
        running = sum(len(job["runs"]) for job in self.open)
        waiting = sum(answers for answers, _ in waits)
        assert self.counts() == (waiting + running, waiting, sum(tokens for _, tokens in waits))
        load = self.gate.load()
        for tenant in LIMITS:
            jobs = [job for job in self.open if job["tenant"] == tenant]
            waiting = sum(answers for job in jobs for answers, _ in job["waits"])
            running = sum(len(job["runs"]) for job in jobs)
            assert load.get(tenant, (0, 0)) == (waiting, running)
            most = LIMITS[tenant].concurrent
            assert most is None or waiting + running <= most

    @precondition(lambda self: self.began)
    @invariant()
    def the_line_is_no_longer_than_it_may_be(self) -> None:
        assert self.gate.answers <= self.seats + self.most
        assert self.gate.waiting_tokens <= self.most_tokens

    def teardown(self) -> None:
        if self.began:
            for job in self.open:
                job["ticket"].close()
            assert self.counts() == (0, 0, 0)
            assert self.gate.load() == {}


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# -- the window ------------------------------------------------------------------------------------


def test_a_window_is_bounded_whatever_is_added() -> None:
    window = MinuteWindow()
    for i in range(100_000):
        window.add(i / 100, 1)
    assert len(window._sums) <= 61
    assert 6000 <= window.total(1000) <= 6100
    assert 95 < window.rate(1000) < 105


def test_a_window_says_when_there_will_be_room() -> None:
    window = MinuteWindow()
    window.add(10.5, 3)
    window.add(20.9, 2)
    assert window.wait(30, 0) == 0
    assert window.wait(30, 3) == 41
    assert window.wait(30, 4) == 51
    assert window.wait(30, 6) == float("inf")
    assert (window.total(70.99), window.total(71), window.total(81)) == (5, 2, 0)
    assert window.rate(81) == 0
