"""Running a batch on an engine that only counts: windows, stops, and records of what went wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from foreword._errors import PromptError
from foreword.engine import Output, PrefixStats, Progress, Result
from foreword.scheduling import FirstComeFirstServed
from foreword.serving import (
    BatchDefaults,
    BatchFileError,
    BatchLine,
    ResultFile,
    line_params,
    plain_chat,
    read_lines,
    render_chat,
    run_batch,
)


class FakeEngine:
    """Two seats; an answer takes as many steps as its prompt has letters."""

    def __init__(self):
        self.config = SimpleNamespace(max_batch=2)
        self.policy = FirstComeFirstServed()
        self.requests = []
        self.most = self.steps = self.added = 0

    def reset(self):
        self.steps = 0

    def add(self, ids, params, tenant="", prefix=()):
        if ids == [ord("!")]:
            raise PromptError("no room for it")
        request = SimpleNamespace(id=self.added, left=len(ids), prompt=ids, finished=False)
        error = "not a number" if ids == [ord("?")] else None
        output = Output(0, "ok", (1,), "length")
        request.result = lambda index: Result(index, len(ids), (output,), error)
        self.added += 1
        self.requests.append(request)
        self.most = max(self.most, len(self.requests))
        return request

    @property
    def running(self):
        return min(2, len(self.requests))

    @property
    def waiting(self):
        return len(self.requests) - self.running

    @property
    def has_work(self):
        return bool(self.requests)

    def step(self):
        self.steps += 1
        events = []
        for request in self.requests[:2]:
            request.left -= 1
            request.finished = request.left == 0
            reason = "length" if request.finished else None
            sequence = SimpleNamespace(finish_reason=reason)
            # Two answers of one request that end in the same step tell of it twice.
            events += [SimpleNamespace(request=request, sequence=sequence)] * 2
        self.requests = [request for request in self.requests if not request.finished]
        return events

    def abort_all(self):
        self.requests.clear()

    def progress(self, done, total, seconds, fraction=None):
        return Progress(done, total, 0, 0, self.running, self.waiting, seconds, 0.0, None)

    def stats(self):
        return PrefixStats.of(
            requests=self.added,
            prompt_tokens=0,
            computed_prompt_tokens=0,
            generated_tokens=0,
            kv_bytes_peak=0,
            kv_bytes_unshared=0,
            seconds=1.0,
            time_to_first_token=None,
            steps=self.steps,
            preemptions=0,
            backend="fake",
            decoder="fake",
        )


class FakeLLM:
    tokenizer = None

    def __init__(self):
        self.engine = FakeEngine()
        self.prefixes = {}

    def encode(self, prompt, name="the prompt"):
        if not prompt:
            raise PromptError(f"{name} is empty")
        return [ord(letter) for letter in prompt]


@pytest.fixture
def batch(tmp_path):
    """`batch(prompts, ...)`: the report, the records by line, and the engine."""

    def call(prompts, **options):
        source = tmp_path / "in.jsonl"
        source.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
        llm = options.pop("llm", None) or FakeLLM()
        with ResultFile(tmp_path / "out", {}) as out:
            report = run_batch(
                llm, read_lines(source), out, total=len(prompts), model="m", **options
            )
        records = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
        return report, {record["line"]: record for record in records}, llm.engine

    return call


def test_a_long_file_is_never_all_in_line(batch):
    report, records, engine = batch(["abc"] * 500)
    assert len(records) == 500
    assert engine.most == 4
    assert (report.requests, report.failed, report.interrupted) == (500, 0, False)
    assert engine.steps == 250 * 3  # no seat was empty


def test_what_fails_gets_a_record_and_the_others_run(batch):
    report, records, _ = batch(["a", "", "!", "?", "b"])
    assert report.failed == 3
    codes = {line: record["error"] and record["error"]["code"] for line, record in records.items()}
    assert codes == {
        1: None,
        2: "invalid_prompt",
        3: "invalid_prompt",
        4: "engine_error",
        5: None,
    }


def test_stopping_keeps_what_is_done(batch):
    answers = iter([False] * 9)
    report, records, engine = batch(["abc"] * 20, should_stop=lambda: next(answers, True))
    assert report.interrupted
    assert len(records) == report.requests == 6
    assert not engine.has_work
    report, records, _ = batch(["abc"] * 20)
    assert (report.skipped, report.requests, len(records)) == (6, 14, 20)


def test_a_stop_at_the_very_end_is_none(batch):
    report, _, _ = batch(["a"], should_stop=lambda: True)
    assert not report.interrupted


def test_a_full_disk_frees_the_engine(batch, monkeypatch):
    def full(self, record):
        raise BatchFileError("no room")

    monkeypatch.setattr(ResultFile, "write", full)
    llm = FakeLLM()
    with pytest.raises(BatchFileError):
        batch(["a", "bcd", "e"], llm=llm)
    assert not llm.engine.has_work


def test_progress_counts_what_earlier_runs_did(batch):
    batch(["a"] * 6, should_stop=lambda: True)
    seen = []
    batch(["a"] * 6, on_progress=lambda progress: seen.append((progress.done, progress.total)))
    assert seen == [(4, 6), (6, 6)]


def line(number=1, *, bare=False, **body):
    return BatchLine(number, None, "completion", "x", body, bare)


def test_defaults_hold_where_a_line_is_silent():
    assert line_params(line(), BatchDefaults()).temperature == 1.0
    assert line_params(line(bare=True), BatchDefaults()).greedy
    assert line_params(line(), BatchDefaults(temperature=0.5)).temperature == 0.5
    assert line_params(line(temperature=0), BatchDefaults(temperature=0.5)).greedy
    assert line_params(line(), BatchDefaults(max_tokens=9)).max_tokens == 9
    assert line_params(line(max_tokens=2), BatchDefaults(max_tokens=9)).max_tokens == 2


def test_every_line_has_a_seed_of_its_own_and_keeps_it():
    seeds = [line_params(line(n), BatchDefaults(seed=s)).seed for n in (1, 2, 3) for s in (0, 1)]
    assert len(set(seeds)) == 6
    assert line_params(line(1), BatchDefaults()).seed == seeds[0]
    assert line_params(line(seed=4), BatchDefaults()).seed == 4


def test_chats_without_a_template():
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert plain_chat(messages) == "system: Be kind.\nuser: Hi\nassistant:"
    assert render_chat(None, messages) == plain_chat(messages)


def test_a_planned_batch_tells_its_progress_by_work(tmp_path):
    from foreword.engine import LLM

    llm = LLM("nano", policy="batchllm", max_batch=4)
    body = {"temperature": 0.0, "ignore_eos": True}
    prompts = [
        "Once upon a time there was a " + word for word in ("cat", "dog", "hen", "fox", "ox")
    ]
    limits = [20, 2, 2, 2, 2]
    lines = [
        BatchLine(i + 1, None, "completion", text, {**body, "max_tokens": n}, True)
        for i, (text, n) in enumerate(zip(prompts, limits, strict=True))
    ]
    plans, seen = [], []
    with ResultFile(tmp_path / "out.jsonl", {}) as out:
        report = run_batch(
            llm,
            iter(lines),
            out,
            total=5,
            model="nano",
            on_plan=plans.append,
            on_progress=seen.append,
        )
    assert report.plan is plans[0]
    assert len(plans) == 1
    assert seen[-1].fraction == 1
    assert all(0 < progress.fraction <= 1 for progress in seen)
    assert all(progress.fraction < 1 for progress in seen if progress.done < 5)
    first = seen[0]
    total = plans[0].computed_tokens + sum(limits)  # until an answer is there, limits are the guess
    done = first.computed_prompt_tokens + first.generated_tokens
    assert first.fraction == pytest.approx(done / total)
