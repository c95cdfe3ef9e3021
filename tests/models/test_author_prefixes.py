"""The author prefixes that ship with nano."""

from __future__ import annotations

from pathlib import Path

import pytest

import foreword
from foreword.models import load_model
from foreword.prefixes import Prefix, PrefixShape

FOLDER = Path(foreword.__file__).parent / "models" / "nano" / "prefixes"
NAMES = ("austen", "chesterton", "melville", "milton", "shakespeare", "whitman")


def test_there_are_six():
    assert sorted(each.name for each in FOLDER.iterdir()) == list(NAMES)


@pytest.fixture(scope="module")
def nano():
    return load_model("nano")


@pytest.mark.parametrize("name", NAMES)
def test_each_is_nanos_and_says_how_it_was_made(nano, name):
    prefix = Prefix.load(FOLDER / name)
    shape = nano.shape
    prefix.check(
        PrefixShape(shape.layers, shape.kv_heads, shape.head_dim, shape.max_context),
        fingerprint=nano.fingerprint,
    )
    assert prefix.model == nano.fingerprint
    assert prefix.base == "nano"
    assert prefix.length == prefix.position_offset == 16
    told = prefix.provenance
    assert told["method"] == "prefix-tuning"
    assert told["script"] == "tools/train_author_prefixes.py"
    assert told["heldout_loss"] < told["heldout_loss_behind_text"] < told["heldout_loss_without"]
    assert sum(each.stat().st_size for each in (FOLDER / name).iterdir()) < 50_000


def test_no_two_are_the_same():
    assert len({Prefix.load(FOLDER / name).identity for name in NAMES}) == len(NAMES)
