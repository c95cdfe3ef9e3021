"""How large the cases of an engine benchmark are, and which peers take part where."""

from __future__ import annotations

from dataclasses import dataclass

PEERS = ("transformers", "transformers-cb", "vllm", "openvino", "llamacpp")
"""Other engines that can be measured beside ours, each in a process of its own."""

SLOW_PEERS = ("transformers", "transformers-cb")
"""Those that write `peer_tokens` tokens where the others write all."""


@dataclass(frozen=True)
class SweepPoint:
    """`requests` behind `prefix` shared tokens with `suffix` of their own, and who takes part."""

    requests: int
    prefix: int
    suffix: int
    peers: tuple[str, ...] = ("vllm",)


@dataclass(frozen=True)
class Sizes:
    """How large the cases are.

    Attributes:
        prefix, requests, suffix, new_tokens: the sharers: `requests` prompts of `prefix` common and
            `suffix` own tokens, each answered by `new_tokens`.
        sharers_peers: the peers measured there. transformers-cb is not among them at full size,
            where one run takes it minutes.
        unshared_prefix, unshared_requests: the smaller case in which our own engine also runs
            without sharing (the full one would need `requests` prefills of the whole prefix).
        peer_tokens: new tokens of `SLOW_PEERS`.
        peer_budget: seconds of one repeat of a peer; a peer that took more is measured no second
            time at that point.
        peer_limit: seconds of one run of a peer; one that takes more is ended and left out.
        sweep: the points around the sharers, which are part of the sweep themselves.
        sweep_tokens, sweep_repeats: new tokens and repeats at each; cold runs are done once.
        curve: lengths of the shared prefix, ascending.
        curve_tokens: decode steps at each of them.
        alone: pairs of (requests, prompt length) that have nothing in common.
        alone_tokens: their new tokens.
        alone_peers: the peers measured there.
        repeats: how often everything else is measured.
    """

    prefix: int = 4096
    requests: int = 64
    suffix: int = 32
    new_tokens: int = 64
    sharers_peers: tuple[str, ...] = ("transformers", "vllm", "openvino", "llamacpp")
    unshared_prefix: int = 1024
    unshared_requests: int = 8
    peer_tokens: int = 8
    peer_budget: float = 75.0
    peer_limit: float = 300.0
    sweep: tuple[SweepPoint, ...] = (
        SweepPoint(8, 1024, 32, PEERS),
        SweepPoint(64, 1024, 32, ("vllm", "openvino", "llamacpp")),
        SweepPoint(1, 4096, 32),
        SweepPoint(8, 4096, 32, ("vllm", "openvino")),
        SweepPoint(32, 4096, 32),
        SweepPoint(32, 4096, 256),
        SweepPoint(64, 16384, 32),
    )
    sweep_tokens: int = 16
    sweep_repeats: int = 2
    curve: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    curve_tokens: int = 16
    alone: tuple[tuple[int, int], ...] = ((8, 512), (64, 128))
    alone_tokens: int = 32
    alone_peers: tuple[str, ...] = ("vllm",)
    repeats: int = 3

    @property
    def extent(self) -> Extent:
        """What the largest of all cases with peers asks of an engine."""
        points = [(self.requests, self.prefix, self.suffix, self.new_tokens)]
        points += [(p.requests, p.prefix, p.suffix, self.sweep_tokens) for p in self.sweep]
        points += [(r, 0, prompt, self.alone_new_tokens(r, prompt)) for r, prompt in self.alone]
        return Extent(
            max_requests=max(requests for requests, *_ in points),
            max_prompt=max(prefix + suffix for _, prefix, suffix, _ in points),
            max_tokens=max(tokens for *_, tokens in points),
            kv_tokens=max(prefix + r * (suffix + tokens) for r, prefix, suffix, tokens in points),
        )

    def alone_new_tokens(self, requests: int, prompt: int) -> int:
        """`alone_tokens` and as many as the first requests write before the last have begun."""
        return self.alone_tokens + requests * prompt // 2048


@dataclass(frozen=True)
class Extent:
    """The most that is asked of an engine: requests and tokens of a request at one time, and
    tokens whose keys and values it holds, what is shared counted once."""

    max_requests: int
    max_prompt: int
    max_tokens: int
    kv_tokens: int


FULL = Sizes()
QUICK = Sizes(
    new_tokens=16,
    unshared_prefix=512,
    peer_tokens=4,
    peer_limit=120.0,
    sweep=(SweepPoint(8, 1024, 32, PEERS), SweepPoint(64, 1024, 32)),
    sweep_tokens=8,
    sweep_repeats=1,
    curve=(1024, 2048, 4096),
    curve_tokens=8,
    alone=((8, 128),),
    alone_tokens=16,
    repeats=1,
)
SMALL = Sizes(
    sharers_peers=PEERS,
    prefix=128,
    requests=8,
    suffix=8,
    new_tokens=8,
    unshared_prefix=32,
    unshared_requests=4,
    peer_tokens=4,
    sweep=(SweepPoint(2, 64, 8, PEERS), SweepPoint(4, 64, 16)),
    sweep_tokens=6,
    sweep_repeats=2,
    curve=(64, 128),
    curve_tokens=6,
    alone=((4, 24),),
    alone_tokens=8,
    repeats=2,
)
