"""The nano model's text: reading and cleaning public-domain books, and training a tokenizer."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
Stream = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Cleaned sections of text: those to train on, and held-out blocks that training never sees."""

    files: tuple[str, ...]
    train: tuple[str, ...]
    heldout: tuple[str, ...]


def unwrap(text: str) -> str:
    """Join the hard-wrapped lines of prose into paragraphs; keep the lines of verse and drama.

    A file is prose when it is wrapped at 55 characters or more and most lines inside its
    paragraphs come near to that width; in such a file only indented short-lined paragraphs
    (poems, letters' heads) keep their line breaks.
    """
    blocks = [
        [line.rstrip() for line in block.split("\n") if line.strip()]
        for block in re.split(r"\n\s*\n", text)
    ]
    inner = [len(line) for block in blocks for line in block[:-1]]
    width = float(np.percentile(inner, 90)) if inner else 0.0
    prose = width >= 55 and statistics.median(inner) >= 0.85 * width
    out = []
    for block in filter(None, blocks):
        indented = all(line.startswith("  ") for line in block)
        poem = indented and statistics.median(map(len, block)) < 50
        joined = "\n".join(re.sub(r"\s+", " ", line).strip() for line in block)
        if prose and not poem:
            joined = joined.replace("--\n", "--").replace("\n", " ")
        out.append(joined)
    return "\n\n".join(out)


def clean(raw: str) -> list[str]:
    """The sections (chapters, scenes, poems) of one file as flowing text.

    Drops licences, the bracketed title line and underscores for italics. A section ends where two
    or more blank lines stand, once it has 2,000 characters.
    """
    text = raw.replace("\r\n", "\n").replace("\ufeff", "").expandtabs(4)
    text = re.split(r"\n[^\n]*End of (?:the |this )?Project Gutenberg|\n\*\*\* ?END OF TH", text)[0]
    text = re.sub(r"\A\s*\[[^\]\n]*\]\s*", "", text)
    text = re.sub(r"(?<![A-Za-z])_([^_]{1,200}?)_(?![A-Za-z])", r"\1", text)
    text = re.sub(r"(?m)^\}\s+", "", text)
    wrapped = unwrap(re.sub(r"\n[ \t]*\n(?:[ \t]*\n)+", "\n\n\0\n\n", text))
    sections = [""]
    for part in wrapped.split("\0"):
        if len(sections[-1]) >= 2000:
            sections.append("")
        sections[-1] = (sections[-1] + "\n\n" + part.strip()).strip()
    return [section for section in sections if section]


def decode(raw: bytes) -> str:
    """UTF-8 where it is valid, else the Windows code page that older files use."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def read_corpus(folder: Path, holdout: float = 0.01) -> Corpus:
    """Read every ``*.txt`` below ``folder``; each file keeps back one block of lines.

    The block begins two thirds into the file and holds about ``holdout`` of its characters.
    """
    paths = sorted(folder.rglob("*.txt"))
    if not paths:
        raise SystemExit(f"no .txt files below {folder}: give --data a folder of English text")
    train: list[str] = []
    heldout: list[str] = []
    for path in paths:
        kept, held = split(path, holdout)
        train += kept
        heldout.append(held)
    names = tuple(path.relative_to(folder).as_posix() for path in paths)
    return Corpus(names, tuple(filter(None, train)), tuple(filter(None, heldout)))


def split(path: Path, holdout: float = 0.01) -> tuple[list[str], str]:
    """One file's sections to train on, and its held-out block."""
    sections = clean(decode(path.read_bytes()))
    total = sum(map(len, sections))
    seen = taken = 0
    train: list[str] = []
    held: list[str] = []
    for section in sections:
        kept: list[str] = []
        for line in section.split("\n"):
            seen += len(line) + 1
            if seen > total * 0.66 and taken < total * holdout:
                taken += len(line) + 1
                held.append(line)
                if taken >= total * holdout:  # what follows the block is another text
                    train.append("\n".join(kept).strip())
                    kept = []
            else:
                kept.append(line)
        train.append("\n".join(kept).strip())
    return train, "\n".join(held).strip()


def train_tokenizer(texts: Sequence[str], vocab: int) -> Tokenizer:
    """A byte-level BPE: every byte is a token, so any UTF-8 text comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Stream:
    """One stream: every text's tokens, each text closed by the end-of-text token (id 0)."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return np.concatenate([np.asarray([*e.ids, 0], dtype=np.int64) for e in encoded])


def windows(
    stream: Stream, length: int, batch: int, rng: np.random.Generator
) -> Iterator[torch.Tensor]:
    """Endless batches [batch, length + 1] of token ids.

    Each epoch cuts the stream at a new offset and shuffles the pieces; a short last batch is
    dropped.
    """
    if (len(stream) - 1) // length - 1 < batch:
        need = (batch + 2) * length
        raise SystemExit(f"{len(stream)} training tokens, but a batch needs {need}: add text")
    while True:
        offset = int(rng.integers(0, length))
        starts = np.arange(offset, len(stream) - length - 1, length)
        rng.shuffle(starts)
        for i in range(0, len(starts) - batch + 1, batch):
            rows = [stream[s : s + length + 1] for s in starts[i : i + batch]]
            yield torch.from_numpy(np.stack(rows))
