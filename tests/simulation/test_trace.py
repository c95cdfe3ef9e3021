"""Traces, what they share, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foreword._errors import ParameterError
from foreword.simulation import Trace, TraceError, TraceRequest, read_trace
from tests.simulation.support import ask, trace

SMALL = trace(
    ask(1.0, (0, 1), 6, 3, "a"), ask(0.0, (0, 2), 8, 2, "b"), ask(1.0, (0, 1, 3), 9, 1, "a"), unit=4
)


def test_counts_by_hand() -> None:
    assert [request.arrival for request in SMALL.requests] == [0, 1, 1]
    assert [request.tokens for request in SMALL.requests] == [8, 6, 9]
    assert (SMALL.prompt_tokens, SMALL.output_tokens, SMALL.largest_output) == (23, 6, 3)
    # Blocks: 0 and 2 of the first, two tokens of 1, one of 3. Who begins a block makes its length.
    assert SMALL.distinct_tokens == 8 + 2 + 1
    assert SMALL.ideal_hit_rate == 1 - 11 / 23
    assert SMALL.tenants == ("b", "a")
    assert len(SMALL) == 3


def test_the_same_ids_under_other_parents_are_other_blocks() -> None:
    assert trace(ask(0, (1, 2), 2, 1), ask(0, (3, 2), 2, 1)).distinct_tokens == 4


def test_other_traces_of_it() -> None:
    assert [r.arrival for r in SMALL.as_batch().requests] == [0, 0, 0]
    assert SMALL.as_batch().requests[1].tokens == 6
    assert len(SMALL.head(2)) == 2
    assert len(SMALL.head(20)) == 3
    assert [r.arrival for r in SMALL.at_rate(2).requests] == [0, 0.5, 0.5]
    many = trace(*(ask(float(i), (i,), 1, 1) for i in range(50)))
    dealt = many.shuffled(3)
    assert [r.arrival for r in dealt.requests] == list(range(50))
    paths = [r.path for r in dealt.requests]
    assert sorted(paths) == [r.path for r in many.requests] != paths
    assert dealt == many.shuffled(3) != many.shuffled(4)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask(-1.0, (0,), 1, 1), "request 0: it arrives at -1.0 s"),
        (ask(float("nan"), (0,), 1, 1), "arrives at nan"),
        (ask(0, (0,), 0, 1), "prompt of 0 tokens"),
        (ask(0, (0,), 1, 0), "answer of 0 tokens"),
        (ask(0, (0, 1), 1, 1), "2 block ids for 1 tokens, which are 1 blocks of 4"),
        (ask(0, (-3,), 1, 1), "block id -3"),
        (ask(0, (0,), 1, 5, max_output=4), "writes 5 tokens and may write 4"),
    ],
)
def test_impossible_requests(request_: TraceRequest, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(request_, unit=4)


def test_impossible_traces() -> None:
    with pytest.raises(TraceError, match="no requests"):
        trace()
    with pytest.raises(TraceError, match="block of 0 tokens"):
        trace(ask(0, (0,), 1, 1), unit=0)
    with pytest.raises(ParameterError, match="first 0 requests"):
        SMALL.head(0)
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ParameterError, match="rate"):
            SMALL.at_rate(factor)


# Reading

MOONCAKE = {"timestamp": 1500, "input_length": 700, "output_length": 3, "hash_ids": [7, 9]}
VTC = {"req_id": 0, "adapter_dir": "lora-5", "prompt_len": 20, "output_len": 4, "req_time": 0.25}
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:04.0319600,40,8
2023-11-16 18:17:03.9799600,17,10
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: Any) -> Path:
        path = tmp_path / "trace.jsonl"
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
        return path

    return write


def test_block_hashes(written: Callable[..., Path]) -> None:
    read = read_trace(written(MOONCAKE, "", MOONCAKE | {"tenant": "x", "timestamp": 2000}))
    assert (read.name, read.unit) == ("trace", 512)
    assert read.requests == (
        TraceRequest(1.5, (7, 9), 700, 3),
        TraceRequest(2.0, (7, 9), 700, 3, "x"),
    )
    assert read_trace(written(MOONCAKE), unit=400).unit == 400


def test_lengths_with_tenants(written: Callable[..., Path]) -> None:
    read = read_trace(written(VTC, VTC))
    assert read.unit == 16
    assert read.requests[0] == TraceRequest(0.25, (0, 1), 20, 4, "lora-5")
    assert read.requests[1].path == (2, 3)
    assert read.ideal_hit_rate == 0


def test_lengths_with_dates(written: Callable[..., Path]) -> None:
    read = read_trace(written(AZURE), unit=10)
    assert read.requests == (
        TraceRequest(0.0, (4, 5), 17, 10),
        TraceRequest(0.052, (0, 1, 2, 3), 40, 8),
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{k: v for k, v in MOONCAKE.items() if k != "output_length"}],
         r"line 1: no field 'output_length' \(there is timestamp, input_length, hash_ids\)"),
        ([MOONCAKE, MOONCAKE | {"timestamp": -5}], "line 2: it arrives at -0.005 s"),
        ([MOONCAKE | {"timestamp": "soon"}], "line 1: timestamp is 'soon', and must be a number"),
        ([MOONCAKE | {"hash_ids": [7]}], "line 1: 1 block ids for 700 tokens, which are 2 blocks"),
        ([MOONCAKE | {"hash_ids": [7, 9, 11]}], "3 block ids for 700"),
        ([MOONCAKE | {"hash_ids": "79"}], "hash_ids is '79', and must be a list"),
        ([MOONCAKE | {"hash_ids": [1, True]}], "must be a list of whole numbers"),
        ([MOONCAKE | {"output_length": 0}], "output_length is 0, and must be a whole number"),
        ([MOONCAKE | {"input_length": 700.5}], "input_length is 700.5"),
        ([VTC | {"prompt_len": -3}], "prompt_len is -3"),
        ([VTC | {"req_time": None}], "no field 'req_time'"),
        ([MOONCAKE, "{"], "line 2 is not JSON"),
        (["[1, 2]"], "the first line is of no known format"),
        ([MOONCAKE, "[1, 2]"], "line 2 is no JSON object"),
        ([{"a": 1}], "no field 'hash_ids'"),
        ([], "the first line is of no known format"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens"], "has no requests"),
        (["TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,5"], "line 2: no field 'GeneratedTokens'"),
        ([AZURE.replace("40", "many")], "line 2: ContextTokens is 'many'"),
        ([AZURE.replace("2023", "then")], "line 2: TIMESTAMP is 'then-11"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(written: Callable[..., Path], lines: list[Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read_trace(written(*lines))


def test_no_such_file_or_format(tmp_path: Path, written: Callable[..., Path]) -> None:
    with pytest.raises(TraceError, match="cannot read trace"):
        read_trace(tmp_path / "none")
    with pytest.raises(ParameterError, match="no trace format 'vllm'"):
        read_trace(written(MOONCAKE), format="vllm")
    with pytest.raises(ParameterError, match="block of 0 tokens"):
        read_trace(written(MOONCAKE), unit=0)
    with pytest.raises(TraceError, match="no field 'prompt_len'"):
        read_trace(written(MOONCAKE), format="vtc")


def test_the_published_traces(data: Path) -> None:
    conversation = read_trace(data / "traces" / "mooncake_conversation.jsonl")
    assert (len(conversation), conversation.unit) == (12_031, 512)
    assert round(conversation.ideal_hit_rate, 3) == 0.374
    clients = read_trace(data / "traces" / "vtc_lmsys_27clients.jsonl")
    assert (len(clients), len(clients.tenants)) == (1500, 27)
    code = read_trace(data / "traces" / "azure2023_code.csv")
    assert (len(code), code.requests[0].arrival) == (8819, 0)
    assert round(code.prompt_tokens / len(code), 1) == 2047.8


def test_a_trace_can_be_made_by_hand() -> None:
    made = Trace("mine", 4, (TraceRequest(0.0, (1, 2), 5, 2),))
    assert made.requests[0].max_output is None
