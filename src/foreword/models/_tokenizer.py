"""Text to token ids and back: a thin face over a transformers tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Tokenizer:
    """Encodes prompts and decodes answers; wraps any transformers tokenizer.

    Args:
        inner: a `PreTrainedTokenizerBase`.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        eos = getattr(inner, "eos_token_id", None)
        self.eos_token_id: int | None = eos

    @classmethod
    def load(cls, path: str, *, local_only: bool) -> Tokenizer | None:
        """Load the tokenizer beside a model; None where there is none (token ids still work).

        Raises:
            ModelError: files are there but cannot be read.
        """
        from pathlib import Path

        from transformers import AutoTokenizer

        names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
        if local_only and not any((Path(path) / name).exists() for name in names):
            return None
        try:
            return cls(AutoTokenizer.from_pretrained(path, local_files_only=local_only))
        except Exception as error:
            raise ModelError(f"cannot read the tokenizer in {path!r}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with the special tokens that the model's tokenizer puts in front."""
        ids: list[int] = self.inner(text, verbose=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out, spaces as the model wrote them."""
        text: str = self.inner.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
