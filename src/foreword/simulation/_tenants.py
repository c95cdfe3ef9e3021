"""Clients that do not exist: seeded workloads of many tenants, for experiments on fairness.

The shapes and mean lengths are those of the evaluation in arXiv 2501.14312: trees of thought,
judges, questions about long documents, conversations, and the two ways to misbehave, which are to
send more requests and to send longer prefixes. What the paper leaves open is a setting here, and
each class says what it assumes.

Nobody waits for an answer before asking on: what follows in a program is sent a fixed time later,
and a request that repeats an earlier answer shares it with others who repeat it, not with the
worker that wrote it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from foreword._errors import ParameterError
from foreword.simulation._trace import Trace, TraceRequest

Part = tuple[Hashable, int]
"""A piece of text: what it is, and its tokens. Equal pieces are equal text."""


class Ask(NamedTuple):
    """One request: seconds after its program's start, its text, the tokens of its answer."""

    delay: float
    parts: tuple[Part, ...]
    output: int


@dataclass(frozen=True, kw_only=True)
class Client(ABC):
    """A tenant that starts programs, each of them a few requests with text in common.

    Attributes:
        tenant: its name.
        programs: how many it starts.
        rate: programs started per second, on average.
        start: seconds before the first may start.
        burst: variance of the time between two starts over its squared mean (gamma arrivals):
            1 is a Poisson process, less is steadier, more comes in bursts.
        spread: lengths are drawn evenly from their mean times 1 - spread to 1 + spread.

    Raises:
        ParameterError: a count, length or rate out of its range.
    """

    tenant: str
    programs: int
    rate: float
    start: float = 0.0
    burst: float = 1.0
    spread: float = 0.25

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "tenant":
                continue
            low = value < 0 if name in ("start", "spread", "pause") else value <= 0
            if low or value == float("inf") or value != value:
                raise ParameterError(f"{type(self).__name__} {self.tenant!r}: {name} is {value}")
        if self.spread >= 1:
            raise ParameterError(f"spread is {self.spread}: it must be below 1")

    @abstractmethod
    def program(self, number: int, random: Random) -> Iterator[Ask]:
        """The requests of one program. `number` tells its text from that of others."""

    def with_more_requests(self, factor: int = 4) -> Client:
        """The same client misbehaving: `factor` times as many programs, that much more often."""
        return replace(self, rate=self.rate * factor, programs=self.programs * factor)

    def _tokens(self, mean: float, random: Random) -> int:
        return max(1, round(mean * random.uniform(1 - self.spread, 1 + self.spread)))


@dataclass(frozen=True, kw_only=True)
class TreesOfThought(Client):
    """A question, thoughts about it, thoughts about these: every node of the tree is a request.

    A node's prompt is the question and the thoughts above it, so siblings ask the same. The paper
    gives 546 prompt and 256 output tokens on average; here 546 are the question with its examples,
    and a thought is as long as the answer that it was.

    Attributes:
        branches: thoughts after each.
        height: levels of thoughts; 2 branches make 30 requests, 4 make 340.
        pause: seconds between two levels.
    """

    branches: int = 2
    height: int = 4
    question: int = 546
    thought: int = 256
    pause: float = 10.0

    def program(self, number: int, random: Random) -> Iterator[Ask]:
        level: list[tuple[Part, ...]] = [
            (((self.tenant, number, "question"), self._tokens(self.question, random)),)
        ]
        for depth in range(self.height):
            below: list[tuple[Part, ...]] = []
            for parent in level:
                for _ in range(self.branches):
                    name = (self.tenant, number, depth, len(below))
                    output = self._tokens(self.thought, random)
                    yield Ask(depth * self.pause, parent, output)
                    below.append((*parent, (name, output)))
            level = below

    def with_more_requests(self, factor: int = 2) -> TreesOfThought:
        """Misbehaving by more requests: `factor` times as many branches."""
        return replace(self, branches=self.branches * factor)

    def with_longer_prefixes(self, factor: int = 10) -> TreesOfThought:
        """Misbehaving by longer prefixes: questions `factor` times as long."""
        return replace(self, question=self.question * factor)


@dataclass(frozen=True, kw_only=True)
class Judge(Client):
    """A text judged in several dimensions, all asked at once.

    Attributes:
        dimensions: requests per text.
        article: tokens of the text and what stands before it; 2701 in the paper.
        criterion: tokens that say what to judge, an assumption.
        verdict: tokens of an answer.
    """

    dimensions: int = 2
    article: int = 2701
    criterion: int = 64
    verdict: int = 256

    def program(self, number: int, random: Random) -> Iterator[Ask]:
        article = ((self.tenant, number), self._tokens(self.article, random))
        for dimension in range(self.dimensions):
            criterion = ((self.tenant, number, dimension), self._tokens(self.criterion, random))
            yield Ask(0.0, (article, criterion), self._tokens(self.verdict, random))

    def with_more_requests(self, factor: int = 8) -> Judge:
        """Misbehaving by more requests: 16 dimensions instead of 2."""
        return replace(self, dimensions=self.dimensions * factor)

    def with_longer_prefixes(self, tokens: int = 600) -> Judge:
        """Misbehaving by longer prefixes: 600 tokens more before each criterion."""
        return replace(self, article=self.article + tokens)


@dataclass(frozen=True, kw_only=True)
class DocumentQuestions(Client):
    """A long document and several questions about it.

    Attributes:
        questions: requests per document, an assumption.
        document: tokens of a document; 21449 in the paper.
        question: tokens of a question, an assumption.
        answer: tokens of an answer; 15 in the paper.
        pause: seconds between two questions.
    """

    questions: int = 5
    document: int = 21_449
    question: int = 32
    answer: int = 15
    pause: float = 1.0

    def program(self, number: int, random: Random) -> Iterator[Ask]:
        document = ((self.tenant, number), self._tokens(self.document, random))
        for asked in range(self.questions):
            question = ((self.tenant, number, asked), self._tokens(self.question, random))
            yield Ask(asked * self.pause, (document, question), self._tokens(self.answer, random))

    def with_longer_prefixes(self, factor: int = 2) -> DocumentQuestions:
        """Misbehaving by longer prefixes: documents twice as long."""
        return replace(self, document=self.document * factor)


@dataclass(frozen=True, kw_only=True)
class Conversations(Client):
    """Turn after turn, each with all that was said before.

    Attributes:
        turns: requests per conversation, an assumption.
        message: tokens that a turn adds; 56 in the paper.
        answer: tokens of an answer; 142 in the paper.
        pause: seconds between two turns.
    """

    turns: int = 5
    message: int = 56
    answer: int = 142
    pause: float = 20.0

    def program(self, number: int, random: Random) -> Iterator[Ask]:
        said: tuple[Part, ...] = ()
        for turn in range(self.turns):
            message = ((self.tenant, number, turn), self._tokens(self.message, random))
            answer = self._tokens(self.answer, random)
            yield Ask(turn * self.pause, (*said, message), answer)
            said = (*said, message, ((self.tenant, number, turn, "answer"), answer))


@dataclass(frozen=True, kw_only=True)
class SharedPrompt(Client):
    """The same long prompt before every request, however many there are.

    Attributes:
        prompt: tokens that all have in common.
        question: tokens of a request's own.
        answer: tokens of an answer.
    """

    prompt: int = 4000
    question: int = 32
    answer: int = 64

    def program(self, number: int, random: Random) -> Iterator[Ask]:
        own = ((self.tenant, number), self._tokens(self.question, random))
        prompt = ((self.tenant, "prompt"), self.prompt)
        yield Ask(0.0, (prompt, own), self._tokens(self.answer, random))


def synthesize(name: str, clients: Sequence[Client], *, unit: int = 16, seed: int = 0) -> Trace:
    """One trace of what all these clients send. Equal arguments give equal traces.

    What a client sends does not depend on who else is there.

    Args:
        unit: tokens in a block. Texts are compared block by block, so a shared prefix ends with
            the last block that lies in it as a whole.

    Raises:
        ParameterError: two clients of one name.
    """
    if len({client.tenant for client in clients}) < len(clients):
        raise ParameterError("two clients of one name: their texts and arrivals would be the same")
    blocks: dict[Hashable, int] = {}
    requests = []
    for client in clients:
        random = Random(f"{seed}/{client.tenant}")
        now = client.start
        for number in range(client.programs):
            now += random.gammavariate(1 / client.burst, client.burst / client.rate)
            for ask in client.program(number, random):
                tokens = sum(length for _, length in ask.parts)
                path = tuple(_path(ask.parts, unit, blocks))
                arrival = now + ask.delay
                requests.append(TraceRequest(arrival, path, tokens, ask.output, client.tenant))
    requests.sort(key=lambda request: request.arrival)
    return Trace(name, unit, tuple(requests))


def _path(parts: Sequence[Part], unit: int, blocks: dict[Hashable, int]) -> Iterator[int]:
    """Ids of the text's blocks: a block is what stands in it, and all that stands before it."""
    above = -1
    inside: list[tuple[Hashable, int, int]] = []
    free = unit
    for what, length in parts:
        start = 0
        while start < length:
            end = min(length, start + free)
            inside.append((what, start, end))
            free -= end - start
            start = end
            if not free:
                above = blocks.setdefault((above, tuple(inside)), len(blocks))
                yield above
                inside.clear()
                free = unit
    if inside:
        yield blocks.setdefault((above, tuple(inside)), len(blocks))
