"""Methods by name: their settings, and those of the method that they extend."""

from __future__ import annotations

import pytest

from foreword.prefixes import PrefixError, PrefixShape
from foreword.prefixes.methods import make_method

SHAPE = PrefixShape(layers=3, kv_heads=2, head_dim=4)


@pytest.mark.parametrize("name", ["comparative", "private-text", "robust"])
def test_what_extends_prefix_tuning_takes_its_settings(name):
    method = make_method(name, SHAPE, length=5, dropout=0.25, keep_first=True)
    assert (method.length, method.dropout, len(method.first)) == (5, 0.25, 1)
    assert method.settings == {"length": 5, "dropout": 0.25, "keep_first": True}


@pytest.mark.parametrize("name", ["comparative", "private-text", "robust", "prefix-tuning"])
def test_an_unknown_setting_is_refused_with_the_known_ones(name):
    with pytest.raises(PrefixError, match=rf"{name} has no setting 'breadth'; it has .*dropout"):
        make_method(name, SHAPE, breadth=5)
    with pytest.raises(PrefixError, match="no setting 'prefix'"):
        make_method(name, SHAPE, prefix={})
