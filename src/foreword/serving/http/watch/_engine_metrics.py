"""The engine's own numbers for a scraper, read at the moment of the scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from foreword.engine import Gauges

ENGINE = ("model_name", "engine")
"""Labels that vLLM's metrics carry; there is one engine, "0"."""


class EngineCollector(Collector):
    """Makes Prometheus' families of an engine's gauges. Costs the engine nothing between scrapes.

    Args:
        gauges: reads the engine.
        labels: values of `model_name` and `engine`.
    """

    def __init__(self, gauges: Callable[[], Gauges], labels: tuple[str, str]) -> None:
        self._gauges = gauges
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        now = self._gauges()
        held = now.tree.used_pages - now.tree.evictable_pages
        for name, text, value in (
            ("vllm:num_requests_running", "Answers in the batch.", now.running),
            ("vllm:num_requests_waiting", "Answers in the engine's line.", now.waiting),
            (
                "vllm:kv_cache_usage_perc",
                "Part of the cache's pages that running answers and pins hold; 1 is all of them.",
                held / max(1, now.pages),
            ),
        ):
            yield self._gauge(name, text, value)
        for name, text, count in (
            ("vllm:prompt_tokens", "Prompt tokens, once a prompt.", now.looked_up_tokens),
            ("vllm:generation_tokens", "Tokens written.", now.generated_tokens),
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens sought in the cache, once a prompt, at its admission.",
                now.looked_up_tokens,
            ),
            (
                "vllm:prefix_cache_hits",
                "Those of them that were there.",
                now.found_tokens,
            ),
            (
                "vllm:prompt_tokens_cached",
                "Prompt tokens that were in the cache.",
                now.found_tokens,
            ),
            (
                "vllm:num_preemptions",
                "Times a running answer was put back in line for want of memory.",
                now.preemptions,
            ),
        ):
            yield self._counter(name, text, count)
        yield self._split(
            "vllm:prompt_tokens_by_source",
            "Prompt tokens by where their keys and values came from, once a prompt.",
            "source",
            {
                "local_compute": now.looked_up_tokens - now.found_tokens,
                "local_cache_hit": now.found_tokens,
            },
        )
        yield from self._own(now, held)

    def _own(self, now: Gauges, held: int) -> Iterator[Metric]:
        tree = now.tree
        ratio = now.prompt_tokens / max(1, now.computed_prompt_tokens)
        gauges: tuple[tuple[str, str, float], ...] = (
            ("tree_nodes", "Nodes of the prefix tree.", tree.nodes),
            ("tree_namespaces", "Salts that have a tree of their own.", tree.namespaces),
            ("tree_leases", "Holds of running answers and pins on the tree.", tree.leases),
            ("tree_tokens", "Tokens in the tree.", tree.tokens),
            (
                "tree_computed_tokens",
                "Those whose keys and values are there.",
                tree.computed_tokens,
            ),
            ("pinned_tokens", "Tokens that pins keep in the cache.", now.pinned_tokens),
            ("prefixes", "Learned prefixes that requests may name.", now.prefixes),
            (
                "prefixes_in_memory",
                "Learned prefixes whose keys and values are in host memory.",
                now.prefixes_in_memory,
            ),
            ("prefix_bytes", "Host memory that those take, in bytes.", now.prefix_bytes),
            ("cache_page_tokens", "Tokens that fit into a page of the cache.", now.page_size),
            (
                "dedup_ratio",
                "Prompt tokens asked for, each prompt times its n, per prompt token computed.",
                ratio,
            ),
        )
        for name, text, value in gauges:
            yield self._gauge(f"foreword_{name}", text, value)
        pages = GaugeMetricFamily(
            "foreword_cache_pages",
            "Pages of the cache: held by running answers and pins, kept for later, free.",
            labels=(*ENGINE, "state"),
        )
        for state, count in (
            ("held", held),
            ("kept", tree.evictable_pages),
            ("free", tree.free_pages),
        ):
            pages.add_metric((*self._labels, state), count)
        yield pages
        for name, text, count in (
            ("prompts", "Prompts taken by the engine.", now.requests),
            (
                "prompt_tokens_asked",
                "Prompt tokens asked for: each prompt times its n.",
                now.prompt_tokens,
            ),
            (
                "prompt_tokens_computed",
                "Prompt tokens run through the model.",
                now.computed_prompt_tokens,
            ),
            ("engine_steps", "Forward passes of the model.", now.steps),
        ):
            yield self._counter(f"foreword_{name}", text, count)
        yield self._split(
            "foreword_engine_seconds", "Wall time of the engine's steps.", "part", now.seconds
        )

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=ENGINE)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=ENGINE)
        family.add_metric(self._labels, value)
        return family

    def _split(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(name, text, labels=(*ENGINE, label))
        for kind, value in values.items():
            family.add_metric((*self._labels, kind), value)
        return family
