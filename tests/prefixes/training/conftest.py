"""A tiny model of one's own, and a method for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from foreword.prefixes import PrefixShape
from foreword.prefixes.methods import Method, make_method
from tests.prefixes.conformance import MODEL


@pytest.fixture
def model(plain_model: Callable[[str], Any]) -> Any:
    return copy.deepcopy(plain_model(MODEL))


@pytest.fixture
def make(model: Any) -> Callable[..., Method]:
    """`make(seed, **settings)`: a small prefix for `model`."""

    def build(seed: int = 0, **settings: Any) -> Method:
        torch.manual_seed(seed)
        return make_method("prefix-tuning", PrefixShape.of(model), **{"length": 3, **settings})

    return build
