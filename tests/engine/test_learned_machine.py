"""Load, unload, generate, evict in any order: the tree stays sound and every answer is right."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from foreword._errors import ParameterError, PromptError
from foreword.engine import LLM, UnknownPrefixError
from foreword.prefixes import PrefixError
from tests.engine.learned_tools import add, noise, text

SHAPE = "llama-mqa-d128"
TOKEN_BYTES = 2 * 2 * 1 * 128 * 4
KINDS = [(3, -1), (8, -1), (17, -1), (4, 20), (9, 20)]
"""Length and offset of the prefixes that may be loaded under any name."""
NAMES = st.sampled_from("abc")
TEXTS = st.sampled_from([(1, 3), (1, 12), (2, 12), (3, 30)])
NEW = 6


class Machine(RuleBasedStateMachine):
    """An engine in little memory, and a plain one that shares nothing to compare with."""

    load: Any = None  # set by the test: the model

    def __init__(self) -> None:
        super().__init__()
        self.llm = LLM(
            self.load(), kv_memory=16 * 8 * TOKEN_BYTES, prefix_memory=40 * TOKEN_BYTES, debug=True
        )
        self.engine = self.llm.engine
        self.folder = Path(tempfile.mkdtemp())
        self.loaded: dict[str, int] = {}
        self.open: list[tuple[Any, tuple[int, ...], tuple[int, int], str]] = []

    @rule(name=NAMES, kind=st.integers(0, len(KINDS) - 1), pin=st.booleans(), value=st.booleans())
    def load_prefix(self, name: str, kind: int, pin: bool, value: bool) -> None:
        prefix = noise(self.engine, kind, *KINDS[kind])
        source = prefix if value else prefix.save(self.folder / str(kind))
        try:
            self.llm.load_prefix(name, source, pin=pin)
        except ParameterError:
            assert name in self.loaded
        except PrefixError:  # no room for good: in memory, in the cache, or beside a promise
            assert pin or value
            assert name not in self.llm.prefixes
        else:
            assert name not in self.loaded
            self.loaded[name] = kind

    @rule(name=NAMES, drain=st.booleans())
    def unload_prefix(self, name: str, drain: bool) -> None:
        used = any(name in names for request, names, *_ in self.open if not request.finished)
        try:
            self.llm.unload_prefix(name, drain=drain)
        except UnknownPrefixError:
            assert name not in self.loaded
        except ParameterError:
            assert name in self.loaded
            assert not drain
            # A request may hold an older prefix of this name, never the other way round.
            assert used
        else:
            del self.loaded[name]

    @rule(names=st.lists(NAMES, max_size=2), prompt=TEXTS, salt=st.sampled_from(["", "ann"]))
    def ask(self, names: list[str], prompt: tuple[int, int], salt: str) -> None:
        if len(self.open) > 8:
            return
        try:
            request = add(self.engine, text(*prompt), tuple(names), NEW, salt=salt)
        except UnknownPrefixError:
            assert not set(names) <= self.loaded.keys()
        except PrefixError:
            assert len({KINDS[self.loaded[name]][1] for name in names}) == 2
        except PromptError:
            assert self.engine.pinned_tokens
        else:
            kinds = tuple(self.loaded[name] for name in names)
            self.open.append((request, tuple(names), prompt, repr((kinds, prompt))))
            self.expect(kinds, prompt)

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()
        for request, _, _, key in self.open:
            if request.finished:
                result = request.result(0)
                assert result.error is None
                assert result.outputs[0].token_ids == _answers[key]
        self.open = [entry for entry in self.open if not entry[0].finished]

    @rule(which=st.integers(0, 8))
    def abort(self, which: int) -> None:
        if which < len(self.open):
            self.engine.abort(self.open.pop(which)[0])

    @rule(pages=st.integers(1, 16))
    def evict(self, pages: int) -> None:
        self.engine.tree.evict(pages)

    def expect(self, kinds: tuple[int, ...], prompt: tuple[int, int]) -> None:
        """The answer of an engine that has nothing else to do, computed once."""
        key = repr((kinds, prompt))
        if key not in _answers:
            alone = _alone[0]
            names = tuple(f"k{kind}" for kind in kinds)
            request = add(alone, text(*prompt), names, NEW)
            while alone.has_work:
                alone.step()
            _answers[key] = request.result(0).outputs[0].token_ids

    @invariant()
    def everything_is_counted(self) -> None:
        self.engine.tree.check()
        assert set(self.llm.prefixes) == set(self.loaded)
        shelf = self.engine.shelf
        assert shelf.nbytes <= 40 * TOKEN_BYTES
        using: dict[str, int] = {}
        for request, names, *_ in self.open:
            for name in names:
                if not request.finished:
                    using[name] = using.get(name, 0) + 1
        for name, info in self.llm.prefixes.items():
            assert info.in_use <= using.get(name, 0)
        pinned = [info.length for info in self.llm.prefixes.values() if info.pinned]
        assert self.engine.pinned_tokens <= sum(pinned)
        assert bool(pinned) == bool(self.engine.pinned_tokens)

    def teardown(self) -> None:
        while self.engine.has_work:
            self.step(1)
        assert all(info.in_use == 0 for info in self.llm.prefixes.values())
        self.llm.close()
        assert self.engine.tree.num_tokens == 0
        assert self.engine.shelf.nbytes == 0
        shutil.rmtree(self.folder)


_answers: dict[str, tuple[int, ...]] = {}
_alone: list[Any] = []


@pytest.fixture
def machine(loaded_model):
    _answers.clear()
    engine = LLM(loaded_model(SHAPE), kv_memory="4MiB", share=False).engine
    for kind, (length, offset) in enumerate(KINDS):
        engine.load_prefix(f"k{kind}", noise(engine, kind, length, offset))
    _alone[:] = [engine]
    model = loaded_model(SHAPE)
    return type("Bound", (Machine,), {"load": staticmethod(lambda: model)})


def _run(machine: type[Machine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_order_of_verbs(machine):
    _run(machine, 25, 25)
    assert len(_answers) > 5


@pytest.mark.slow
def test_any_order_of_verbs_for_long(machine):
    _run(machine, 400, 60)
