"""Small random models of every tested shape, and what transformers itself says about them."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.models import LoadedModel, wrap_model

# Jobs that a script starts in the background ignore Ctrl-C, and so would what the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # models this small only wait for each other's threads

VOCAB = 101
CONTEXT = 512


def _configs() -> dict[str, Any]:
    from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    def shape(heads: int, kv_heads: int, head_dim: int, *, tied: bool) -> dict[str, Any]:
        return {
            "hidden_size": heads * head_dim // 2 if head_dim > 64 else heads * head_dim,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "vocab_size": VOCAB,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": tied,
            "initializer_range": 0.08,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }

    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    qwen2 = shape(4, 2, 64, tied=True)
    del qwen2["head_dim"]  # Qwen2 derives it
    return {
        "llama-4to1-d64-tied": LlamaConfig(**shape(8, 2, 64, tied=True)),
        "llama-1to1-d80-untied": LlamaConfig(**shape(2, 2, 80, tied=False)),
        "llama-mqa-d128": LlamaConfig(**shape(4, 1, 128, tied=False)),
        "llama-bias-llama3-rope": LlamaConfig(
            **shape(4, 2, 32, tied=False),
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=llama3,
        ),
        "qwen2-bias": Qwen2Config(**qwen2),
        "qwen3-qknorm": Qwen3Config(**shape(4, 2, 64, tied=False)),
        "qwen3-qknorm-yarn-tied": Qwen3Config(**shape(4, 1, 32, tied=True), rope_parameters=yarn),
        "mistral-no-window": MistralConfig(**shape(4, 1, 64, tied=False), sliding_window=None),
        "gpt2": GPT2Config(
            n_embd=128,
            n_layer=2,
            n_head=2,
            vocab_size=VOCAB,
            n_positions=CONTEXT,
            initializer_range=0.08,
            bos_token_id=None,
            eos_token_id=None,
        ),
    }


SHAPES = tuple(_configs())


@cache
def _plain_model(name: str) -> Any:
    """The model as transformers runs it, with its own attention, float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(_configs()[name], dtype=torch.float32)
    with torch.no_grad():  # transformers begins with zeros and ones, which hide what is left out
        for key, parameter in model.named_parameters():
            if key.endswith(".bias") or "norm" in key:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@cache
def _greedy(name: str, prompt: tuple[int, ...], new: int) -> tuple[int, ...]:
    model = _plain_model(name)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=0,
        )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.fixture
def loaded_model() -> Callable[..., LoadedModel]:
    """`loaded_model(shape, ...)`: a fresh copy of a tiny model, ready for an engine.

    What follows the name goes to `wrap_model`.
    """

    def load(name: str, **settings: Any) -> LoadedModel:
        return wrap_model(copy.deepcopy(_plain_model(name)), name=name, **settings)

    return load


@pytest.fixture
def plain_model() -> Callable[[str], Any]:
    """`plain_model(shape)`: the same model as transformers runs it."""
    return _plain_model


@pytest.fixture
def expected() -> Callable[[str, Sequence[int], int], tuple[int, ...]]:
    """`expected(shape, prompt, n)`: n greedy tokens by transformers' own `generate`."""

    def greedy(name: str, prompt: Sequence[int], new: int) -> tuple[int, ...]:
        return _greedy(name, tuple(prompt), new)

    return greedy


@pytest.fixture(scope="session")
def data() -> Path:
    """The directory of real data; skips where there is none."""
    path = Path(os.environ.get("FOREWORD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no data directory at {path} (set FOREWORD_DATA)")
    return path
