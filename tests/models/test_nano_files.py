"""The nano model in the package: complete, small, loadable offline without custom code."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

NANO = Path(__file__).resolve().parents[2] / "src" / "foreword" / "models" / "nano"
FILES = {
    "README.md",
    "config.json",
    "evaluation.json",
    "generation_config.json",
    "loss_curve.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
END = "<|endoftext|>"
TOKENIZER = Tokenizer.from_file(str(NANO / "tokenizer.json"))


def read(name: str) -> Any:
    return json.loads((NANO / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> Any:
    """The shipped weights in fp32 arithmetic, loaded the way a user of transformers would."""
    return AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32, local_files_only=True)


@torch.no_grad()
def losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Nats of every token but the first, for ids [length]."""
    logits = model(ids[None]).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")


def test_folder_is_complete_and_small() -> None:
    found = {f.name: f.stat().st_size for f in NANO.iterdir() if f.is_file()}
    assert set(found) >= FILES
    assert not any(name.endswith((".py", ".bin", ".pt")) for name in found)
    assert sum(found.values()) <= 8_000_000


def test_shape_is_llama_with_grouped_queries_and_a_tied_head() -> None:
    config = read("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert config["num_attention_heads"] > config["num_key_value_heads"]
    assert config["max_position_embeddings"] >= 2048
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] <= 4096
    assert config["dtype"] == "bfloat16"
    assert config["eos_token_id"] == TOKENIZER.token_to_id(END)


def test_weights_load_as_bf16_with_one_embedding() -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(NANO, dtype="auto", local_files_only=True)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert all(torch.isfinite(p).all() for p in loaded.parameters())


def test_tokenizer_knows_every_byte_and_fits_the_model() -> None:
    assert TOKENIZER.get_vocab_size() == read("config.json")["vocab_size"]
    assert TOKENIZER.encode(END).ids == [0]
    assert TOKENIZER.encode("").ids == []
    single = "".join(map(chr, range(256)))
    assert TOKENIZER.decode(TOKENIZER.encode(single).ids) == single


@settings(deadline=None)
@given(st.text())
def test_tokenizer_returns_every_text_byte_for_byte(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False).encode() == text.encode()


@pytest.mark.parametrize(
    "text", ["", " two  spaces ,\n\n\ttab .", "naïve 東京 🙂\u200d", f"a{END}b"]
)
def test_auto_tokenizer_agrees_and_adds_nothing(text: str) -> None:
    auto: Any = AutoTokenizer.from_pretrained(NANO, local_files_only=True)
    ids = auto(text)["input_ids"]
    assert ids == TOKENIZER.encode(text).ids
    assert auto.decode(ids) == text
    assert (auto.eos_token, auto.eos_token_id) == (END, 0)
    assert auto.model_max_length == read("config.json")["max_position_embeddings"]


def test_heldout_excerpt_has_the_loss_that_the_card_was_made_with(model: Any) -> None:
    excerpt = read("evaluation.json")["excerpt"]
    ids = torch.tensor(TOKENIZER.encode(excerpt["text"]).ids)
    assert len(ids) == excerpt["tokens"]
    loss = losses(model, ids).mean().item()
    assert loss == pytest.approx(excerpt["nats_per_token"], abs=2e-3)
    assert loss < 0.6 * math.log(len(TOKENIZER.get_vocab()))


def test_a_text_is_still_read_well_behind_three_thousand_tokens(model: Any) -> None:
    excerpt = read("evaluation.json")["excerpt"]
    ids = torch.tensor(TOKENIZER.encode(excerpt["text"]).ids)
    behind = TOKENIZER.encode("It was a fine morning, and they all went down to the sea.\n\n" * 220)
    long = torch.cat([torch.tensor(behind.ids[: 3500 - len(ids)]), ids])
    late = losses(model, long)[-len(ids) + 1 :].mean().item()
    assert late < excerpt["nats_per_token"] + 0.7


def test_card_states_the_measured_numbers() -> None:
    text = (NANO / "README.md").read_text(encoding="utf-8")
    result, curve = read("evaluation.json"), read("loss_curve.json")
    assert (
        f"**{result['nats_per_token']} nats per token, {result['bits_per_byte']} bits per" in text
    )
    assert f"{curve[-1]['step']:,} steps" in text
    assert f"{curve[-1]['tokens']:,} in all" in text
    assert "license: apache-2.0" in text
    assert not re.search(r"(^|[^\w.])/(tmp|home|root|work)/", text)


def test_loss_curve_falls() -> None:
    curve = read("loss_curve.json")
    assert [row["step"] for row in curve] == sorted({row["step"] for row in curve})
    assert curve[0]["heldout"] > math.log(4096) - 0.5
    assert curve[-1]["heldout"] < curve[len(curve) // 2]["heldout"] < curve[0]["heldout"] / 1.5


def test_sampled_text_is_english_without_loops(model: Any) -> None:
    ids = torch.tensor([TOKENIZER.encode("It was a cold evening in November, and").ids])
    torch.manual_seed(1)
    made = model.generate(
        ids.expand(4, -1),
        attention_mask=torch.ones(4, ids.shape[1], dtype=torch.long),
        do_sample=True,
        temperature=0.8,
        top_k=0,
        max_new_tokens=64,
    )
    words = re.findall(r"[a-z']+", " ".join(TOKENIZER.decode(row.tolist()) for row in made).lower())
    common = {"the", "and", "of", "to", "a", "in", "that", "he", "she", "was", "it", "i", "had"}
    assert 0.2 < sum(word in common for word in words) / len(words) < 0.6
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    assert len(set(fours)) > 0.8 * len(fours)
