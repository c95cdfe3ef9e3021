"""Real sentences with a sentiment, a small model that knows it, and attacks on what it is told.

The data is SST-2: sentences, and the same test sentences with spelling bugs that others made
against another model. A model of a few hundred thousand weights reads the training sentences, then
a question, then the answer. A prefix has to learn the task anew at another token, `ANSWER`, which
the model never saw, with the same two answers: without one the model is at chance there.

Attacks see the labels and the model behind its trained prefix; they know nothing of a second one.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from math import log
from typing import Any, NamedTuple

import torch

from experiments._small import tiny_llama
from experiments.lab import data_file
from foreword.prefixes import PrefixRows, run
from foreword.prefixes.methods import Batch, Example
from foreword.prefixes.objectives import token_log_probs

PIECES, LONGEST = 1500, 72
QUESTION, ANSWER, NEGATIVE, POSITIVE = range(PIECES, PIECES + 4)
LABELS = torch.tensor([NEGATIVE, POSITIVE])

Scorer = Callable[[Sequence[Example]], "torch.Tensor"]
"""`[examples]`: log p(right) - log p(wrong) of the two answers."""


class Sentence(NamedTuple):
    text: str
    label: int


@cache
def sentences(part: str) -> tuple[Sentence, ...]:
    """ "train", "dev" or "test"."""
    lines = data_file(f"sst2/stsa.binary.{part}").read_text(encoding="utf-8").splitlines()
    return tuple(Sentence(line[2:].lower().strip(), int(line[0])) for line in lines if line)


@cache
def pairs() -> tuple[tuple[Sentence, Sentence], ...]:
    """Test sentences, clean and with bugs, where the two differ."""
    both = []
    for kind in ("clean", "bug"):
        records = json.loads(data_file(f"sst2/perturbed_{kind}.json").read_text(encoding="utf-8"))
        both.append(
            [
                Sentence(
                    paragraph["context"].lower().strip(),
                    int(paragraph["qas"][0]["answers"][0]["text"] == "positive"),
                )
                for record in records["data"]
                for paragraph in record["paragraphs"]
            ]
        )
    return tuple(pair for pair in zip(*both, strict=True) if pair[0].text != pair[1].text)


@cache
def tokenizer() -> Any:
    """Byte pairs of the training sentences."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=["<unk>"], show_progress=False, min_frequency=2
    )
    made.train_from_iterator([each.text for each in sentences("train")], trainer)
    return made


def encode(text: str) -> list[int]:
    """Token ids, cut to the longest the model is shown."""
    ids: list[int] = tokenizer().encode(text).ids[:LONGEST]
    return ids


def example(sentence: Sentence, ask: int = ANSWER) -> Example:
    """A sentence and the question as the prompt, the answer as the completion."""
    ids = [*encode(sentence.text), ask]
    return Example((*ids, int(LABELS[sentence.label])), len(ids), {"label": sentence.label})


def pretrained(steps: int, seed: int = 0) -> Any:
    """A model that read the training sentences, then `QUESTION` and the answer. One core: a minute.

    Half of the loss is the answer's, half the text's.
    """
    from transformers import get_scheduler

    model = tiny_llama(PIECES + 4, layers=3, hidden=64, context=128, seed=seed)
    known = [example(each, QUESTION) for each in sentences("train")]
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    scheduler = get_scheduler("cosine", optimizer, steps // 20, steps)
    for _ in range(steps):
        chosen = [Example(each.ids) for each in rng.choices(known, k=48)]
        batch = Batch.of(chosen)
        scores, kept = token_log_probs(run(model, batch.ids, batch.mask).logits, batch.labels)
        last = kept.sum(-1, keepdim=True) - 1
        loss = -0.5 * (scores.gather(1, last).mean() + scores.sum() / kept.sum())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model.requires_grad_(False)


@torch.no_grad()
def margins(model: Any, batch: Batch, rows: PrefixRows | None) -> torch.Tensor:
    """`[rows]`: log p(right) - log p(wrong) of the two answers; above 0 is right."""
    logits = run(model, batch.ids, batch.mask, rows).logits
    at = torch.tensor([each.prompt - 1 for each in batch.examples])
    two = logits[torch.arange(len(batch)), at][:, LABELS]
    right = torch.tensor([each.fields["label"] for each in batch.examples])
    sign = torch.where(right == 1, 1.0, -1.0)
    made: torch.Tensor = (two[:, 1] - two[:, 0]) * sign
    return made


# -- attacks ---------------------------------------------------------------------------------


def bugs(word: str, rng: random.Random) -> list[str]:
    """Four ways to misspell a word: letters swapped, dropped, doubled, or a blank put in."""
    at = rng.randrange(len(word) - 1)
    return [
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[: at + 1] + word[at:],
        word[: at + 1] + " " + word[at + 1 :],
    ]


def misspelled(given: Sequence[Sentence], score: Scorer, edits: int, seed: int) -> list[Sentence]:
    """Bugs in the words that matter most, greedily, until the answer flips (after TextBugger).

    Words are ranked by how far the margin falls without them; at most `edits` are misspelled, each
    in the way that hurts most.
    """
    rng = random.Random(seed)
    words = [each.text.split() for each in given]
    places = [[i for i, word in enumerate(each) if len(word) > 2] for each in words]
    without = [
        Sentence(" ".join(words[row][:i] + words[row][i + 1 :]), given[row].label)
        for row, each in enumerate(places)
        for i in each
    ]
    fallen = iter(score([example(each) for each in without]).tolist())
    ranked = [[i for _, i in sorted((next(fallen), i) for i in each)] for each in places]
    for turn in range(edits):
        now = score([example(s) for s in joined(words, given)]).tolist()
        tries = [
            (row, ranked[row][turn], bug)
            for row in range(len(given))
            if now[row] > 0 and turn < len(ranked[row])
            for bug in bugs(words[row][ranked[row][turn]], rng)
        ]
        if not tries:
            break
        texts = [
            Sentence(" ".join([*words[row][:i], bug, *words[row][i + 1 :]]), given[row].label)
            for row, i, bug in tries
        ]
        best = dict.fromkeys(range(len(given)), float("inf"))
        for (row, i, bug), value in zip(tries, score([example(t) for t in texts]), strict=True):
            if float(value) < min(best[row], now[row]):
                best[row], words[row] = float(value), [*words[row][:i], bug, *words[row][i + 1 :]]
    return joined(words, given)


def joined(words: Sequence[Sequence[str]], given: Sequence[Sentence]) -> list[Sentence]:
    return [Sentence(" ".join(w), s.label) for w, s in zip(words, given, strict=True)]


def polar(count: int) -> tuple[list[str], list[str]]:
    """The words that speak most for negative and for positive in the training sentences."""
    seen = [Counter[str](), Counter[str]()]
    for text, label in sentences("train"):
        seen[label].update(set(text.split()))
    odds = {
        word: log((seen[1][word] + 1) / (seen[0][word] + 1))
        for word in seen[0] | seen[1]
        if seen[0][word] + seen[1][word] >= 8 and word.isalpha()
    }
    ranked = sorted(odds, key=lambda word: (odds[word], word))
    return ranked[:count], ranked[::-1][:count]


def triggered(
    given: Sequence[Sentence], shown: Sequence[Sentence], score: Scorer
) -> tuple[list[Sentence], dict[str, str]]:
    """Three words in front of all sentences of a class, the same for all: a universal trigger.

    Chosen one after another among the words that speak most for the other class, to hurt most on
    the sentences `shown`. Returns the given sentences behind their triggers, and the triggers.
    """
    triggers = {}
    for label, candidates in ((1, polar(12)[0]), (0, polar(12)[1])):
        mine = [each for each in shown if each.label == label]
        trigger = ""
        for _ in range(3):
            tries = [f"{trigger} {word}".strip() for word in candidates]
            rows = [example(Sentence(f"{t} {s.text}", label)) for t in tries for s in mine]
            hurt = score(rows).view(len(tries), -1).mean(-1)
            trigger = tries[int(hurt.argmin())]
        triggers[label] = trigger
    made = [Sentence(f"{triggers[s.label]} {s.text}", s.label) for s in given]
    return made, {("negative", "positive")[label]: text for label, text in triggers.items()}
