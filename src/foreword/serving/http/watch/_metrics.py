"""What is counted and timed, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from foreword.serving.http.guard._gate import TenantLoad
from foreword.serving.http.guard._keys import Caller
from foreword.serving.http.watch._engine_metrics import ENGINE, EngineCollector

if TYPE_CHECKING:
    from foreword.engine import AsyncLLM, Result, SamplingParams

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_TENANTS = 50
"""Tenants with series of their own; further ones are summed as "other"."""
MAX_PREFIXES = 200
"""Learned prefixes with a series of their own; prompts behind further ones are "other"."""
_MAX_HANDLERS = 100

_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560,
)  # fmt: skip
_GAPS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5,
    10, 20, 40, 80,
)  # fmt: skip
_LATENCY = (
    0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480,
    960,
)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6)
_COARSE = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One server's counters, gauges and histograms; names of its own and vLLM's beside them.

    It has a registry of its own, so several may live in one process. Every label has a bounded
    number of values.

    Args:
        model: value of the label `model_name`.
        llm: its gauges are read at each scrape.
        load: what each tenant has behind the gate, read at each scrape.
    """

    def __init__(
        self,
        model: str,
        llm: AsyncLLM,
        load: Callable[[], Mapping[str, TenantLoad]] = dict,
    ) -> None:
        self.model = model
        self._labels = (model, "0")
        self._tenants = _Names(MAX_TENANTS)
        self._prefixes = _Names(MAX_PREFIXES)
        self._handlers = _Names(_MAX_HANDLERS)
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(EngineCollector(llm.gauges, self._labels))
        registry.register(_GateCollector(load, self._tenants))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(name, text, ENGINE, buckets=buckets, registry=registry)
            return made.labels(*self._labels)

        def seconds(name: str, text: str, buckets: tuple[float, ...] = _LATENCY) -> Histogram:
            return histogram(f"vllm:{name}_seconds", text, buckets)

        def tokens(name: str, text: str) -> Histogram:
            return histogram(f"vllm:{name}", text, _TOKENS)

        self._first = seconds("time_to_first_token", "From arrival to the first token.", _SECONDS)
        self._gap = seconds(
            "inter_token_latency", "Between two tokens of an answer, as they were sent.", _GAPS
        )
        self._pace = seconds(
            "request_time_per_output_token", "A prompt's mean time between two tokens.", _GAPS
        )
        self._whole = seconds("e2e_request_latency", "From arrival to the last token.")
        self._queue = seconds("request_queue_time", "From arrival to admission.")
        self._inference = seconds("request_inference_time", "From admission to the last token.")
        self._prefill = seconds("request_prefill_time", "From admission to the first token.")
        self._decode = seconds("request_decode_time", "From the first token to the last.")
        self._prompt = tokens("request_prompt_tokens", "Tokens of a prompt.")
        self._generated = tokens("request_generation_tokens", "Tokens of an answer.")
        self._limit = tokens("request_params_max_tokens", "max_tokens of a prompt.")
        self._n = histogram("vllm:request_params_n", "n of a prompt.", (1, 2, 5, 10, 20))
        self._success = Counter(
            "vllm:request_success",
            "Answers by how they ended.",
            (*ENGINE, "finished_reason"),
            registry=registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(*self._labels, reason)

        self._tenant_first = Histogram(
            "foreword_tenant_time_to_first_token_seconds",
            "From arrival to the first token, by tenant.",
            ("tenant",),
            buckets=_COARSE,
            registry=registry,
        )
        self._tenant_tokens = Counter(
            "foreword_tenant_tokens",
            "Tokens by tenant: of prompts, of them from the cache, of answers.",
            ("tenant", "kind"),
            registry=registry,
        )
        self._tenant_prompts = Counter(
            "foreword_tenant_prompts",
            "Prompts answered, by tenant.",
            ("tenant",),
            registry=registry,
        )
        self._prefix_prompts = Counter(
            "foreword_prefix_prompts",
            "Prompts answered behind a learned prefix, by prefix; of joined ones each counts.",
            ("prefix",),
            registry=registry,
        )
        self._refused = Counter(
            "foreword_refused",
            "Requests turned away, by tenant, status and reason.",
            ("tenant", "status", "reason"),
            registry=registry,
        )
        self._http = Counter(
            "http_requests", "Responses.", ("handler", "method", "status"), registry=registry
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "From a request's head to the end of its response.",
            ("handler", "method"),
            buckets=_COARSE,
            registry=registry,
        )

    def token_gap(self, seconds: float) -> None:
        """Time between two tokens of one answer."""
        self._gap.observe(seconds)

    def finished(
        self,
        caller: Caller,
        result: Result,
        params: SamplingParams,
        prefixes: Sequence[str] = (),
    ) -> None:
        """A prompt was answered, aborted or failed; its timing and its counts.

        `prefixes` are the learned ones in front of it.
        """
        tenant = self._tenants.bounded(caller.tenant)
        written = 0
        for output in result.outputs:
            self._success.labels(*self._labels, output.finish_reason).inc()
            self._generated.observe(len(output.token_ids))
            written += len(output.token_ids)
        self._prompt.observe(result.prompt_tokens)
        self._limit.observe(params.max_tokens)
        self._n.observe(params.n)
        self._tenant_prompts.labels(tenant).inc()
        self._tenant_tokens.labels(tenant, "prompt").inc(result.prompt_tokens)
        self._tenant_tokens.labels(tenant, "cached").inc(result.cached_tokens)
        self._tenant_tokens.labels(tenant, "generation").inc(written)
        for name in dict.fromkeys(prefixes):
            self._prefix_prompts.labels(self._prefixes.bounded(name)).inc()
        self._timed(tenant, result)

    def _timed(self, tenant: str, result: Result) -> None:
        timing = result.timing
        if timing is None:
            return
        if timing.ended is not None:
            self._whole.observe(timing.ended)
        if timing.admitted is None:
            return
        self._queue.observe(timing.admitted)
        if timing.ended is not None:
            self._inference.observe(timing.ended - timing.admitted)
        if timing.first_token is None:
            return
        self._first.observe(timing.first_token)
        self._tenant_first.labels(tenant).observe(timing.first_token)
        self._prefill.observe(timing.first_token - timing.admitted)
        if timing.ended is not None:
            decode = timing.ended - timing.first_token
            self._decode.observe(decode)
            longest = max((len(output.token_ids) for output in result.outputs), default=0)
            if longest > 1:
                self._pace.observe(decode / (longest - 1))

    def aborted(self, caller: Caller, answers: int, *, failed: bool = False) -> None:
        """Answers that nobody waits for any more, or that the engine failed to write."""
        self._success.labels(*self._labels, "error" if failed else "abort").inc(answers)

    def refused(self, caller: Caller, status: int, code: str | None) -> None:
        """A request was turned away; `code` is one of the server's own words."""
        tenant = self._tenants.bounded(caller.tenant)
        self._refused.labels(tenant, str(status), code or "").inc()

    def http(self, handler: str, method: str, status: int, seconds: float) -> None:
        """A response was sent; `handler` is the route's pattern, never the raw path."""
        handler = self._handlers.bounded(handler)
        self._http.labels(handler, method, str(status)).inc()
        self._http_seconds.labels(handler, method).observe(seconds)

    def render(self) -> bytes:
        """The page for a scraper, as `CONTENT_TYPE` says. O(series), a few milliseconds."""
        return generate_latest(_WithoutCreated(self._registry))


class _Names:
    """The first so many values of a label; what comes later is "other"."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.known: set[str] = set()

    def bounded(self, name: str) -> str:
        if name not in self.known:
            if len(self.known) >= self._most:
                return "other"
            self.known.add(name)
        return name


class _GateCollector(Collector):
    """What each tenant has behind the gate."""

    def __init__(self, load: Callable[[], Mapping[str, TenantLoad]], tenants: _Names) -> None:
        self._load = load
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        waiting = dict.fromkeys(self._tenants.known, 0)
        running = dict.fromkeys(self._tenants.known, 0)
        for tenant, load in self._load().items():
            name = self._tenants.bounded(tenant)
            waiting[name] = waiting.get(name, 0) + load.waiting
            running[name] = running.get(name, 0) + load.running
        for kind, text, counts in (
            ("waiting", "Answers let in whose first token is still to come.", waiting),
            ("running", "Answers that are being written.", running),
        ):
            family = GaugeMetricFamily(f"foreword_tenant_answers_{kind}", text, labels=("tenant",))
            for name, count in counts.items():
                family.add_metric((name,), count)
            yield family


class _WithoutCreated(Collector):
    """A registry without the moments at which each series began, which double the page."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
