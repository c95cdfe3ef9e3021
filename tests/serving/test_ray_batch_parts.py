"""The parts of the batch job that need no Ray: cutting shards, answering them, writing records."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword._errors import ParameterError
from foreword.engine import SamplingParams
from foreword.serving import BatchFileError, BatchLine, parse_line
from foreword.serving.ray import MissingRay, RayBatchError, _batch_job, plan_shards, run_ray_batch
from foreword.serving.ray._batch_worker import BatchWorker, pack

SMALL = {"kv_memory": "16MiB", "max_batch": 4, "max_step_tokens": 256}


def line(number, prompt, **body):
    return parse_line(json.dumps({"prompt": prompt, **body}), number)


def heads(groups, each, *, length=40, tail=40):
    """Each prompt a head of `length` tokens and a tail of its own, in no order."""
    prompts = [
        f"{g:04d}" + f"h{g} ".ljust(4) * (length - 1) + f"{g}:{i} ".ljust(8) * (tail // 2)
        for i in range(each)
        for g in range(groups)
    ]
    return [line(n, prompt, max_tokens=1) for n, prompt in enumerate(prompts, start=1)]


def group_of(one):
    return one.prompt[:4]


def test_whole_groups_in_even_shards():
    lines = heads(12, 5, length=48, tail=16)
    plan = plan_shards(lines, 2, shards_per_worker=2)
    assert plan.groups == 12
    assert plan.split == 0
    assert [len(shard.members) for shard in plan.shards] == [15, 15, 15, 15]
    for shard in plan.shards:  # members of a group stand together
        names = [group_of(lines[i]) for i in shard.members]
        assert len(set(names)) == 3
        assert sum(a != b for a, b in pairwise(names)) == 2
    assert plan.prompt_tokens == 60 * 64
    assert plan.computed_tokens == 12 * 48 + 60 * 16
    assert [shard.cost for shard in plan.shards] == [3 * 48 + 15 * 16 + 15 * 2] * 4


def test_a_group_too_large_for_one_worker_is_cut_evenly():
    lines = heads(1, 40, length=48, tail=16)
    plan = plan_shards(lines, 2)
    assert plan.split == 1
    sizes = [len(shard.members) for shard in plan.shards]
    assert len(sizes) == 6
    assert max(sizes) - min(sizes) <= 1
    assert plan.computed_tokens == 6 * 48 + 40 * 16


def test_it_is_cut_between_smaller_groups_first():
    common = "everybody begins with this and goes on with that ".ljust(64 * 4)
    lines = [
        line(n, common + f"{g:04d}".ljust(64 * 4, "x") + f"{n:04d}" * 8, max_tokens=1)
        for n, g in enumerate([g for _ in range(6) for g in range(6)], start=1)
    ]
    plan = plan_shards(lines, 2)
    inner = [lines[i].prompt[256:260] for shard in plan.shards for i in shard.members]
    assert sum(a != b for a, b in pairwise(inner)) == 5
    assert len(plan.shards) == 6


def test_groups_within_a_group_stay_together_where_they_may():
    common = "a head that three groups have in common, each with more of its own ".ljust(128)
    nested = [common + f"{g:04d}".ljust(128, "x") + f"{n:04d}" for n in range(2) for g in range(3)]
    others = [f"{n:04d} something else altogether ".ljust(256, ".") for n in range(6)]
    lines = [line(n, text, max_tokens=1) for n, text in enumerate(nested + others, start=1)]
    plan = plan_shards(lines, 2, shards_per_worker=8)
    homes = {n for n, shard in enumerate(plan.shards) for i in shard.members if i < len(nested)}
    assert len(homes) == 1
    assert plan.computed_tokens == 32 + 3 * 32 + 6 * 1 + 6 * 64


def test_the_longest_is_dealt_first():
    texts = [f"{n}" * 64 for n in range(4)] + ["z" * 64 * 4]
    lines = [line(n, text, max_tokens=1) for n, text in enumerate(texts, start=1)]
    plan = plan_shards(lines, 2, shards_per_worker=1)
    assert [len(shard.members) for shard in plan.shards] == [4, 1]
    assert [shard.cost for shard in plan.shards] == [4 * 16 + 8, 64 + 2]


def test_one_worker_one_shard_and_nothing_to_do():
    assert plan_shards([], 3).shards == ()
    lines = heads(3, 2)
    plan = plan_shards(lines, 1, shards_per_worker=1)
    assert sorted(plan.shards[0].members) == list(range(6))


def test_chats_and_texts_are_planned_apart():
    chat = json.dumps({"messages": [{"role": "user", "content": "x" * 200}]})
    lines = [parse_line(chat, 1), parse_line(chat, 2), line(3, "x" * 200), line(4, [7] * 200)]
    plan = plan_shards(lines, 1)
    assert plan.groups == 1


@pytest.mark.parametrize("bad", [{"workers": 0}, {"workers": 2, "shards_per_worker": 0}])
def test_no_worker_no_plan(bad):
    with pytest.raises(ParameterError, match="at least 1"):
        plan_shards([], **bad)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("ab", max_size=12).map(lambda s: s * 40), max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_every_request_is_in_one_shard(prompts, workers, per_worker):
    lines = [line(n, prompt or "-") for n, prompt in enumerate(prompts, start=1)]
    plan = plan_shards(lines, workers, shards_per_worker=per_worker)
    members = [i for shard in plan.shards for i in shard.members]
    assert sorted(members) == list(range(len(lines)))
    assert len(plan.shards) <= workers * per_worker
    costs = [shard.cost for shard in plan.shards]
    assert costs == sorted(costs, reverse=True)
    if lines:
        dearest = max(len(one.prompt) // 4 + 1 + 2 * 16 for one in lines)
        share = sum(costs) / workers
        assert costs[0] <= sum(costs) / len(costs) + 2 / 3 * share + dearest


# -- a worker --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker():
    return BatchWorker("nano", "batchllm", {"max_tokens": 6}, SMALL)


def records(worker, lines):
    rows = list(worker({"work": [pack(lines)]}))
    assert all(len(row["record"]) == 1 for row in rows)
    return {record["line"]: record for record in (json.loads(row["record"][0]) for row in rows)}


def test_a_worker_answers_shard_after_shard(worker):
    lines = [line(n, f"Once upon a time {n}") for n in range(1, 8)]
    texts = [r.text for r in worker._llm.generate([one.prompt for one in lines], SamplingParams(6))]
    for _ in range(2):
        found = records(worker, lines)
        assert [found[n]["response"]["body"]["choices"][0]["text"] for n in found] == [
            texts[n - 1] for n in found
        ]
        assert sorted(found) == list(range(1, 8))
    bad = records(worker, [line(1, "Once"), line(2, "Once", n=0)])
    assert bad[1]["error"] is None
    assert bad[2]["error"]["code"] == "invalid_parameter"


def test_a_worker_that_is_given_up_stops(worker):
    lines = [line(n, f"Once {n}", max_tokens=400, ignore_eos=True) for n in range(1, 9)]
    lines.append(line(9, "Once", max_tokens=1))
    rows = worker({"work": [pack(lines)]})
    next(rows)
    rows.close()
    assert not worker._llm.engine.has_work
    assert worker._llm.stats.generated_tokens < 8 * 400 / 2
    assert sorted(records(worker, lines[-1:])) == [9]


def test_a_fault_of_the_engine_is_not_swallowed(worker, monkeypatch):
    def fault(self):
        raise RuntimeError("the step failed")

    monkeypatch.setattr(type(worker._llm.engine), "step", fault)
    with pytest.raises(RuntimeError, match="the step failed"):
        records(worker, [line(1, "Once")])


def test_a_worker_without_a_model_says_so():
    rows = list(BatchWorker("./nowhere", "fcfs", {}, {})({"work": ["[]"]}))
    assert "nowhere" in json.loads(rows[0]["record"][0])["broken"]


# -- the job, with workers played by the test ------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    bodies = [{"id": f"r{n}", "prompt": f"Once {n}"} for n in range(1, 7)]
    path.write_text("\n".join([*map(json.dumps, bodies), "nonsense"]) + "\n")
    return path


def played(monkeypatch, play):
    """Let `play(lines)` stand for a job: it yields the numbers of the lines it answers."""
    rounds = []

    def answers(self, shards):
        numbers = [one.number for shard in shards for one in shard]
        rounds.append(sorted(numbers))
        for n in play(numbers):
            yield {"line": n, "custom_id": f"r{n}", "error": None}

    monkeypatch.setattr(_batch_job._Job, "records", answers)
    monkeypatch.setattr(_batch_job, "require_ray", lambda part: None)
    return rounds


def lines_of(path):
    return [json.loads(text)["line"] for text in path.read_text().splitlines()]


def test_what_comes_twice_is_written_once_and_what_is_lost_runs_again(
    source, tmp_path, monkeypatch
):
    out = tmp_path / "out.jsonl"

    def play(numbers):
        kept = numbers[: -(-len(numbers) // 2)]
        return [*kept, *kept]

    rounds = played(monkeypatch, play)
    seen = []
    report = run_ray_batch(source, out, on_progress=lambda done, total: seen.append((done, total)))
    assert sorted(lines_of(out)) == list(range(1, 8))
    assert [len(r) for r in rounds] == [6, 3, 1]
    assert (report.requests, report.failed, report.rounds, report.repeated) == (7, 1, 3, 6)
    assert seen == [(n, 7) for n in range(2, 8)]
    assert report.to_dict()["shards"] == 6


def test_the_same_call_goes_on_where_it_broke_off(source, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"

    def breaks(numbers):
        yield from numbers[:2]
        raise RayBatchError("broke off")

    played(monkeypatch, breaks)
    with pytest.raises(RayBatchError, match="broke off"):
        run_ray_batch(source, out)
    first = lines_of(out)
    assert len(first) == 3
    rounds = played(monkeypatch, iter)
    report = run_ray_batch(source, out)
    assert (report.skipped, report.requests) == (3, 4)
    assert rounds == [sorted(set(range(1, 7)) - set(first))]
    assert sorted(lines_of(out)) == list(range(1, 8))
    rounds = played(monkeypatch, iter)
    assert run_ray_batch(source, out).requests == 0
    assert rounds == []
    with pytest.raises(BatchFileError, match="max_tokens"):
        run_ray_batch(source, out, defaults=_batch_job.BatchDefaults(max_tokens=3))


def test_a_job_that_brings_nothing_ends(source, tmp_path, monkeypatch):
    played(monkeypatch, lambda numbers: [])
    with pytest.raises(RayBatchError, match="without a record for 6 lines"):
        run_ray_batch(source, tmp_path / "out.jsonl")


def test_foreword_batch_goes_on_with_the_same_file(source, tmp_path, monkeypatch):
    from foreword.cli import main

    out = tmp_path / "out.jsonl"
    played(monkeypatch, lambda numbers: numbers[:3])
    with pytest.raises(RayBatchError):
        run_ray_batch(source, out, on_progress=stop_after(3))
    first = lines_of(out)
    assert len(first) == 3
    command = ["foreword", "batch", str(source), "--out", str(out), "--kv-memory", "16MiB"]
    monkeypatch.setattr(sys, "argv", [*command, "--quiet"])
    main()
    assert lines_of(out)[:3] == first
    assert sorted(lines_of(out)) == list(range(1, 8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_breaks_a_job_is_said(source, tmp_path, monkeypatch):
    data = pytest.importorskip("ray.data")
    from ray.exceptions import RayError

    class Rows:
        def __init__(self, items, override_num_blocks):
            assert len(items) == override_num_blocks == 6

        def map_batches(self, worker, **settings):
            assert worker is BatchWorker
            return self

        def iter_rows(self):
            yield {"record": json.dumps({"line": 1, "custom_id": "r1", "error": None})}
            yield from self.end()

        def end(self):
            yield {"record": json.dumps({"broken": "no model"})}

    class Lost(Rows):
        def end(self):
            raise RayError("the node is gone")

    context = data.DataContext.get_current()
    before = (context.target_max_block_size, context.enable_progress_bars)
    for n, (rows, said) in enumerate([(Rows, "start: no model"), (Lost, "the node is gone")]):
        monkeypatch.setattr(data, "from_items", rows)
        out = tmp_path / f"{n}.jsonl"
        with pytest.raises(RayBatchError, match=said):
            run_ray_batch(source, out)
        assert lines_of(out) == [7, 1]
    assert (context.target_max_block_size, context.enable_progress_bars) == before


def stop_after(count):
    def progress(done, total):
        if done >= count:
            raise RayBatchError("stopped")

    return progress


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"shards_per_worker": True}, "shards_per_worker is True"),
        ({"policy": "best"}, "no policy 'best'"),
        ({"settings": {"max_batch": 0}}, "max_batch is 0"),
        ({"settings": {"speed": 9}}, "speed"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(source, tmp_path, settings, said):
    pytest.importorskip("ray.data")
    with pytest.raises(ParameterError, match=said):
        run_ray_batch(source, tmp_path / "out.jsonl", **settings)
    assert not (tmp_path / "out.jsonl").exists()


def test_without_ray_one_sentence_says_what_to_install(source, tmp_path, monkeypatch):
    from foreword.serving.ray import serve_app

    for part, call in (
        ("data", lambda: run_ray_batch(source, tmp_path / "o")),
        ("serve", serve_app),
    ):
        monkeypatch.setitem(sys.modules, f"ray.{part}", None)
        with pytest.raises(MissingRay, match=r"pip install 'foreword\[ray\]'"):
            call()


def test_a_line_survives_its_trip():
    one = line(3, "Once", max_tokens=2, stop=["x"])
    assert BatchLine(**json.loads(pack([one]))[0]) == one
