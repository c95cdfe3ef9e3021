"""What sharing would save on a set of prompts, told without weights and without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from foreword._errors import ModelError, PromptError
from foreword.cache import Namespace, Node, PrefixTree

_NANO = "nano"
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "float8_e4m3fn": 1}


@dataclass(frozen=True)
class Codec:
    """Texts to token ids and back."""

    name: str
    encode: Callable[[list[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Forecast:
    """The prefix tree of some prompts, and its numbers.

    Attributes:
        tree: every prompt holds a lease on it, so a node's pins are the requests behind it.
        prompts: how many there are.
        prompt_tokens: sum of their lengths.
        distinct_tokens: tokens in the tree: what has to be computed and held.
        kv_bytes_per_token: of the model whose shape was taken; None where none is known.
    """

    tree: PrefixTree
    prompts: int
    prompt_tokens: int
    distinct_tokens: int
    kv_bytes_per_token: int | None

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-ready values."""
        bytes_ = self.kv_bytes_per_token
        return {
            "requests": self.prompts,
            "prompt_tokens": self.prompt_tokens,
            "distinct_tokens": self.distinct_tokens,
            "saved_tokens": self.prompt_tokens - self.distinct_tokens,
            "dedup_ratio": self.prompt_tokens / max(1, self.distinct_tokens),
            "nodes": self.tree.stats().nodes,
            "kv_bytes_per_token": bytes_,
            "kv_bytes": None if bytes_ is None else self.distinct_tokens * bytes_,
            "kv_bytes_unshared": None if bytes_ is None else self.prompt_tokens * bytes_,
        }

    @property
    def roots(self) -> list[Node]:
        """The first nodes: one for each token that a prompt begins with."""
        return [node for node in self.tree.nodes() if node.start == 0]


def forecast(prompts: Sequence[list[int]], kv_bytes_per_token: int | None = None) -> Forecast:
    """Put all prompts into one prefix tree. Costs their tokens' time and memory."""
    total = sum(map(len, prompts))
    tree = PrefixTree(total + 1, page_size=1)  # pages of one token: room for all, whatever the cut
    namespace = Namespace(model="forecast", dtype="")
    for prompt in prompts:
        tree.acquire(namespace, prompt)
    return Forecast(tree, len(prompts), total, tree.num_tokens, kv_bytes_per_token)


def byte_codec() -> Codec:
    """Every byte of UTF-8 is a token."""
    return Codec(
        "bytes",
        lambda texts: [list(text.encode("utf-8")) for text in texts],
        lambda ids: bytes(ids).decode("utf-8", errors="replace"),
    )


def word_codec() -> Codec:
    """Every word with the space behind it is a token."""
    words: list[str] = []
    ids: dict[str, int] = {}

    def number(word: str) -> int:
        if word not in ids:
            ids[word] = len(words)
            words.append(word)
        return ids[word]

    return Codec(
        "words",
        lambda texts: [[number(word) for word in re.findall(r"\S+\s*|^\s+", t)] for t in texts],
        lambda found: "".join(words[i] for i in found),
    )


def file_codec(path: Path, name: str) -> Codec:
    """The tokenizer of a `tokenizer.json`, special tokens in front as the model gets them.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"no tokenizer at {path}: give --tokenizer, or count --bytes or --words")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"cannot read the tokenizer {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Codec(
        name,
        lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts)],
        lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False),
    )


def model_directory(model: str) -> Path:
    """Where a model's configuration and tokenizer lie; a hub model's are fetched, no weights.

    Raises:
        ModelError: no such model.
    """
    if model == _NANO:
        return Path(str(files("foreword"))) / "models" / _NANO
    path = Path(model).expanduser()
    if path.exists() or model.count("/") > 1 or model.startswith((".", "/", "~")):
        if not path.is_dir():
            raise ModelError(f"no model directory at {model!r}")
        return path
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(model, "config.json")
        return Path(hf_hub_download(model, "tokenizer.json")).parent
    except Exception as error:  # network, permission, name: all mean that it is not to be had
        raise ModelError(
            f"cannot get config.json and tokenizer.json of {model!r}: {error}"
        ) from error


def kv_bytes_per_token(directory: Path, model: str) -> int | None:
    """Bytes of keys and values per token by a model's config.json; None where it does not say."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        layers = config.get("num_hidden_layers") or config["n_layer"]
        heads = config.get("num_attention_heads") or config["n_head"]
        hidden = config.get("hidden_size") or config.get("n_embd") or 0
        kv_heads = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or hidden // heads
        dtype = "float32" if model == _NANO else config.get("dtype", config.get("torch_dtype"))
        return int(2 * layers * kv_heads * head_dim * _DTYPE_BYTES.get(dtype, 4))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def encode_all(prompts: Sequence[str | list[int]], codec: Codec) -> list[list[int]]:
    """Token ids of all prompts; those that are ids already are taken as they are.

    Raises:
        PromptError: a prompt of ids where tokens are bytes or words.
    """
    if codec.name in ("bytes", "words") and not all(isinstance(p, str) for p in prompts):
        raise PromptError(f"a prompt is given as token ids: --{codec.name} has no such tokens")
    texts = iter(codec.encode([prompt for prompt in prompts if isinstance(prompt, str)]))
    found = [next(texts) if isinstance(prompt, str) else prompt for prompt in prompts]
    if any(token < 0 for ids in found for token in ids):
        raise PromptError("a prompt has a negative token id")
    return found
