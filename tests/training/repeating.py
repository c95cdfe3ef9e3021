"""A training loop on repeated rows and one on shared ones, and how far apart they end.

What tests/training/test_equality.py compares, with the batches, losses and tiny models it uses.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.training import Packed, attach, pack
from foreword.training._model import inputs

VOCAB = 61
FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral")

Rows = list[list[int]]
Scores = list[Tensor]  # for each row: logits of what was wanted of it, [completion, vocabulary]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of tokens, and where the completion of each begins."""

    rows: Rows
    starts: list[int]


def tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=count)


def group(prompt: list[int], lengths: Sequence[int], seed: int = 0) -> Batch:
    rows = [prompt + tokens(n, 100 * seed + i) for i, n in enumerate(lengths)]
    return Batch(rows, [len(prompt)] * len(rows))


def _joined(*batches: Batch) -> Batch:
    rows = [row for batch in batches for row in batch.rows]
    return Batch(rows, [start for batch in batches for start in batch.starts])


def _conversations() -> Batch:
    """Three levels: a system prompt, two questions, and two answers to what was said on each."""
    system = tokens(9, 1)
    questions = [system + tokens(n, 20 + n) for n in (6, 4)]
    turns = [question + tokens(5, 30 + i) for question in questions for i in range(2)]
    return _joined(*(group(turn, (3, 7), seed=40 + i) for i, turn in enumerate(turns)))


_SYSTEM = tokens(8, 2)
_UNEQUAL = (5, 1, 9, 2, 7, 3, 4, 8)
CASES = {
    "group of 1": group(tokens(11, 3), (5,)),
    "group of 2": group(tokens(11, 3), _UNEQUAL[:2]),
    "group of 3": group(tokens(11, 3), _UNEQUAL[:3]),
    "group of 8": group(tokens(11, 3), _UNEQUAL),
    "group of 16": group(tokens(11, 3), _UNEQUAL * 2),
    "one empty completion": group(tokens(7, 4), (4, 0, 6)),
    "prompt of 1": group(tokens(1, 5), (4, 6, 1)),
    "prompt of 2": group(tokens(2, 6), (4, 6, 1)),
    "groups behind one system prompt": _joined(
        *(group(_SYSTEM + tokens(n, n), (6, 2, 4), seed=n) for n in (3, 5, 1)),
        group(tokens(6, 7), (3, 5), seed=9),
    ),
    "three levels": _conversations(),
    "identical completions": Batch([tokens(14, 8)] * 4, [9] * 4),
}
MIXED = CASES["groups behind one system prompt"]


def build(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A tiny random model, wide enough in its values for attention to matter."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=family == "Qwen2",
        sliding_window=None,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **({} if family == "Qwen2" else {"head_dim": 8}),
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype)
    with torch.no_grad():  # norms begin as ones, biases as zeros, which hides what is left out
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


Method = Callable[[Any, Batch], Scores]


def repeated(model: Any, batch: Batch) -> Scores:
    """Rows padded on the right, where no token before sees it."""
    width = max(map(len, batch.rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in batch.rows])
    logits = model(input_ids=ids, use_cache=False).logits
    wanted = zip(logits, batch.rows, batch.starts, strict=True)
    return [row[start - 1 : len(tokens) - 1] for row, tokens, start in wanted]


def shared(model: Any, batch: Batch, change: Callable[[Packed], Packed] = lambda x: x) -> Scores:
    packed = change(pack(batch.rows, min_run=1))
    logits = model(**inputs(packed, torch.device("cpu"))).logits[0]
    places = [packed.places(i)[start - 1 :] for i, start in enumerate(batch.starts)]
    return [logits[torch.tensor(row, dtype=torch.long)] for row in places]


def log_probs(scores: Scores, batch: Batch) -> Tensor:
    flat = torch.cat(scores).log_softmax(-1)
    targets = [t for row, s in zip(batch.rows, batch.starts, strict=True) for t in row[s:]]
    return flat.gather(-1, torch.tensor(targets)[:, None])[:, 0]


def weights(count: int) -> Tensor:
    return torch.linspace(-1, 1, count, dtype=torch.float64)


def grpo(scores: Scores, reference: Scores, batch: Batch) -> Tensor:
    """A clipped ratio to log-probabilities of a policy that is a little older, weighted."""
    now = log_probs(scores, batch)
    ratio = torch.exp(now - log_probs(reference, batch).mul(0.1).add(now.detach(), alpha=0.9))
    advantage = weights(len(now)).to(now.dtype)
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()


def entropy(scores: Scores, reference: Scores, batch: Batch) -> Tensor:
    log = torch.cat(scores).log_softmax(-1)
    return -(log.exp() * log).sum(-1).mean()


def divergence(scores: Scores, reference: Scores, batch: Batch) -> Tensor:
    gap = log_probs(reference, batch) - log_probs(scores, batch)
    return (gap.exp() - gap - 1).mean()


def preference(scores: Scores, reference: Scores, batch: Batch) -> Tensor:
    """DPO's, of neighbouring rows."""
    gap = log_probs(scores, batch) - log_probs(reference, batch)
    texts = torch.stack([row.sum() for row in gap.split([len(s) for s in scores])])
    return -torch.nn.functional.logsigmoid(0.3 * (texts[::2] - texts[1::2])).mean()


def together(scores: Scores, reference: Scores, batch: Batch) -> Tensor:
    terms = (grpo, entropy, divergence)
    return torch.stack([term(scores, reference, batch) for term in terms]).sum()


Loss = Callable[[Scores, Scores, Batch], Tensor]
LOSSES: tuple[Loss, ...] = (grpo, entropy, divergence, preference)


def train(
    model: Any,
    method: Method,
    batch: Batch,
    *,
    loss: Loss = together,
    optimiser: type[torch.optim.Optimizer] = torch.optim.AdamW,
    reference: Any = None,
) -> dict[str, Tensor]:
    """Everything that three steps compute, by name. Mutates the model."""
    seen: dict[str, Tensor] = {}
    steps = optimiser([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        with torch.no_grad():
            frozen = method(reference or model, batch)
        scores = method(model, batch)
        value = loss(scores, [x * 0.9 for x in frozen] if reference is None else frozen, batch)
        seen[f"log-probabilities {step}"] = log_probs(scores, batch).detach()
        seen[f"loss {step}"] = value.detach()
        steps.zero_grad()
        value.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                seen[f"gradient {step} {name}"] = parameter.grad.clone()
        steps.step()
    for name, parameter in model.named_parameters():
        seen[f"parameter {name}"] = parameter.detach().clone()
    return seen


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference, relative to the largest value of its tensor, and where it is.

    A gradient that ought to be zero has no size of its own: none counts as smaller than a
    thousandth of the largest.
    """
    assert one.keys() == other.keys()
    floor = max(float(x.abs().max()) for name, x in other.items() if "gradient" in name) / 1000
    worst = {
        name: float((one[name] - x).abs().max()) / max(float(x.abs().max()), floor)
        for name, x in other.items()
    }
    return max((value, name) for name, value in worst.items())


def assert_equal(
    model: Any, batch: Batch, limit: float, method: Method = shared, **how: Any
) -> None:
    """Three steps of `model`, shared, are those of its copy, repeated. Mutates neither."""
    plain, ours = copy.deepcopy(model), copy.deepcopy(model)
    attach(ours)
    right = train(plain, repeated, batch, **how)
    gap, name = distance(train(ours, method, batch, **how), right)
    assert gap <= limit, f"{name} differs by {gap:.3g}"
