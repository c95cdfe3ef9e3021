"""A makespan that no schedule can beat: each side of the machine has that much to do."""

from __future__ import annotations

from foreword.simulation._cost import CostModel
from foreword.simulation._trace import Trace, distinct_blocks
from foreword.simulation._worker import WorkerConfig


def optimum_seconds(trace: Trace, cost: CostModel, config: WorkerConfig, workers: int = 1) -> float:
    """A lower bound for the makespan of a batch, all requests being there at the start.

    Steps can be as good as this and no better: each shared prefix is computed once, the batch is
    always full, and compute and memory are balanced in every step, so that what can overlap does:

        (steps * overhead + combine(all computing, all reading)) / workers

    This is BlendServe's practical optimum (arXiv 2411.16102, section 2.1: the larger of
    `(1 - s) T_comp` and `T_mem` where overlap is whole) with what it leaves out: weights are read
    in every step, and with `shared_reads` a shared prefix is read once for all who run together.
    The last is at best once per step of its longest reader, or of all its readers, seats full.
    Where one request alone takes longer, with all its prompt cached, that is the bound.

    Costs O(all blocks).
    """
    requests = trace.requests
    writes = [request.output - 1 for request in requests]  # the first comes with the prompt
    rows = sum(writes)
    pairs = sum(
        _attended(request.tokens + 1, more) for request, more in zip(requests, writes, strict=True)
    )
    kv_tokens = pairs  # a decode row reads what it attends to
    for block in distinct_blocks(requests, trace.unit):
        rows += block.tokens
        pairs += _attended(block.start + 1, block.tokens)
        kv_tokens += block.tokens
        if config.shared_reads and len(block.readers) > 1:
            each = [writes[reader] for reader in block.readers]
            together = max(max(each), -(-sum(each) // config.seats))
            kv_tokens -= (sum(each) - together) * block.tokens
    steps = max(
        trace.largest_output,
        -(-trace.output_tokens // config.seats),
        -(-rows // config.step_tokens),
    )
    crowd = _seconds(cost, steps, rows, pairs, kv_tokens) / workers
    alone = 0.0
    for request in requests:
        attended = _attended(request.tokens, request.output)
        own = _seconds(cost, request.output, request.output, attended, attended)
        alone = max(alone, own)
    return max(crowd, alone)


def _attended(first: int, rows: int) -> int:
    """Keys that consecutive rows attend to: `first`, `first + 1`, and so on."""
    return (2 * first + rows - 1) * rows // 2


def _seconds(cost: CostModel, steps: int, rows: int, pairs: int, kv_tokens: int) -> float:
    """The least time in which so many steps can do so much."""
    both = cost.combine(cost.compute(rows, pairs), cost.memory(kv_tokens, steps))
    return steps * cost.overhead + both
