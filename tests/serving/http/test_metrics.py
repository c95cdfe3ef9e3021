"""The page for Prometheus: what was sent is what it tells, and its size has a bound."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from foreword._errors import PromptError
from foreword.engine import AsyncLLM, Result, SamplingParams
from foreword.serving.http import Caller, Job, Keyring, Service, create_app
from foreword.serving.http.watch._metrics import MAX_TENANTS, Metrics
from tests.serving.http.services import PROMPT, fresh

ENGINE = {"model_name": "nano", "engine": "0"}
KEY = "operator-0123456789"


class Page:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        if name.startswith("vllm:") or (name, ()) not in self.samples:
            own = {**ENGINE, **labels}
            if (name, tuple(sorted(own.items()))) in self.samples:
                labels = own
        return self.samples[name, tuple(sorted(labels.items()))]

    def all(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        return {labels: value for (n, labels), value in self.samples.items() if n == name}


def page(service: Service) -> Page:
    return Page(service.metrics.render().decode())


async def answer(service: Service, tenant: str, prompt: list[int], **params: Any) -> Result:
    one = SamplingParams(**{"ignore_eos": True, "seed": 1, **params})
    async with aclosing(service.answer(Caller(tenant), Job((prompt,), (one,)))) as events:
        (result,) = [item async for item in events if isinstance(item, Result)]
    return result


def test_a_load_is_told_as_it_was_sent(llm: AsyncLLM) -> None:
    async def main() -> None:
        greedy = await answer(await fresh(llm), "", PROMPT, max_tokens=1, temperature=0)
        first = greedy.outputs[0].token_ids[0]
        service = await fresh(llm)
        before = page(service)
        stop = {"stop_token_ids": (first,), "temperature": 0}
        results = [
            await answer(service, "alice", PROMPT, max_tokens=6),
            await answer(service, "alice", PROMPT, max_tokens=4, n=2),
            await answer(service, "bob", PROMPT[:10], max_tokens=1),
            await answer(service, "bob", PROMPT, max_tokens=50, **stop),
        ]
        cached = results[1].cached_tokens
        assert (results[0].cached_tokens, results[2].cached_tokens) == (0, 0)
        assert cached >= 29
        # One that leaves in the middle, one that is refused.
        params = SamplingParams(max_tokens=400, ignore_eos=True, n=3)
        async with aclosing(service.answer(Caller("bob"), Job(([7] * 5,), (params,)))) as events:
            await anext(events)
        with pytest.raises(PromptError):
            await answer(service, "bob", [10**7])
        await llm.run(lambda engine: None)  # the abort went before it
        after = page(service)

        def grew(name: str, **labels: str) -> float:
            return after(name, **labels) - before(name, **labels)

        # The engine: each prompt once, hits once, at admission.
        hits = sum(result.cached_tokens for result in results)
        assert grew("vllm:prompt_tokens_total") == 30 + 30 + 10 + 30 + 5
        assert grew("vllm:prefix_cache_queries_total") == 105
        assert grew("vllm:prefix_cache_hits_total") == hits
        assert grew("vllm:prompt_tokens_cached_total") == hits
        assert grew("vllm:prompt_tokens_by_source_total", source="local_cache_hit") == hits
        assert grew("vllm:prompt_tokens_by_source_total", source="local_compute") == 105 - hits
        assert grew("foreword_prompt_tokens_asked_total") == 30 + 60 + 10 + 30 + 15
        assert grew("foreword_prompts_total") == 5
        written = 6 + 8 + 1 + 1
        assert grew("vllm:generation_tokens_total") >= written + 1  # and what nobody waited for
        # Answers by how they ended.
        ends = {dict(k)["finished_reason"]: v for k, v in after.all(_SUCCESS).items()}
        assert ends == {"length": 1 + 2 + 1, "stop": 1, "abort": 3, "error": 0}
        # Histograms: a time per prompt, a length per answer.
        for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
            assert after(f"vllm:{name}_seconds_count") == 4
        assert after("vllm:request_prompt_tokens_sum") == 100
        assert after("vllm:request_generation_tokens_count") == 5
        assert after("vllm:request_generation_tokens_sum") == written
        assert after("vllm:request_params_n_sum") == 1 + 2 + 1 + 1
        assert after("vllm:request_params_max_tokens_sum") == 6 + 4 + 1 + 50
        # Tenants.
        assert after("foreword_tenant_prompts_total", tenant="alice") == 2
        assert after("foreword_tenant_tokens_total", tenant="alice", kind="prompt") == 60
        assert after("foreword_tenant_tokens_total", tenant="alice", kind="cached") == cached
        assert after("foreword_tenant_tokens_total", tenant="alice", kind="generation") == 6 + 8
        assert after("foreword_tenant_tokens_total", tenant="bob", kind="prompt") == 40
        assert after("foreword_tenant_tokens_total", tenant="bob", kind="generation") == 1 + 1
        assert after("foreword_tenant_time_to_first_token_seconds_count", tenant="bob") == 2

    asyncio.run(main())


_SUCCESS = "vllm:request_success_total"


def test_times_are_in_the_order_in_which_things_happen(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        result = await answer(service, "", PROMPT, max_tokens=5)
        now = page(service)
        timing = result.timing
        assert timing is not None
        assert timing.admitted is not None
        assert timing.first_token is not None
        assert timing.ended is not None
        for name, seconds in (
            ("time_to_first_token", timing.first_token),
            ("e2e_request_latency", timing.ended),
            ("request_queue_time", timing.admitted),
            ("request_prefill_time", timing.first_token - timing.admitted),
            ("request_inference_time", timing.ended - timing.admitted),
            ("request_decode_time", timing.ended - timing.first_token),
            ("request_time_per_output_token", (timing.ended - timing.first_token) / 4),
        ):
            assert now(f"vllm:{name}_seconds_sum") == pytest.approx(seconds, rel=1e-6, abs=1e-9)
        assert now("vllm:inter_token_latency_seconds_count") == 4

    asyncio.run(main())


def test_gauges_are_those_of_the_moment(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        await answer(service, "alice", [9] * 40, max_tokens=1)  # it stays in the cache
        params = SamplingParams(max_tokens=400, ignore_eos=True, n=3)
        job = Job((PROMPT,), (params,))
        idle = page(service)
        assert idle("vllm:num_requests_running") == 0
        assert idle("vllm:kv_cache_usage_perc") == 0
        async with aclosing(service.answer(Caller("alice"), job)) as events:
            await anext(events)
            busy = page(service)
            assert busy("vllm:num_requests_running") == 3
            assert busy("vllm:num_requests_waiting") == 0
            assert busy("foreword_tree_leases") == 3
            assert busy("foreword_tenant_answers_running", tenant="alice") == 3
            assert 0 < busy("vllm:kv_cache_usage_perc") < 1
            pages = {dict(k)["state"]: v for k, v in busy.all("foreword_cache_pages").items()}
            total = sum(pages.values())
            assert pages["kept"] >= 5
            assert pages["held"] / total == busy("vllm:kv_cache_usage_perc")
        await llm.run(lambda engine: None)  # the abort went before it
        idle = page(service)
        assert idle("vllm:num_requests_running") == 0
        assert idle("foreword_tree_leases") == 0
        assert idle("foreword_tenant_answers_running", tenant="alice") == 0
        assert idle("vllm:kv_cache_usage_perc") == 0
        assert idle("foreword_tree_tokens") >= 70
        assert sum(idle.all("foreword_cache_pages").values()) == total

    asyncio.run(main())


def test_pinned_tokens_are_told(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        assert page(service)("foreword_pinned_tokens") == 0
        await llm.pin("system", PROMPT, public=True)
        assert page(service)("foreword_pinned_tokens") == 30
        await llm.unpin("system")
        assert page(service)("foreword_pinned_tokens") == 0

    asyncio.run(main())


def test_counters_only_grow(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        last = page(service)
        for i in range(6):
            tasks = [answer(service, f"t{k}", PROMPT[k:], max_tokens=3) for k in range(i)]
            work = asyncio.gather(*tasks)
            while not work.done():
                await asyncio.sleep(0)
                last = self_consistent(last, page(service))
            last = self_consistent(last, page(service))

    asyncio.run(main())


def self_consistent(before: Page, after: Page) -> Page:
    kinds = {f.name: f.type for f in after.families}
    for family in after.families:
        for sample in family.samples:
            if kinds[family.name] in ("counter", "histogram"):
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert sample.value >= before.samples.get(key, 0), key
    assert after("vllm:prefix_cache_hits_total") <= after("vllm:prefix_cache_queries_total")
    return after


def test_labels_have_a_bound(llm: AsyncLLM) -> None:
    metrics = Metrics("nano", llm)
    for i in range(MAX_TENANTS + 30):
        metrics.refused(Caller(f"t{i}"), 429, "requests_per_minute")
        for _ in range(3):
            metrics.http(f"/route/{i}", "GET", 200, 0.1)
    metrics.refused(Caller("t0"), 503, None)
    now = Page(metrics.render().decode())
    refused = now.all("foreword_refused_total")
    assert len({dict(labels)["tenant"] for labels in refused}) == MAX_TENANTS + 1
    name = "foreword_refused_total"
    assert now(name, tenant="other", status="429", reason="requests_per_minute") == 30
    assert now(name, tenant="t0", status="503", reason="") == 1
    for i in range(200):
        metrics.http(f"/more/{i}", "GET", 200, 0.1)
    handlers = Page(metrics.render().decode()).all("http_requests_total")
    assert len(handlers) == 101


def test_a_model_name_of_any_kind_is_escaped(llm: AsyncLLM) -> None:
    metrics = Metrics('a"b\\c\nd', llm)
    now = Page(metrics.render().decode())
    (labels,) = now.all("vllm:num_requests_running")
    assert dict(labels)["model_name"] == 'a"b\\c\nd'


def test_there_is_no_series_of_creation_times(llm: AsyncLLM) -> None:
    names = {name for name, _ in Page(Metrics("nano", llm).render().decode()).samples}
    assert not [name for name in names if name.endswith("_created")]
    assert "process_resident_memory_bytes" in names


def test_two_servers_count_apart(llm: AsyncLLM) -> None:
    one, other = Metrics("nano", llm), Metrics("nano", llm)
    one.token_gap(1)
    assert Page(one.render().decode())("vllm:inter_token_latency_seconds_count") == 1
    assert Page(other.render().decode())("vllm:inter_token_latency_seconds_count") == 0


@pytest.fixture
def guarded(llm: AsyncLLM) -> Iterator[TestClient]:
    keys = Keyring.of(
        [
            {"key": KEY, "tenant": "ops", "operator": True},
            {"key": "user-0123456789abcd", "tenant": "user"},
        ]
    )
    app = create_app(Service.of(llm, keys=keys))
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def test_the_page_is_for_operators(guarded: TestClient) -> None:
    assert guarded.get("/metrics").status_code == 401
    user = {"Authorization": "Bearer user-0123456789abcd"}
    assert guarded.get("/metrics", headers=user).status_code == 403
    answer = guarded.get("/metrics", headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    now = Page(answer.text)
    assert now("http_requests_total", handler="/metrics", method="GET", status="401") == 1
    assert now("http_requests_total", handler="/metrics", method="GET", status="403") == 1


def test_what_a_client_sends_is_what_the_page_tells(client: TestClient) -> None:
    body = {"model": "nano", "prompt": PROMPT, "max_tokens": 3, "ignore_eos": True}
    for _ in range(2):
        assert client.post("/v1/completions", json=body).status_code == 200
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        assert "[DONE]" in answer.read().decode()
    assert client.post("/v1/completions", json={**body, "max_tokens": -1}).status_code == 400
    now = Page(client.get("/metrics").text)
    name = {"handler": "/v1/completions", "method": "POST"}
    assert now("http_requests_total", **name, status="200") == 3
    assert now("http_requests_total", **name, status="400") == 1
    assert now("http_request_duration_seconds_count", **name) == 4
    assert now(_SUCCESS, finished_reason="length") == 3
    assert now("foreword_tenant_tokens_total", tenant="", kind="generation") == 9


def test_the_page_about_metrics_has_every_series(service):
    text = (Path(__file__).parents[3] / "docs/reference/metrics.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w:]+)` \| (\w+) \|", text, re.M))
    families = text_string_to_metric_families(service.metrics.render().decode())
    there = {
        family.name + "_total" * (family.type == "counter"): family.type
        for family in families
        if not family.name.startswith("process_")
    }
    assert told == there
