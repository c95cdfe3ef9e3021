"""Addition written out column by column: a task with demonstrations and an answer to check.

A problem is `0047+0385=`, its numbers padded to the same count of digits. The solution adds the
columns from the right, the carry of the column before included, and ends with the answer:

    75=12;48=13;03=04;00=00;#0432

and an end of line, which is the end of the text. Whether a solution is right is read off what comes
after `#`, and nothing else. Problems of training, demonstrations, choice and test have no pair of
numbers in common.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from experiments._small import tiny_llama
from foreword import LLM, SamplingParams
from foreword.models import wrap_model
from foreword.prefixes import run
from foreword.prefixes.methods import Batch, Example
from foreword.prefixes.objectives import lm_loss

PAD, END = "_", "\n"
ALPHABET = PAD + END + "0123456789+=;#"
MARK = "#"
RATE = 3e-3


@dataclass(frozen=True, order=True)
class Problem:
    """Two numbers to add, written with `digits` digits each."""

    digits: int
    a: int
    b: int

    @property
    def prompt(self) -> str:
        return f"{self.a:0{self.digits}d}+{self.b:0{self.digits}d}="

    @property
    def answer(self) -> int:
        return self.a + self.b

    @property
    def solution(self) -> str:
        """What a demonstration says, without the end of line."""
        carry, columns = 0, []
        for place in range(self.digits):
            x, y = self.a // 10**place % 10, self.b // 10**place % 10
            columns.append(f"{x}{y}={x + y + carry:02d};")
            carry = (x + y + carry) // 10
        return "".join(columns) + f"{MARK}{self.answer:0{self.digits}d}"

    @property
    def text(self) -> str:
        return self.prompt + self.solution + END


def ids(text: str) -> tuple[int, ...]:
    """A text's tokens, one for each character."""
    return tuple(map(ALPHABET.index, text))


def text(tokens: Sequence[int]) -> str:
    """What the tokens say."""
    return "".join(ALPHABET[token] for token in tokens)


def tokenizer() -> Any:
    """The alphabet as transformers and TRL take it: a token for each character, padded on the left.

    Its ids are those of `ids`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({each: i for i, each in enumerate(ALPHABET)}, unk_token=PAD))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=PAD, eos_token=END, padding_side="left"
    )


def given(completion: str) -> int | None:
    """The answer that a completion gives, or None if it gives none that can be read."""
    _, mark, tail = completion.partition(MARK)
    tail = tail.removesuffix(END)
    return int(tail) if mark and tail.isascii() and tail.isdigit() else None


def right(prompts: Any, completions: Sequence[str], answer: Sequence[int], **_: Any) -> list[float]:
    """TRL's shape of a reward: 1 for the right answer, else 0."""
    return [float(given(c) == a) for c, a in zip(completions, answer, strict=True)]


def draw(rng: random.Random, digits: int) -> Problem:
    """A problem whose larger number has all of its digits."""
    a, b = rng.randrange(10 ** (digits - 1), 10**digits), rng.randrange(10**digits)
    return Problem(digits, *((a, b) if rng.random() < 0.5 else (b, a)))


def distinct(rng: random.Random, digits: int, count: int, taken: set[Problem]) -> list[Problem]:
    """`count` problems that are not taken yet, in either order. Mutates `taken`."""
    found: list[Problem] = []
    while len(found) < count:
        problem = draw(rng, digits)
        if problem not in taken:
            taken |= {problem, replace(problem, a=problem.b, b=problem.a)}
            found.append(problem)
    return found


def document(rng: random.Random, lengths: Sequence[int], tokens: int) -> Example:
    """Solved problems one after the other, cut to `tokens` tokens, from anywhere in the first."""
    written: list[int] = []
    start = rng.randrange(16)
    while len(written) < tokens + start:
        written += ids(draw(rng, rng.choice(lengths)).text)
    return Example(tuple(written[start : start + tokens]))


def room(digits: int) -> int:
    """Tokens that a solution of `digits` digits needs, its end included."""
    return 7 * digits + 3


def fresh(seed: int) -> Any:
    """A random model of the alphabet: two layers, 91 200 parameters."""
    model = tiny_llama(len(ALPHABET), layers=2, hidden=64, context=1024, spread=0.1, seed=seed)
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = ids(END)[0], ids(PAD)[0]
    return model


def pretrained(
    seed: int,
    lengths: Sequence[int],
    *,
    steps: int,
    tokens: int = 48,
    rows: int = 32,
    until: Callable[[Any], bool] = lambda model: False,
) -> tuple[Any, int]:
    """A model that has read solved problems, and the steps it took.

    It stops when `until` says so, which is asked every 25 steps, or after `steps`.

    Args:
        seed: of the weights and of what is read.
        lengths: digits of the problems, each as often as it is named.
        steps: the most steps; the rate is constant, after 30 steps of warming up.
        tokens: of each text.
        rows: texts of a step.
    """
    model, rng = fresh(seed), random.Random(f"pretrain {seed}")
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    for step in range(1, steps + 1):
        batch = Batch.of([document(rng, lengths, tokens) for _ in range(rows)])
        lm_loss(run(model, batch.ids, batch.mask).logits, batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, step / 30)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0 and until(model):
            return model, step
    return model, steps


def solve(
    model: Any, problems: Sequence[Problem], *, samples: int = 0, head: str = "", seed: int = 0
) -> list[list[bool]]:
    """Whether the model solves each of some problems of equal length; written by the engine.

    Args:
        model: is left as it is.
        samples: how many answers are drawn at temperature 1; none is one greedy answer.
        head: what stands in front of each problem.

    Returns:
        For each problem one verdict per answer.
    """
    copied = tiny_copy(model)
    llm = LLM(wrap_model(copied, name="arithmetic"), kv_memory="64MiB")
    params = SamplingParams(
        max_tokens=room(problems[0].digits),
        temperature=1.0 if samples else 0.0,
        n=samples or 1,
        seed=seed,
    )
    results = llm.generate([list(ids(head + problem.prompt)) for problem in problems], params)
    return [
        [given(text(output.token_ids)) == problem.answer for output in result.outputs]
        for problem, result in zip(problems, results, strict=True)
    ]


def tiny_copy(model: Any) -> Any:
    """A model of the same weights that the engine may keep, with PyTorch's attention."""
    copied = fresh(0)
    copied.load_state_dict(model.state_dict())
    return copied


def share(verdicts: Sequence[Sequence[bool]]) -> float:
    """The mean over all answers."""
    return fmean(fmean(each) for each in verdicts)


def any_of(verdicts: Sequence[Sequence[bool]]) -> float:
    """The share of problems of which one answer is right: pass@k for k answers."""
    return fmean(any(each) for each in verdicts)
