"""The shelf of learned prefixes: what it refuses, and what stays in host memory."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import pytest
import torch

import foreword.engine._shelf as shelf_module
from foreword._errors import ForewordError, ParameterError, PromptError
from foreword.engine import LLM, AsyncLLM, PrefixInfo, SamplingParams, UnknownPrefixError
from foreword.prefixes import Prefix, PrefixError
from tests.engine.learned_tools import noise, text

SHAPE = "llama-mqa-d128"
TOKEN_BYTES = 2 * 2 * 1 * 128 * 4


@pytest.fixture
def llm(loaded_model):
    return LLM(loaded_model(SHAPE), kv_memory="4MiB", prefix_memory=100 * TOKEN_BYTES)


def _memory(llm):
    return [name for name, info in llm.prefixes.items() if info.in_memory]


def test_a_loaded_prefix_says_what_it_is(llm, tmp_path):
    prefix = dataclasses.replace(
        noise(llm.engine, 1, 9, 20), base="tiny", provenance={"method": "noise"}
    )
    prefix.save(tmp_path / "p")
    info = llm.load_prefix("p", tmp_path / "p")
    assert info == llm.prefixes["p"]
    assert info == PrefixInfo(
        name="p",
        length=9,
        position_offset=20,
        nbytes=9 * TOKEN_BYTES,
        identity=prefix.identity,
        pinned=False,
        in_memory=True,
        in_use=0,
        source=tmp_path / "p",
        base="tiny",
        provenance={"method": "noise"},
    )
    llm.load_prefix("q", prefix)
    assert llm.prefixes["q"].source is None
    assert (list(llm.prefixes), len(llm.prefixes)) == (["p", "q"], 2)
    with pytest.raises(KeyError):
        llm.prefixes["r"]
    values, items = iter(llm.prefixes.values()), iter(llm.prefixes.items())
    assert next(values) == next(items)[1]
    llm.unload_prefix("q")  # whoever goes through them now goes on
    assert [each.name for each in values] == [name for name, _ in items] == ["q"]


def test_a_relative_directory_is_found_again_from_elsewhere(llm, tmp_path, monkeypatch):
    noise(llm.engine, 1, 60).save(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    llm.load_prefix("p", "p")
    llm.load_prefix("q", "p")
    assert _memory(llm) == ["q"]
    monkeypatch.chdir("/")
    assert llm.generate([text(1, 5)], prefix="p")[0].error is None


def test_the_least_recently_used_leave_memory_first(llm, tmp_path):
    for i in range(5):
        noise(llm.engine, i, 30).save(tmp_path / str(i))
        llm.load_prefix(f"p{i}", tmp_path / str(i))
    assert _memory(llm) == ["p2", "p3", "p4"]
    shelf = llm.engine.shelf
    shelf.warm(["p2"])
    shelf.warm(["p0"])
    assert _memory(llm) == ["p0", "p2", "p4"]
    assert not shelf.is_warm(["p0", "p1"])
    gauges = (shelf.known, shelf.in_memory, shelf.nbytes)
    assert gauges == (5, 3, 90 * TOKEN_BYTES)
    llm.load_prefix("value", noise(llm.engine, 9, 60))
    llm.load_prefix("pinned", tmp_path / "1", pin=True)
    assert _memory(llm) == ["value", "pinned"]
    shelf.warm(["p0"])  # it may be read, but there is room for it only while it is used
    assert _memory(llm) == ["value", "pinned"]
    llm.unload_prefix("value")
    shelf.warm(["p0", "p4"])
    assert _memory(llm) == ["p0", "p4", "pinned"]
    for name in list(llm.prefixes):
        llm.unload_prefix(name)
    assert (shelf.known, shelf.in_memory, shelf.nbytes) == (0, 0, 0)


def test_what_must_stay_in_memory_needs_room_there(llm, tmp_path):
    noise(llm.engine, 1, 60).save(tmp_path / "p")
    llm.load_prefix("pinned", tmp_path / "p", pin=True)
    for source, pin in ((noise(llm.engine, 2, 41), False), (tmp_path / "p", True)):
        with pytest.raises(PrefixError, match=r"for good, .* give more\s+prefix_memory"):
            llm.load_prefix("more", source, pin=pin)
    assert list(llm.prefixes) == ["pinned"]
    assert llm.engine.pinned_tokens == 60
    llm.load_prefix("more", noise(llm.engine, 2, 40))
    noise(llm.engine, 1, 101).save(tmp_path / "large")
    with pytest.raises(PrefixError, match="all learned prefixes have"):
        llm.load_prefix("large", tmp_path / "large")


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".a", "x" * 65, 7, None])
def test_what_cannot_be_a_name_is_refused(llm, name):
    with pytest.raises(ParameterError, match="cannot name a prefix"):
        llm.load_prefix(name, noise(llm.engine, 1, 3))


def test_names_are_given_once_and_never_the_models(llm):
    llm.load_prefix("p", noise(llm.engine, 1, 3))
    with pytest.raises(ParameterError, match="loaded as 'p' already"):
        llm.load_prefix("p", noise(llm.engine, 2, 3))
    with pytest.raises(ParameterError, match="is the model itself"):
        llm.load_prefix(SHAPE, noise(llm.engine, 2, 3))
    assert llm.prefixes["p"].identity == noise(llm.engine, 1, 3).identity


def test_a_prefix_that_does_not_fit_is_refused_by_what_is_wrong(llm, tmp_path):
    engine = llm.engine
    shape = engine.loaded.shape
    size = (shape.layers, 2, shape.kv_heads, 4, shape.head_dim)
    wrong = {
        "layers: 3, the model has 2": Prefix(torch.zeros(3, *size[1:])),
        "kv heads: 2, the model has 1": Prefix(torch.zeros(2, 2, 2, 4, 128)),
        "head dim: 64, the model has 128": Prefix(torch.zeros(*size[:4], 64)),
        "another model": Prefix(torch.zeros(size), model="0" * 64),
        "the model knows 512": Prefix(torch.zeros(size), 512),
    }
    for said, prefix in wrong.items():
        with pytest.raises(PrefixError, match=f"cannot load prefix 'p'.*{said}"):
            llm.load_prefix("p", prefix)
    with pytest.raises(PrefixError, match="nowhere"):
        llm.load_prefix("p", tmp_path / "nowhere")
    noise(engine, 1, 4).save(tmp_path / "p")
    weights = tmp_path / "p" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-4] + bytes(4), b""):
        weights.write_bytes(damaged)
        with pytest.raises(PrefixError):
            llm.load_prefix("p", tmp_path / "p")
    assert not llm.prefixes
    weights.write_bytes(whole)
    llm.load_prefix("p", tmp_path / "p")


def test_numbers_beyond_the_models_format_are_refused(loaded_model, plain_model):
    half = LLM(loaded_model(SHAPE), kv_memory="4MiB")
    shelf = half.engine.shelf
    shelf._dtype = torch.float16
    large = noise(half.engine, 1, 4)
    with pytest.raises(PrefixError, match="cannot load prefix 'p'"):
        half.load_prefix("p", Prefix(large.kv * 1e6))


def test_context_and_cache_must_leave_room_behind_a_prefix(loaded_model):
    small = LLM(loaded_model(SHAPE), kv_memory="4MiB", max_context=40)
    with pytest.raises(PrefixError, match=r"needs a context of at least 42.*is 40.*max_context"):
        small.load_prefix("p", noise(small.engine, 1, 8, 40))
    small.load_prefix("p", noise(small.engine, 1, 30))
    small.load_prefix("far", noise(small.engine, 1, 8, 35))
    for name in ("p", "far"):
        with pytest.raises(PromptError, match=r"prefix '\w+' of \d+ positions.*context is 40"):
            small.generate([text(1, 10)], prefix=name)
    with pytest.raises(PromptError, match=r"'p', 'p' of 60 positions"):
        small.generate([text(1, 1)], prefix=["p", "p"])
    tight = LLM(loaded_model(SHAPE), kv_memory=5 * 8 * TOKEN_BYTES)
    with pytest.raises(PrefixError, match=r"31 tokens of a cache of 32; give a kv_memory of"):
        tight.load_prefix("p", noise(tight.engine, 1, 31))
    tight.load_prefix("q", noise(tight.engine, 2, 20), pin=True)
    with pytest.raises(PrefixError, match="cannot pin prefix 'p'"):
        tight.load_prefix("p", noise(tight.engine, 1, 20), pin=True)
    assert list(tight.prefixes) == ["q"]


def test_what_requests_may_say_of_prefixes(llm):
    llm.load_prefix("a", noise(llm.engine, 1, 4))
    llm.load_prefix("far", noise(llm.engine, 1, 4, 30))
    one = text(1, 4)
    bad = [
        ({"prefix": "nobody"}, UnknownPrefixError, "loaded as 'nobody'"),
        ({"prefix": ["a", "nobody"]}, UnknownPrefixError, "loaded as 'nobody'"),
        ({"prefix": SHAPE}, UnknownPrefixError, "load it first"),
        ({"prefix": [3]}, ParameterError, "prefix holds 3"),
        ({"prefix": ["a", "far"]}, PrefixError, "different positions"),
        ({"prefix": "a", "prefixes": ["a"]}, ParameterError, "not both"),
        ({"prefixes": ["a", "a"]}, ParameterError, "1 prompts but 2 prefixes"),
        ({"prefixes": "a"}, ParameterError, "give one for each"),
    ]
    for said, kind, message in bad:
        with pytest.raises(kind, match=message):
            llm.generate([one], **said)
    assert issubclass(UnknownPrefixError, ParameterError)
    # The names that others use are not told to whoever asks.
    with pytest.raises(UnknownPrefixError) as caught:
        llm.generate([one], prefix="nobody")
    assert "far" not in str(caught.value)
    late = list(llm.as_completed([one, one], prefixes=["nobody", "a"]))
    assert [bool(r.error) for r in sorted(late, key=lambda r: r.index)] == [True, False]
    (plain,) = llm.generate([one], prefixes=[None])
    assert plain == dataclasses.replace(
        llm.generate([one], prefix=[])[0], cached_tokens=0, timing=plain.timing
    )
    with pytest.raises(UnknownPrefixError):
        llm.unload_prefix("nobody")
    streamed = "".join(str(chunk.token_ids) for chunk in llm.stream(one, prefix="a"))
    (whole,) = llm.generate([one], prefix="a")
    assert streamed == "".join(str((token,)) for token in whole.outputs[0].token_ids)


def test_closing_forgets_prefixes_and_pins(llm, tmp_path):
    llm.load_prefix("a", noise(llm.engine, 1, 4), pin=True)
    llm.close()
    assert not llm.prefixes
    assert llm.engine.tree.num_tokens == 0


def test_many_tasks_at_once_with_prefixes_of_their_own(loaded_model, tmp_path):
    model = loaded_model(SHAPE)
    expected = {}
    with_all = LLM(model, kv_memory="4MiB")
    for i in range(6):
        noise(with_all.engine, i, 10 + i).save(tmp_path / str(i))
        with_all.load_prefix(f"p{i}", tmp_path / str(i))
        (result,) = with_all.generate([text(2, 9)], prefix=f"p{i}")
        expected[f"p{i}"] = result.outputs[0].token_ids

    async def all_of_it() -> None:
        settings = {"kv_memory": "1MiB", "prefix_memory": 30 * TOKEN_BYTES, "debug": True}
        async with AsyncLLM(loaded_model(SHAPE), **settings) as llm:
            names = [f"p{i}" for i in range(6)]
            await asyncio.gather(*(llm.load_prefix(name, tmp_path / name[1:]) for name in names))
            assert sorted(llm.prefixes) == names
            asked = names * 4
            found = await asyncio.gather(*(llm.generate(text(2, 9), prefix=name) for name in asked))
            for name, result in zip(asked, found, strict=True):
                assert result.outputs[0].token_ids == expected[name]
            chunks = [chunk async for chunk in llm.stream(text(2, 9), prefix=["p1"])]
            assert tuple(t for chunk in chunks for t in chunk.token_ids) == expected["p1"]
            with pytest.raises(UnknownPrefixError):
                await llm.generate(text(2, 9), prefix="nobody")
            gauges = llm.gauges()
            assert (gauges.prefixes, gauges.prefix_bytes) == (
                6,
                sum(i.nbytes for i in llm.prefixes.values() if i.in_memory),
            )
            await llm.unload_prefix("p3")
            assert "p3" not in llm.prefixes
            with pytest.raises(ForewordError, match="already"):
                await llm.load_prefix("p1", tmp_path / "1")

    asyncio.run(all_of_it())


def test_a_cancelled_call_gives_its_prefix_back(loaded_model):
    async def cancel() -> int:
        async with AsyncLLM(loaded_model(SHAPE), kv_memory="1MiB") as llm:
            await llm.load_prefix("p", noise(llm._llm.engine, 1, 5))
            endless = SamplingParams(max_tokens=400)
            task = asyncio.ensure_future(llm.generate(text(1, 5), endless, prefix="p"))
            while not llm.prefixes["p"].in_use:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await llm.run(lambda engine: None)
            return llm.prefixes["p"].in_use

    assert asyncio.run(cancel()) == 0


def test_many_threads_read_while_prefixes_come_and_go(llm, tmp_path):
    for i in range(4):
        noise(llm.engine, i, 30).save(tmp_path / str(i))
        llm.load_prefix(f"p{i}", tmp_path / str(i))
    shelf = llm.engine.shelf
    seen: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                (volume,) = shelf.find([f"p{(number + turn) % 3}"])
                shelf.borrow([volume])
                assert shelf.fetch(volume).length == 30
                assert [info.length for info in llm.prefixes.values()].count(30) >= 3
                shelf.give_back([volume])
        except BaseException as error:
            seen.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        llm.unload_prefix("p3", drain=True)
        llm.load_prefix("p3", tmp_path / "3")
    for thread in threads:
        thread.join()
    assert not seen
    held = [info for info in llm.prefixes.values() if info.in_memory]
    assert (shelf.in_memory, shelf.nbytes) == (len(held), sum(info.nbytes for info in held))
    assert all(info.in_use == 0 for info in llm.prefixes.values())


def test_the_engine_waits_for_no_disk(loaded_model, tmp_path, monkeypatch):
    readers: list[str] = []
    read = shelf_module._load

    def watched(source):
        readers.append(threading.current_thread().name)
        return read(source)

    monkeypatch.setattr(shelf_module, "_load", watched)

    async def take_turns() -> None:
        settings = {"kv_memory": "1MiB", "prefix_memory": 25 * TOKEN_BYTES}
        async with AsyncLLM(loaded_model(SHAPE), **settings) as llm:
            for i in range(3):
                noise(llm._llm.engine, i, 20).save(tmp_path / str(i))
                await llm.load_prefix(f"p{i}", tmp_path / str(i))
            for i in range(3):
                assert not (await llm.generate(text(1, 4), prefix=f"p{i}")).error

    asyncio.run(take_turns())
    assert len(readers) == 6  # room for one: each was crowded out once
    assert "foreword-engine" not in readers
