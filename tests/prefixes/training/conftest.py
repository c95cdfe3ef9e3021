"""A tiny model of one's own, and a method for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from foreword.models import Tokenizer
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


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One token per byte, `!` in front of a text, id 0 at the end of one."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Inner(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="! $A", special_tokens=[("!", letters.index("!"))]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=letters[90]))
