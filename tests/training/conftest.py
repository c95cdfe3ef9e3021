"""A tiny model on disk with a real tokenizer, and trainers' settings that stay offline."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

# Deprecations that transformers, TRL, PEFT and accelerate raise on themselves, and what they say to
# a user of a CPU. None of them can be acted on here.
_NOT_OURS = (
    ("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning),
    ("ignore", r"'pin_memory' argument is set as true but no accelerator is found", UserWarning),
)

WORDS = ("cat", "dog", "king", "bird", "girl", "fox", "boy", "frog")


@pytest.fixture(autouse=True)
def _only_our_warnings() -> None:
    """Lasts for the test: pytest restores the filters after each."""
    for action, message, category in _NOT_OURS:
        warnings.filterwarnings(action, message, category)  # type: ignore[arg-type]


@pytest.fixture(scope="session", autouse=True)
def _quick_collection() -> Iterator[None]:
    """Trainers collect garbage when they end: not through all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _same_randomness() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def nano_path() -> Path:
    """The built-in nano model: trained, in English, with its tokenizer."""
    return Path(str(resources.files("foreword.models") / "nano"))


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory, nano_path: Path) -> Path:
    """A random Llama of two layers with the tokenizer of nano, saved: what reference models are
    loaded from."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(nano_path)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=512,
        initializer_range=0.2,  # so that what is seen makes a difference
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    path = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_path: Path) -> Callable[..., Any]:
    """`tiny_model(dtype=torch.float32)`: a fresh copy each time, equal to the last."""
    from transformers import AutoModelForCausalLM

    @cache
    def loaded(dtype: torch.dtype) -> Any:
        with torch.random.fork_rng(devices=[]):  # the first use is as the others
            return AutoModelForCausalLM.from_pretrained(tiny_path, dtype=dtype)

    return lambda dtype=torch.float32: copy.deepcopy(loaded(dtype))


@pytest.fixture
def pair(tiny_model: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """`pair(sharing)`: the same model twice, with and without shared prefixes."""
    from trl.trainer.utils import add_fused_lm_head

    from foreword.training import share_prefixes
    from tests.training.padded import EAGER, OUTPUTS

    def make(sharing: Any = None) -> tuple[Any, Any]:
        plain, shared = tiny_model(), tiny_model()
        for model in (plain, shared):
            add_fused_lm_head(model, temperature=0.9, outputs=OUTPUTS)
        share_prefixes(shared, EAGER if sharing is None else sharing)
        return plain, shared

    return make


@pytest.fixture(scope="session")
def _tokenizer(tiny_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_path, padding_side="left")


@pytest.fixture
def tokenizer(_tokenizer: Any) -> Any:
    """A fresh tokenizer with padding on the left and a token to pad with."""
    return copy.deepcopy(_tokenizer)


@pytest.fixture
def prompts() -> Any:
    """A data set of eight prompts of unequal length, which share a long beginning."""
    datasets = pytest.importorskip("datasets")
    opening = "Once upon a time, in a small house near a big wood, there lived a"
    return datasets.Dataset.from_list(
        [{"prompt": f"{opening} {word}{' who was kind' * (i % 3)}"} for i, word in enumerate(WORDS)]
    )


@pytest.fixture
def trainer_settings(tmp_path: Path) -> dict[str, Any]:
    """What any TRL config needs to stay small, silent and offline. A test adds its own."""
    return {
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 3,
        "dataloader_pin_memory": False,
    }
