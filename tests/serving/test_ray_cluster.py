"""Foreword on a real Ray of one machine: two replicas, two workers, and some of them killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("ray.data")

import ray
from ray import serve

from foreword._errors import ParameterError
from foreword.engine import LLM, SamplingParams
from foreword.serving.ray import run_ray_batch, serve_app

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SMALL = {"kv_memory": "16MiB", "max_batch": 8, "max_step_tokens": 256}
QUIET = {
    "RAY_AUTH_MODE": "disabled",  # it would keep a token in the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
        yield
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def app(cluster):
    built = serve_app(
        "nano",
        replicas=2,
        block=32,
        secret="s",
        report_seconds=0.5,
        num_cpus=0.2,
        settings=SMALL,
    )
    serve.start(proxy_location="Disabled")  # no HTTP: handles only
    return serve.run(built, name="foreword", route_prefix=None, logging_config={"log_level": 40})


@pytest.fixture(scope="module")
def llm():
    return LLM("nano", **SMALL)


def group(n):
    return f"Story number {n}. The fox met the crow on the hill and they spoke of cheese. "


def text_of(answer):
    return answer["choices"][0]["text"]


def test_two_replicas_answer_as_one_llm_and_groups_stay(app, llm):
    prompts = [group(n % 4) + f"Part {n // 4}:" for n in range(16)]
    expected = [result.text for result in llm.generate(prompts, SamplingParams(max_tokens=12))]
    answers = [
        app.generate.remote({"prompt": prompt, "max_tokens": 12}).result(timeout_s=60)
        for prompt in prompts
    ]
    assert [text_of(answer) for answer in answers] == expected
    homes = defaultdict(set)
    for n, answer in enumerate(answers):
        homes[n % 4].add(answer["replica"])
    assert all(len(home) == 1 for home in homes.values())
    assert len({answer["replica"] for answer in answers}) == 2
    chunks = app.options(stream=True).stream.remote({"prompt": prompts[0], "max_tokens": 12})
    assert "".join(chunk["text"] for chunk in chunks) == expected[0]


def test_errors_come_back_as_what_they_are(app):
    with pytest.raises(ParameterError, match="max_tokens"):
        app.generate.remote({"prompt": "x", "max_tokens": 0}).result(timeout_s=60)
    with pytest.raises(ParameterError, match="prompt is missing"):
        app.generate.remote({}).result(timeout_s=60)


def consumed(tenant):
    """What the replicas have counted for a tenant; asks until the one that knows it answers."""
    engine = serve.get_deployment_handle("engine", app_name="foreword")
    for _ in range(20):
        report = engine.record_routing_stats.remote().result(timeout_s=60)
        if tenant in report["foreword"]["tokens"]:
            return report["foreword"]["tokens"][tenant]
    raise AssertionError(f"no replica has heard of {tenant}")


def test_a_cancelled_stream_stops_at_the_replica(app):
    request = {"prompt": "Once", "max_tokens": 490, "ignore_eos": True, "tenant": "quitter"}
    chunks = app.options(stream=True).stream.remote(request)
    for _ in range(3):
        next(chunks)
    chunks.cancel()
    deadline = time.monotonic() + 20
    before, now = None, consumed("quitter")[1]
    while before != now and time.monotonic() < deadline:
        time.sleep(0.2)
        before, now = now, consumed("quitter")[1]
    assert 3 <= now < 490


def test_a_replica_killed_while_it_answers_loses_and_doubles_nothing(app, llm):
    prompts = [group(n % 4) + f"Then {n}" for n in range(12)]
    params = SamplingParams(max_tokens=300, ignore_eos=True)
    expected = [result.text for result in llm.generate(prompts, params)]
    request = {"max_tokens": 300, "ignore_eos": True}
    whole = [app.generate.remote({"prompt": prompt, **request}) for prompt in prompts[1:]]
    stream = app.options(stream=True).stream.remote({"prompt": prompts[0], **request})
    first = [next(stream)["text"]]
    home = app.generate.remote({"prompt": prompts[0], "max_tokens": 1}).result(timeout_s=60)
    name = f"SERVE_REPLICA::foreword#engine#{home['replica']}"
    ray.kill(ray.get_actor(name, namespace="serve"))
    assert "".join(first + [chunk["text"] for chunk in stream]) == expected[0]
    answers = [answer.result(timeout_s=60) for answer in whole]
    assert [text_of(answer) for answer in answers] == expected[1:]
    # Those that were with the dead one were answered by others.
    assert all(answer["replica"] != home["replica"] for answer in answers[3::4])
    assert all(answer["usage"]["completion_tokens"] == 300 for answer in answers)


# -- the batch job ---------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def worker_processes():
    """Processes of this job's actors while they work, by the names that Ray gives them."""
    return [
        process
        for process in map(int, filter(str.isdigit, os.listdir("/proc")))
        if _read(process, "cmdline").startswith("ray::MapWorker(MapBatches(BatchWorker)).submit")
        and _is_ours(process)
    ]


def _is_ours(process):
    """Whether it descends from this one: another Ray on the machine is none of our business."""
    while process > 1:
        if process == os.getpid():
            return True
        after_name = _read(process, "stat").rpartition(")")[2].split()
        process = int(after_name[1]) if after_name else 0
    return False


def _read(process, what):
    try:
        return Path(f"/proc/{process}/{what}").read_text(errors="replace")
    except OSError:
        return ""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers' processes in /proc")
def test_a_batch_job_stopped_and_with_a_worker_killed_is_whole(cluster, llm, tmp_path):
    if "foreword" in serve.status().applications:
        serve.delete("foreword")  # its processors are wanted
    prompts = [group(n % 4) + f"Line {n}" for n in range(16)]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies = [
        {"id": f"r{n}", "prompt": prompt, "max_tokens": 300, "ignore_eos": True}
        for n, prompt in enumerate(prompts)
    ]
    source.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    params = SamplingParams(max_tokens=300, ignore_eos=True)
    expected = [result.text for result in llm.generate(prompts, params)]

    def stop(done, total):
        if done >= 3:
            raise StoppedError

    killed = []

    def kill(done, total):
        if done >= 5 and not killed:
            for process in worker_processes()[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(done)

    def job(workers, on_progress):
        return run_ray_batch(
            source,
            out,
            workers=workers,
            shards_per_worker=2,
            num_cpus=0.5,
            settings={**SMALL, "max_batch": 1},
            on_progress=on_progress,
        )

    with pytest.raises(StoppedError):
        job(1, stop)
    assert len(out.read_text().splitlines()) == 3
    report = job(2, kill)
    assert killed
    assert killed[0] < 12  # in the middle
    assert (report.skipped, report.requests, report.failed) == (3, 13, 0)
    records = [json.loads(text) for text in out.read_text().splitlines()]
    assert sorted(record["line"] for record in records) == list(range(1, 17))
    for record in records:
        n = record["line"] - 1
        assert record["custom_id"] == f"r{n}"
        assert record["response"]["body"]["choices"][0]["text"] == expected[n]
