"""Prefix-RFT on a tiny model: who begins with a demonstration, and what the loss is, by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from foreword._errors import ParameterError
from foreword.training import Sharing

pytest.importorskip("trl")

from trl import GRPOConfig

from foreword.training import (
    EngineRollouts,
    PrefixRFTConfig,
    PrefixRFTTrainer,
    SharedPrefixGRPOTrainer,
)

DEMONSTRATION = " in a castle with the king and all of his horses. He was happy."
GROUP = 4
LONGEST = 24


@dataclass
class Case:
    """Makes trainers on the tiny model, and keeps what their reward function has seen."""

    model: Callable[..., Any]
    tokenizer: Any
    prompts: Any
    settings: dict[str, Any]
    seen: list[tuple[str, list[int], float]] = field(default_factory=list)
    handed: list[int] = field(default_factory=list)  # tokens, beside `seen`
    last: Any = None

    def reward(self, prompts: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
        rewards = [float(sum(ids) % 5) for ids in completion_ids]
        self.seen += zip(prompts, completion_ids, rewards, strict=True)
        self.handed += [len(b.prefix) for b in getattr(self.last, "_beginnings", None) or ()]
        return rewards

    def rewards(self) -> dict[tuple[int, ...], float]:
        return {tuple(ids): reward for _, ids, reward in self.seen}

    def data(self, demonstration: Any = DEMONSTRATION) -> Any:
        column = [demonstration] * len(self.prompts)
        if not isinstance(demonstration, str | None):
            column = list(demonstration)
        import datasets

        rows = zip(self.prompts["prompt"], column, strict=True)
        features = datasets.Features(
            {"prompt": datasets.Value("string"), "demonstration": datasets.Value("string")}
        )
        return datasets.Dataset.from_list(
            [{"prompt": p, "demonstration": d} for p, d in rows], features=features
        )

    def config(self, kind: Any = PrefixRFTConfig, **changed: Any) -> Any:
        base = {
            "per_device_train_batch_size": 8,
            "num_generations": GROUP,
            "max_completion_length": LONGEST,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
        }
        return kind(**{**self.settings, **base, **changed})

    def trainer(
        self, *, kind: Any = PrefixRFTTrainer, args: Any = None, data: Any = None, **changed: Any
    ) -> Any:
        given = {k: changed.pop(k) for k in ("eval_dataset", "rollouts") if k in changed}
        self.last = kind(
            model=self.model(),
            reward_funcs=self.reward,
            args=self.config(**changed) if args is None else args,
            train_dataset=self.data() if data is None else data,
            processing_class=self.tokenizer,
            sharing=Sharing(min_run=4, min_gain=0),
            **given,
        )
        return self.last

    @property
    def demonstration(self) -> list[int]:
        ids = self.tokenizer(DEMONSTRATION, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def begun(self) -> list[int]:
        """Tokens that each completion has in common with the demonstration at its beginning."""
        result = []
        for _, ids, _ in self.seen:
            pairs = zip(ids, self.demonstration, strict=False)
            differ = (i for i, (a, b) in enumerate(pairs) if a != b)
            result.append(next(differ, min(len(ids), len(self.demonstration))))
        return result


@pytest.fixture
def case(tiny_model: Any, tokenizer: Any, prompts: Any, trainer_settings: dict[str, Any]) -> Case:
    return Case(tiny_model, tokenizer, prompts, trainer_settings)


@dataclass
class Loss:
    """One loss that a trainer computed: of what, with which weights, and its gradients."""

    inputs: dict[str, Any]
    weights: dict[str, torch.Tensor]
    value: float
    grads: dict[str, torch.Tensor]


def losses(trainer: Any) -> list[Loss]:
    """Train, and keep each loss."""
    found: list[Loss] = []
    plain = trainer._compute_loss

    def compute(model: Any, inputs: Any) -> Any:
        before = copy.deepcopy(inputs)
        loss = plain(model, inputs)
        named = dict(model.named_parameters())
        grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
        weights = {name: value.detach().clone() for name, value in named.items()}
        found.append(Loss(before, weights, loss.item(), dict(zip(named, grads, strict=True))))
        return loss

    trainer._compute_loss = compute
    trainer.train()
    return found


def by_hand(
    case: Case, loss: Loss, config: Any, beginnings: dict[Any, int]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a micro-batch and its gradients, row by row without padding, sharing or TRL."""
    model = case.model()
    model.load_state_dict(loss.weights, strict=False)
    inputs, rewards = loss.inputs, case.rewards()
    rows: list[tuple[Any, ...]] = []
    for i in range(len(inputs["prompt_ids"])):
        prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()].tolist()
        ids = inputs["completion_ids"][i][inputs["completion_mask"][i].bool()].tolist()
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1)
        entropy = -(logps.exp() * logps).sum(-1).detach()
        rows.append((tuple(prompt), ids, logps[range(len(ids)), ids], entropy))
    entropies = torch.cat([e[: beginnings[p, tuple(ids)]] for p, ids, _, e in rows])
    keep = len(entropies) - math.floor(0.8 * len(entropies))
    least = entropies.sort(descending=True).values[keep - 1] if keep else math.inf
    least = {"entropy": least, "all": -1.0, "none": math.inf}[config.prefix_update]
    total = torch.zeros(())
    for i, (prompt, ids, logp, entropy) in enumerate(rows):
        length = beginnings[prompt, tuple(ids)]
        reward = rewards[tuple(ids)]
        group = [(rewards[c], beginnings[p, c]) for p, c in beginnings if p == prompt]
        assert len(group) == GROUP
        plain = [r for r, n in group if n == 0]
        if config.prefix_advantage == "group":
            begin = after = reward - sum(r for r, _ in group) / GROUP
        else:
            begin = (reward - sum(plain) / len(plain)) / config.prefix_rollouts
            after = reward if length else reward - sum(plain) / len(plain)
        old = logp.detach()
        if "old_per_token_logps" in inputs:
            old = inputs["old_per_token_logps"][i][: len(ids)]
        for t in range(len(ids)):
            advantage = after
            if t < length:
                advantage = begin if entropy[t] >= least else 0.0
            ratio = (logp[t] - old[t]).exp()
            clipped = ratio.clamp(0.8, 1.2)
            total = total - torch.min(ratio * advantage, clipped * advantage)
    total = total / (len(rows) * LONGEST)
    total.backward()
    return total.item(), {n: p.grad for n, p in model.named_parameters()}


def lengths(case: Case, found: list[Loss]) -> dict[Any, int]:
    """The length of the prefix for each prompt and completion; asserts that batches mark it."""
    rows = zip(case.seen, case.handed, strict=True)
    told = {(tuple(case.tokenizer(p)["input_ids"]), tuple(ids)): n for (p, ids, _), n in rows}
    for inputs in (loss.inputs for loss in found):
        for i, mask in enumerate(inputs["prefix_mask"]):
            prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()].tolist()
            ids = inputs["completion_ids"][i][inputs["completion_mask"][i].bool()].tolist()
            length = told[tuple(prompt), tuple(ids)]
            assert mask.tolist() == [t < length for t in range(len(mask))]
    return told


def test_the_last_rollout_of_each_group_begins_with_the_demonstration(case: Case) -> None:
    trainer = case.trainer(max_steps=3, prefix_decay_steps=2, prefix_high=0.95)
    trainer.train()
    begun = case.begun()
    assert len(begun) == 3 * 8
    handed = case.handed[GROUP - 1 :: GROUP]
    assert min(handed) >= 1
    assert [n for i, n in enumerate(case.handed) if i % GROUP != GROUP - 1] == [0] * 18
    assert all(a >= b for a, b in zip(begun, case.handed, strict=True))
    assert max(n for i, n in enumerate(begun) if i % GROUP != GROUP - 1) <= 1  # by chance
    assert max(len(ids) for _, ids, _ in case.seen) <= LONGEST
    assert all(len(ids) > n for (_, ids, _), n in zip(case.seen, case.handed, strict=True))
    logged = [entry for entry in trainer.state.log_history if "prefix_rft/low" in entry]
    assert [round(entry["prefix_rft/low"], 3) for entry in logged] == [0.95, 0.5, 0.05]
    total = len(case.demonstration)
    assert logged[0]["prefix_rft/ratio_mean"] == pytest.approx(int(0.95 * total) / total)
    assert handed[0] == handed[1] == int(0.95 * total)
    first = [reward for _, _, reward in case.seen[:8]]
    assert logged[0]["reward/hybrid"] == pytest.approx((first[3] + first[7]) / 2)
    ordinary = [r for i, r in enumerate(first) if i % GROUP != GROUP - 1]
    assert logged[0]["reward/on_policy"] == pytest.approx(sum(ordinary) / 6)
    assert all(entry["sharing/tokens_saved"] > 0 for entry in logged)


@pytest.mark.parametrize(
    ("advantage", "update"),
    [
        *(("group", update) for update in ("entropy", "all")),
        *(("prefix_baseline", update) for update in ("entropy", "none")),
    ],
)
def test_the_loss_is_what_the_paper_says(case: Case, advantage: str, update: str) -> None:
    args = case.config(
        prefix_advantage=advantage,
        prefix_update=update,
        prefix_low_start=0.5,
        prefix_high=0.9,
        max_steps=2,
    )
    found = losses(case.trainer(args=args))
    assert len(found) == 2
    marked = lengths(case, found)
    for loss in found:
        expected, grads = by_hand(case, loss, args, marked)
        assert loss.value == pytest.approx(expected, abs=2e-5)
        for name, grad in grads.items():
            assert (loss.grads[name] - grad).abs().max() < 2e-4 * max(1.0, grad.abs().max())
    assert {len(loss.inputs["prefix_mask"]) for loss in found} == {8}


@pytest.mark.parametrize("advantage", ["group", "prefix_baseline"])
def test_further_iterations_use_the_same_batch_unchanged(case: Case, advantage: str) -> None:
    args = case.config(
        prefix_advantage=advantage,
        num_iterations=2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        max_steps=2,
        prefix_low_start=0.5,
    )
    found = losses(case.trainer(args=args))
    assert len(found) == 4
    marked = lengths(case, found)
    for first, second in zip(found[:2], found[2:], strict=True):
        assert torch.equal(first.inputs["completion_ids"], second.inputs["completion_ids"])
        assert torch.equal(first.inputs["advantages"], second.inputs["advantages"])
        assert first.inputs["prefix_mask"].any()
    for loss in found:
        expected, _ = by_hand(case, loss, args, marked)
        assert loss.value == pytest.approx(expected / 2, abs=2e-5)  # over two micro-batches
    assert found[2].value != pytest.approx(found[0].value, abs=1e-6)


@pytest.mark.parametrize("none", ["no demonstration", "no prefix"])
def test_without_prefixes_it_is_grpo(case: Case, none: str) -> None:
    changed: dict[str, Any] = {"prefix_rollouts": 0} if none == "no prefix" else {}
    data = case.data() if none == "no prefix" else case.data(None)
    ours = losses(case.trainer(data=data, max_steps=2, **changed))
    args = case.config(GRPOConfig, loss_type="dr_grpo", scale_rewards="none", max_steps=2)
    theirs = losses(case.trainer(kind=SharedPrefixGRPOTrainer, args=args, data=data))
    assert [loss.value for loss in ours] == [loss.value for loss in theirs]
    for name, grad in ours[1].grads.items():  # after a step
        assert torch.equal(grad, theirs[1].grads[name])
        assert torch.equal(ours[1].weights[name], theirs[1].weights[name])


def test_prompts_without_a_demonstration_have_ordinary_rollouts(case: Case) -> None:
    trainer = case.trainer(data=case.data([DEMONSTRATION, None] * 4), max_steps=4)
    trainer.train()
    with_one = set(case.prompts["prompt"][::2])
    for i, ((prompt, _, _), begun) in enumerate(zip(case.seen, case.begun(), strict=True)):
        assert (begun > 3) == (i % GROUP == GROUP - 1 and prompt in with_one)


def test_evaluation_never_hands_out_a_prefix(case: Case) -> None:
    trainer = case.trainer(
        eval_dataset=case.data(), per_device_eval_batch_size=8, demonstration_loss=1.0
    )
    told = trainer.evaluate()
    assert len(case.seen) == 8 * GROUP
    assert max(case.begun()) <= 1
    assert not any("prefix_rft" in name or "hybrid" in name for name in told)
    mean = sum(reward for _, _, reward in case.seen) / len(case.seen)
    assert told["eval_reward"] == pytest.approx(mean)


def test_a_resumed_run_goes_on_with_the_schedule(case: Case) -> None:
    changed = {"max_steps": 4, "prefix_decay_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = case.trainer(**changed)
    whole.train()
    again = case.trainer(**changed)
    again.train(resume_from_checkpoint=f"{case.settings['output_dir']}/checkpoint-2")
    for name in ("prefix_rft/low", "prefix_rft/ratio_mean", "reward/hybrid"):
        told = [
            [entry[name] for entry in t.state.log_history if name in entry] for t in (whole, again)
        ]
        assert len(told[0]) == 4
        assert told[0] == pytest.approx(told[1])
    assert len(case.seen) == (4 + 2) * 8


def test_demonstrations_have_a_loss_of_their_own_in_the_same_forward(case: Case) -> None:
    """Without prefixes and with equal rewards only the likelihood is left."""
    case.reward = lambda prompts, **kwargs: [1.0] * len(prompts)  # type: ignore[method-assign]
    demonstrations = [DEMONSTRATION, " far away.", None, " in a box"] * 2
    trainer = case.trainer(
        data=case.data(demonstrations),
        prefix_rollouts=0,
        demonstration_loss=0.5,
        max_steps=2,
        learning_rate=0.0,
        steps_per_generation=2,  # so each step has its part of them
        shuffle_dataset=False,
    )
    calls = []
    forward = trainer.shared._plain
    trainer.shared._plain = lambda *a, **k: (
        calls.append("fused_lm_head" in k and torch.is_grad_enabled()) or forward(*a, **k)
    )
    first, second = losses(trainer)
    model = case.model()
    total, tokens = torch.zeros(()), 0
    for prompt, text in zip(case.prompts["prompt"][:4], demonstrations[:4], strict=True):
        if text is None:
            continue
        head = case.tokenizer(prompt)["input_ids"]
        ids = case.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*ids, case.tokenizer.eos_token_id]
        logits = model(torch.tensor([head + ids])).logits[0, len(head) - 1 : -1]
        total = total - logits.log_softmax(-1)[range(len(ids)), ids].sum()
        tokens += len(ids)
    expected = 0.5 * total / tokens
    expected.backward()
    assert (first.value + second.value) / 2 == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        mean = (first.grads[name] + second.grads[name]) / 2
        assert (mean - parameter.grad).abs().max() < 1e-4
    assert sum(calls) == 2  # one for each loss


def test_engine_rollouts_continue_prefixes(case: Case) -> None:
    trainer = case.trainer(rollouts=EngineRollouts(), max_steps=2, demonstration_loss=0.1)
    trainer.train()
    begun = case.begun()
    assert min(begun[GROUP - 1 :: GROUP]) > 3
    assert max(n for i, n in enumerate(begun) if i % GROUP != GROUP - 1) <= 1
    assert max(len(ids) for _, ids, _ in case.seen) <= LONGEST
    logged = [entry for entry in trainer.state.log_history if "rollouts/logp_gap_max" in entry]
    assert len(logged) == 2  # of the tokens that the engine wrote
    assert max(entry["rollouts/logp_gap_max"] for entry in logged) < 1e-3


def test_inputs_that_cannot_be_used_are_refused(case: Case) -> None:
    with pytest.raises(ParameterError, match="no column 'demonstration'"):
        case.trainer(data=case.prompts)
    with pytest.raises(ParameterError, match="row 0 of train_dataset"):
        case.trainer(max_completion_length=8)
    with pytest.raises(ParameterError, match="prefix_keep=40"):
        case.trainer(prefix_keep=40, max_completion_length=40)
    with pytest.raises(ParameterError, match="takes a PrefixRFTConfig"):
        case.trainer(args=case.config(GRPOConfig))
    case.trainer(data=case.prompts, prefix_rollouts=0)  # there is nothing to hand out


def test_a_prompt_that_leaves_no_room_is_refused(case: Case) -> None:
    trainer = case.trainer(max_steps=1)
    trainer.model.config.max_position_embeddings = 30
    with pytest.raises(ParameterError, match="context of 30"):
        trainer.train()
