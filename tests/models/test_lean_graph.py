"""Replayed decode steps say what launched ones say, whoever joins or leaves."""

from __future__ import annotations

import contextlib
import copy
import random

import pytest
import torch

from foreword import LLM, ForewordError, SamplingParams
from foreword._layout import PLAIN
from foreword.attention import Span, choose, plan
from foreword.cache import KVPool
from foreword.models import GraphedModel, PackedStep, _lean_graph, wrap_model
from tests.conftest import VOCAB

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPES = ["llama-4to1-d64-tied", "llama-bias-llama3-rope", "qwen3-qknorm-yarn-tied"]


@pytest.mark.parametrize("decoder", ["lean", "transformers"])
def test_without_a_cuda_device_they_are_refused(decoder, loaded_model):
    loaded = loaded_model("llama-mqa-d128", decoder=decoder)
    with pytest.raises(ForewordError, match="on the device 'cpu'; leave cuda_graphs off"):
        LLM(loaded, kv_memory="1MiB", cuda_graphs=True)


class Buffer:
    """A plan buffer that holds the work list itself; it grows by powers of two."""

    def __init__(self):
        self.work, self.capacity, self.generation = None, 4, 0

    def show(self, work):
        while self.capacity < work.items:
            self.capacity, self.generation = 2 * self.capacity, self.generation + 1
        self.work = work


class Played:
    """Stands in for a CUDA graph and what it is captured from: a replay runs the step again.

    The attention then answers the list in the buffer, and leaves the padding undefined.
    """

    kind, name, layout = "lean", "played", PLAIN

    def __init__(self, loaded):
        self.model, self.shape = loaded.packed, loaded.shape
        self.inner = choose("cpu", self.shape.dtype, self.shape.head_dim, "torch")
        self.buffer, self.last, self.replaying, self.recorded = None, None, False, []

    def forward(self, step):
        self.last = (step, self.model.forward(step))
        return self.last[1]

    def prepare(self, work, heads, keys, buffer=None):
        assert heads == self.shape.heads
        assert keys.shape[0] == self.shape.kv_heads
        self.buffer = buffer or Buffer()
        self.buffer.show(work)
        return self.buffer

    def run(self, q, keys, values, work, scale):
        if not self.replaying:
            return self.inner.run(q, keys, values, work, scale)
        shown = self.buffer.work
        state = self.inner.run(q[: shown.rows], keys, values, shown, scale)
        out = torch.full_like(q, float("nan"))
        out[: shown.rows] = state.out
        return state._replace(out=out)

    @contextlib.contextmanager
    def capture(self, graph, pool=None):
        yield
        graph.step, graph.logits = self.last
        graph.generation = self.buffer.generation
        self.recorded.append(len(graph.step.tokens))

    def replay(self, graph):
        assert graph.generation == self.buffer.generation
        self.replaying = True
        graph.logits.copy_(self.model.forward(graph.step))
        self.replaying = False


def test_padding_sizes_and_growth(loaded_model, monkeypatch):
    loaded = loaded_model(SHAPES[0])
    played = Played(loaded)

    class Graph:
        def replay(self):
            played.replay(self)

        def pool(self):
            return None

    monkeypatch.setattr(_lean_graph, "_graph_reason", lambda *a: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", played.capture)
    compare(loaded, played, GraphedModel(played, loaded.shape, *store_of(loaded, 9, played)))
    # Eight rows outgrow the buffer, and smaller sizes are recorded anew when they come again.
    assert played.recorded == [1, 2, 4, 8, 16, 4, 2, 1]


def on_cuda(plain_model, shape, dtype=torch.float32, **settings):
    return wrap_model(copy.deepcopy(plain_model(shape)).to("cuda", dtype), name=shape, **settings)


@pytest.mark.gpu
@cuda
def test_what_cannot_be_captured_is_refused(plain_model):
    loaded = on_cuda(plain_model, SHAPES[0])
    with pytest.raises(ForewordError, match="backend 'torch' cannot be captured"):
        LLM(loaded, kv_memory="1MiB", backend="torch", cuda_graphs=True)
    loaded = on_cuda(plain_model, SHAPES[0], decoder="transformers")
    with pytest.raises(ForewordError, match="run by the transformers decoder"):
        LLM(loaded, kv_memory="1MiB", backend="triton", cuda_graphs=True)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_lean_decoder_on_a_cuda_device(shape, dtype, plain_model):
    """Plain, fused and shared weights; no further off than transformers' own layers are."""
    tokens = [(5 * i * i + 3 * i + 1) % VOCAB for i in range(80)]
    with torch.inference_mode():
        truth = plain_model(shape)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    off = {}
    for decoder in ("lean", "transformers"):
        loaded = on_cuda(plain_model, shape, dtype, decoder=decoder)
        assert loaded.packed.kind == decoder
        logits = loaded.packed.forward(prefill(loaded, tokens))
        off[decoder] = float((logits.float().cpu() - truth).abs().max())
    assert off["lean"] <= max(1.5 * off["transformers"], 1e-4)


PREFIX = 1500
ROOM = 4


def store_of(loaded, rows, backend):
    """A pool with a prefix of random keys and values, and room for some tokens per row."""
    store = pool(loaded, 1 + PREFIX + ROOM * rows, backend)
    for tensor in (*store.keys, *store.values):
        tensor.normal_()
    return store, backend


def compare(loaded, backend, graphed, rows=(1, 2, 4, 3, 8, 9, 3, 2, 1)):
    """Replays and launches the same steps of so many rows each, two tokens a row."""
    device, generator = loaded.shape.device, torch.Generator().manual_seed(0)
    store = graphed._store
    for count in rows:
        own = [Span(0, ((1 + PREFIX + ROOM * r, 3),), 1, r) for r in range(count)]
        step = PackedStep(
            tokens=torch.randint(VOCAB, (count,), generator=generator).to(device),
            positions=torch.full((count,), 100, device=device),
            slots=1 + PREFIX + ROOM * torch.arange(count, device=device) + 2,
            logit_rows=torch.randperm(count, generator=generator).to(device),
            work=plan([Span(-1, ((1, PREFIX),)), *own], count, group=loaded.shape.group),
            store=store,
            backend=backend,
        )
        results = []
        for _ in range(2):
            before = store.keys[1].clone()
            replayed = graphed.forward(step)
            changed = (store.keys[1] != before).any(dim=2).any(dim=0).nonzero()[:, 0].tolist()
            assert set(step.slots.tolist()) <= set(changed) <= {0, *step.slots.tolist()}
            results.append((replayed, loaded.packed.forward(step)))
            step.slots = step.slots + 1
            step.work.advance()
        for replayed, launched in results:  # the earlier one has outlived the later replay
            torch.testing.assert_close(replayed, launched, atol=1e-5, rtol=1e-5)
    for wanted in ([], [1]):  # not a decode step
        step.tokens = step.positions = torch.zeros(2, dtype=torch.int64, device=device)
        step.slots = step.tokens + torch.tensor([1, 2], device=device)
        step.work = plan([Span(-1, ((1, 2),), 2, 0)], 2, group=loaded.shape.group)
        step.logit_rows = torch.tensor(wanted, dtype=torch.int64, device=device)
        torch.testing.assert_close(graphed.forward(step), loaded.packed.forward(step))


def prefill(loaded, tokens):
    count, shape = len(tokens), loaded.shape
    rows = torch.arange(count, device="cuda")
    backend = choose(shape.device, shape.dtype, shape.head_dim)
    return PackedStep(
        tokens=torch.tensor(tokens, device="cuda"),
        positions=rows,
        slots=rows,
        logit_rows=rows,
        work=plan([Span(-1, ((0, count),), count, 0)], count, group=shape.group),
        store=pool(loaded, count, backend),
        backend=backend,
    )


def pool(loaded, slots, backend):
    shape = loaded.shape
    return KVPool(
        shape.layers,
        shape.kv_heads,
        slots,
        shape.head_dim,
        shape.dtype,
        shape.device,
        backend.layout,
    )


@pytest.mark.gpu
@cuda
def test_every_number_of_rows(plain_model):
    """Padding, new sizes, a buffer that grows."""
    loaded = on_cuda(plain_model, SHAPES[0])
    backend = choose(loaded.shape.device, loaded.shape.dtype, loaded.shape.head_dim, "triton")
    store, _ = store_of(loaded, 40, backend)
    graphed = GraphedModel(loaded.packed, loaded.shape, store, backend)
    compare(loaded, backend, graphed, rows=(1, 2, 3, 8, 40, 17, 5, 1))


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("shape", SHAPES)
def test_texts_are_those_of_generate(shape, plain_model, expected):
    """Requests join a few steps apart, share prefixes and leave at different times."""
    rng = random.Random(0)
    head = [rng.randrange(VOCAB) for _ in range(45)]
    prompts = [head[:k] + [rng.randrange(VOCAB) for _ in range(k % 5 + 1)] for k in range(1, 45, 3)]
    loaded = on_cuda(plain_model, shape)
    llm = LLM(loaded, kv_memory="64MiB", backend="triton", cuda_graphs=True)
    requests = []
    for i, prompt in enumerate(prompts):
        requests.append(llm.engine.add(prompt, SamplingParams(max_tokens=6 + i % 4)))
        for _ in range(rng.randrange(3)):
            llm.engine.step()
    while llm.engine.has_work:
        llm.engine.step()
    for i, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
        assert request.result(0).outputs[0].token_ids == expected(shape, prompt, 6 + i % 4)


def test_the_stand_in_is_asked_as_triton_is():
    """The graphs are tested with a stand-in for the backend: it must take what triton takes."""
    import inspect

    from foreword.attention._triton import TritonBackend
    from foreword.models._lean_graph import _Capturable

    def asked(owner):
        return list(inspect.signature(owner.prepare).parameters)

    stand_ins = [
        each for each in globals().values() if inspect.isclass(each) and hasattr(each, "prepare")
    ]
    assert stand_ins
    for owner in (*stand_ins, _Capturable):
        assert asked(owner) == asked(TritonBackend)
