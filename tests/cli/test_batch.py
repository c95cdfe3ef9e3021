"""`foreword batch`: bad lines, kills, interrupts and changed inputs; no line lost, none doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from foreword.cli._progress import ProgressDisplay
from foreword.simulation import CostModel
from tests.cli.support import read_records, write_lines

COMPLETION = "/v1/completions"
CHAT = "/v1/chat/completions"


def enveloped(custom_id, body, *, url=COMPLETION, **fields):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **fields}


GOOD = [
    enveloped("a", {"prompt": "The same head, first", "max_tokens": 4, "temperature": 0}),
    enveloped("b", {"prompt": ["The same head, second"], "max_tokens": 4, "n": 2}),
    enveloped("c", {"prompt": [72, 101, 108], "max_tokens": 3, "logprobs": 2, "seed": 5}),
    enveloped("d", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}, url=CHAT),
    {"prompt": "bare", "max_tokens": 3},
    {"prompt": "bare with id", "id": 17},
]
BAD = [
    ("not json", "invalid_json"),
    ("[1, 2]", "invalid_request"),
    ('{"prompt": "half', "invalid_json"),
    ("[" * 100_000, "invalid_json"),
    ({"method": "POST", "url": COMPLETION, "body": {"prompt": "x"}}, "invalid_custom_id"),
    (enveloped(7, {"prompt": "x"}), "invalid_custom_id"),
    (enveloped("a", {"prompt": "x"}), "duplicate_custom_id"),
    (enveloped("e1", {"prompt": "x"}, url="/v1/embeddings"), "invalid_url"),
    (enveloped("e2", "x"), "invalid_request"),
    ({**enveloped("e3", {"prompt": "x"}), "method": "GET"}, "invalid_method"),
    (enveloped("e4", {"prompt": "x"}, max_tokens=3), "invalid_request"),
    (enveloped("e5", {}), "invalid_request"),
    (enveloped("e6", {"prompt": ""}), "invalid_prompt"),
    (enveloped("e7", {"prompt": 5}), "invalid_prompt"),
    (enveloped("e8", {"prompt": ["x", "y"]}), "invalid_prompt"),
    (enveloped("e9", {"prompt": [1, 99999]}), "invalid_prompt"),
    (enveloped("e10", {"prompt": "x" * 600}), "invalid_prompt"),
    (enveloped("e11", {"prompt": "half a pair: \ud800"}), "invalid_text"),
    (enveloped("e12", {"prompt": "x", "temperature": -1}), "invalid_parameter"),
    (enveloped("e13", {"prompt": "x", "max_tokens": 0}), "invalid_parameter"),
    (enveloped("e14", {"prompt": "x", "stream": True}), "invalid_parameter"),
    (enveloped("e15", {"messages": []}, url=CHAT), "invalid_messages"),
    (enveloped("e16", {"messages": [{"role": "user"}]}, url=CHAT), "invalid_messages"),
    ({"prompt": "x", "max_tokenz": 4}, "invalid_parameter"),
]


def test_thirty_lines_with_every_kind_of_bad_one(run, tmp_path, tiny_model_dir):
    lines = [*GOOD[:3], *(line for line, _ in BAD), *GOOD[3:]]
    assert len(lines) == 30
    source = write_lines(tmp_path / "in.jsonl", *lines)
    out = tmp_path / "out.jsonl"
    ran = run("batch", source, "--model", tiny_model_dir, "--out", out, "--json")
    assert ran.code == 1, ran.err
    assert ran.json["failed"] == len(BAD)
    assert ran.json["requests"] == 30
    assert ran.json["out"] == str(out)
    records = {record["line"]: record for record in read_records(out)}
    assert sorted(records) == list(range(1, 31))
    assert len(read_records(out)) == 30
    for number, (line, code) in enumerate(BAD, start=4):
        record = records[number]
        assert record["response"] is None
        assert record["error"]["code"] == code, (line, record)
        assert record["error"]["message"].startswith(f"line {number}: ")
        if isinstance(line, dict) and isinstance(line.get("custom_id"), str):
            assert record["custom_id"] == line["custom_id"]
    for number in (1, 2, 3, 28, 29, 30):
        assert records[number]["error"] is None
        assert records[number]["response"]["status_code"] == 200
    assert [records[n]["custom_id"] for n in (1, 2, 3, 28, 29, 30)] == [*"abcd", None, "17"]


def test_a_batch_is_planned_before_it_runs(run, tmp_path, tiny_model_dir):
    heads = [" ".join([word] * 12) for word in ("once", "upon", "time")]
    asked = [
        f"{heads[i % 3]} {chr(97 + i)}" for i in range(12)
    ]  # neighbours have nothing in common
    source = write_lines(tmp_path / "in.jsonl", *({"prompt": text} for text in asked))
    lines = {}
    for policy in ("batchllm", "fcfs"):
        out = tmp_path / f"{policy}.jsonl"
        ran = run(
            "batch",
            source,
            "--model",
            tiny_model_dir,
            "--out",
            out,
            "--json",
            "--policy",
            policy,
            "--max-batch",
            "1",
            "--kv-memory",
            "100KiB",
        )
        assert ran.code == 0, ran.err
        lines[policy] = ran
    planned, plain = lines["batchllm"], lines["fcfs"]
    plan = planned.json["plan"]
    assert (plan["requests"], plan["groups"]) == (12, 3)
    assert plan["computed_tokens"] < plan["prompt_tokens"] == planned.json["prompt_tokens"]
    assert planned.json["computed_prompt_tokens"] <= plan["computed_tokens"]
    assert "3 groups" in planned.err
    assert plain.json["plan"] is None
    order = [record["line"] for record in read_records(tmp_path / "batchllm.jsonl")]
    assert [{(n - 1) % 3 for n in order[i : i + 4]} for i in (0, 4, 8)] == [
        {(order[i] - 1) % 3} for i in (0, 4, 8)
    ]
    answers = [
        {r["line"]: r["response"]["body"]["choices"] for r in read_records(tmp_path / f"{p}.jsonl")}
        for p in lines
    ]
    assert answers[0] == answers[1]


def test_an_unknown_policy_is_refused_before_the_model_is_read(run, tmp_path, tiny_model_dir):
    source = write_lines(tmp_path / "in.jsonl", *GOOD)
    ran = run("batch", source, "-m", "no/such", "--out", tmp_path / "o.jsonl", "--policy", "best")
    assert ran.code == 2
    assert "no policy 'best'" in ran.err
    assert "batchllm" in ran.err


def test_answers_have_openais_shape(run, tmp_path, tiny_model_dir):
    source = write_lines(tmp_path / "in.jsonl", *GOOD)
    ran = run(
        "batch",
        source,
        "--model",
        tiny_model_dir,
        "--out",
        tmp_path / "out.jsonl",
        "--json",
        "--policy",
        "fcfs",
    )
    assert ran.code == 0, ran.err
    assert ran.json["plan"] is None
    numbers = (
        "requests prompt_tokens computed_prompt_tokens generated_tokens seconds tokens_per_second "
        "kv_bytes_peak kv_bytes_unshared backend failed skipped out"
    )
    assert set(numbers.split()) <= set(ran.json)
    assert ran.json["computed_prompt_tokens"] < ran.json["prompt_tokens"]
    bodies = {
        record["line"]: record["response"]["body"]
        for record in read_records(tmp_path / "out.jsonl")
    }
    first = bodies[1]
    assert first["object"] == "text_completion"
    assert first["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 4,
        "total_tokens": 24,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert first["choices"][0]["finish_reason"] == "length"
    assert [choice["index"] for choice in bodies[2]["choices"]] == [0, 1]
    logprobs = bodies[3]["choices"][0]["logprobs"]
    assert {len(column) for column in logprobs.values()} == {3}
    chat = bodies[4]
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert chat["usage"]["prompt_tokens"] == len("user: Hi\nassistant:")
    assert bodies[6]["usage"]["completion_tokens"] == 16


def long_batch(path, count=24, max_tokens=120):
    """Sampled and greedy requests that take a while, two at a time."""
    lines = [
        enveloped(f"r{i}", {"prompt": f"head {i}", "max_tokens": max_tokens, "temperature": i % 2})
        for i in range(count)
    ]
    return write_lines(path, "broken", *lines)


def texts(out):
    return {
        record["line"]: record["error"] or record["response"]["body"]["choices"][0]["text"]
        for record in read_records(out)
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_model_dir):
    from foreword.cli import main

    folder = tmp_path_factory.mktemp("uninterrupted")
    source = long_batch(folder / "in.jsonl")
    words = ["batch", source, "--model", tiny_model_dir, "--out", folder / "out.jsonl", "--quiet"]
    assert main([str(word) for word in words]) == 1
    return texts(folder / "out.jsonl")


def test_killed_and_taken_up_again(run, tmp_path, tiny_model_dir, uninterrupted):
    source, out = long_batch(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    words = ["batch", source, "--model", tiny_model_dir, "--out", out]
    code = "import sys; from foreword.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words), "--max-batch", "2"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not out.exists() or out.read_bytes().count(b"\n") < 4:
            assert process.poll() is None, "the batch ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = out.read_bytes()
    kept = before.count(b"\n")
    assert 4 <= kept < 25
    with open(out, "ab") as file:  # and the last write was torn
        file.write(b'{"id": "batch_req_99", "custom_id": "r')
    ran = run(*words, "--json")
    assert ran.code == 1, ran.err
    assert ran.json["skipped"] == kept
    assert ran.json["requests"] == 25 - kept
    assert out.read_bytes().startswith(before)
    assert [record["line"] for record in read_records(out)].count(7) == 1
    assert len(read_records(out)) == 25
    assert texts(out) == uninterrupted


def test_interrupted_and_taken_up_again(run, tmp_path, tiny_model_dir, monkeypatch, uninterrupted):
    def interrupt(self, progress):
        if progress.done >= 3:
            signal.raise_signal(signal.SIGINT)

    source, out = long_batch(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    words = ["batch", source, "--model", tiny_model_dir, "--out", out, "--json", "--max-batch", 2]
    with monkeypatch.context() as patch:
        patch.setattr(ProgressDisplay, "update", interrupt)
        ran = run(*words)
    assert ran.code == 130
    assert ran.json["interrupted"] is True
    assert "same command goes on" in ran.err
    kept = len(read_records(out))
    assert 3 <= kept < 25
    assert ran.json["requests"] == kept
    again = run(*words)
    assert again.code == 1
    assert again.json["skipped"] == kept
    assert again.json["interrupted"] is False
    assert texts(out) == uninterrupted
    # A third time there is nothing to do, and no model is loaded to do it.
    nothing = run("batch", source, "--out", out, "--json", "--model", tiny_model_dir)
    assert (nothing.code, nothing.json["skipped"], nothing.json["requests"]) == (1, 25, 0)
    assert "loading" not in nothing.err


def test_what_belongs_to_something_else_is_refused(run, tmp_path, tiny_model_dir):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    words = ["batch", source, "--model", tiny_model_dir, "--out", out, "-q"]
    write_lines(source, {"prompt": "one", "max_tokens": 2})
    assert run(*words).code == 0
    before = out.read_bytes()
    assert "max_tokens" in run(*words, "--max-tokens", 5).err
    assert "model" in run("batch", source, "--model", tmp_path, "--out", out, "-q").err
    write_lines(source, {"prompt": "two", "max_tokens": 2})
    ran = run(*words)
    assert ran.code == 2
    assert "input" in ran.err
    assert "--overwrite" in ran.err
    assert out.read_bytes() == before
    assert run(*words, "--overwrite").code == 0
    assert len(read_records(out)) == 1
    assert out.read_bytes() != before


def test_engine_settings_do_not_change_whose_it_is(run, tmp_path, tiny_model_dir):
    source = write_lines(tmp_path / "in.jsonl", {"prompt": "one", "max_tokens": 2})
    words = ["batch", source, "--model", tiny_model_dir, "--out", tmp_path / "out.jsonl", "-q"]
    assert run(*words).code == 0
    assert run(*words, "--max-batch", 3, "--no-share", "--kv-memory", "1MiB").code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["/nosuch.jsonl", "--out", "{dir}/o"], "/nosuch.jsonl"),
        (["{dir}", "--out", "{dir}/o"], "cannot read"),
        (["{dir}/empty", "--out", "{dir}/o"], "holds no request"),
        (["{dir}/in", "--out", "{dir}/in"], "is the input itself"),
        (["{dir}/in", "--out", "{dir}"], "not a regular file"),
        (["{dir}/in", "--out", "/dev/full"], "not a regular file"),
        (["{dir}/in", "--out", "{dir}/no/such"], "cannot write"),
        (["{dir}/in", "--out", "{dir}/other"], "is missing"),
        (["{dir}/in", "--out", "{dir}/o", "--model", "./nosuch"], "no model directory"),
        (["{dir}/in", "--out", "{dir}/o", "--max-tokens", "0"], "max_tokens"),
        (["{dir}/in", "--out", "{dir}/o", "--temperature", "-2"], "temperature"),
    ],
)
def test_bad_input_is_2(run, tmp_path, words, told):
    (tmp_path / "in").write_text('{"prompt": "x"}\n', encoding="utf-8")
    (tmp_path / "empty").write_text("\n  \n", encoding="utf-8")
    (tmp_path / "other").write_text("mine\n", encoding="utf-8")
    ran = run("batch", *(word.format(dir=tmp_path) for word in words), "-q")
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert told in ran.err
    assert (tmp_path / "in").read_text(encoding="utf-8") == '{"prompt": "x"}\n'
    assert (tmp_path / "other").read_text(encoding="utf-8") == "mine\n"


def test_a_template_speaks_for_the_model(run, tmp_path, tiny_model_dir):
    for file in tiny_model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = (
        "{% for m in messages %}{% if m.role == 'clown' %}{{ raise_exception('no clowns') }}"
        "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}<me>"
    )
    path.write_text(json.dumps(config), encoding="utf-8")

    def chat(role):
        return {"messages": [{"role": role, "content": "Hi"}], "max_tokens": 2}

    source = write_lines(tmp_path / "in.jsonl", chat("user"), chat("clown"))
    ran = run("batch", source, "--model", tmp_path, "--out", tmp_path / "out.jsonl", "-q")
    assert ran.code == 1
    records = {record["line"]: record for record in read_records(tmp_path / "out.jsonl")}
    assert records[1]["response"]["body"]["usage"]["prompt_tokens"] == len("<user>Hi<me>")
    assert "no clowns" in records[2]["error"]["message"]


def test_blendserve_takes_its_costs_from_a_file(run, tmp_path, tiny_model_dir):
    source = write_lines(tmp_path / "in.jsonl", *GOOD)
    costs = tmp_path / "cost.json"
    CostModel(1e-4, 1e-8, 1e-3, 1e-6).save(costs)
    ran = run(
        "batch", source, "-m", tiny_model_dir, "--out", tmp_path / "o.jsonl", "--json",
        "--policy", "blendserve", "--cost", costs,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["requests"] == len(GOOD)
    assert "timing the machine" not in ran.err
    ran = run(
        "batch", source, "-m", tiny_model_dir, "--out", tmp_path / "p.jsonl", "--cost", costs
    )  # fmt: skip
    assert ran.code == 2
    assert "--cost is for --policy blendserve" in ran.err
    costs.write_text("{}")
    ran = run(
        "batch", source, "-m", "no/such", "--out", tmp_path / "p.jsonl",
        "--policy", "blendserve", "--cost", costs,
    )  # fmt: skip
    assert ran.code == 2
    assert "compute_per_token" in ran.err
