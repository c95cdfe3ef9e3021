"""Prefix-RFT: one rollout of each group goes on from the beginning of a demonstration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword._errors import ParameterError
from foreword.training._demonstrations import COLUMN, Demonstration, Demonstrations
from foreword.training._prefix_rft_config import PrefixRFTConfig
from foreword.training._prefix_rft_rules import (
    baseline_advantages,
    draw,
    lower_bound,
    prefix_length,
    top_entropy,
)
from foreword.training._trainers import SharedPrefixGRPOTrainer


@dataclass
class _Plan:
    """What the rows of one generation batch of this process begin with."""

    low: float
    prefixes: list[list[int]] = field(default_factory=list)  # empty for an ordinary rollout
    shares: list[float] = field(default_factory=list)  # of the demonstration, NaN for ordinary
    capped: list[float] = field(default_factory=list)  # 1 where less was handed out than was drawn
    demonstrations: list[tuple[int, ...]] = field(default_factory=list)  # first row of a group


@dataclass
class _Pass:
    """One loss: its own copy of the inputs, and what its forward finds."""

    inputs: dict[str, Any]
    likelihood: Tensor | None = None
    threshold: float | None = None


class PrefixRFTTrainer(SharedPrefixGRPOTrainer):
    """TRL's GRPO with shared prefixes, where demonstrations lead some of the rollouts.

        PrefixRFTTrainer(
            model=model,
            reward_funcs=exact_answer(),
            args=PrefixRFTConfig(output_dir="out", prefix_stop_at="####"),
            train_dataset=rows,  # prompt, demonstration, and what the rewards want
            processing_class=tokenizer,
        ).train()

    Prefix-RFT (arXiv 2507.01679). Of the N rollouts of a prompt with a demonstration y*, the last
    `prefix_rollouts` begin with its first L tokens, ``L = floor(l |y*|)``, ``l ~ U(low_t, high)``, and
    the policy writes what follows. The prefix is part of the completion: in its length, in the
    group's rewards, and in the loss, where a prefix token has the importance ratio of any other token,
    of the policy to the policy that sampled, and where only the `prefix_entropy_share` of highest
    entropy under the current policy have an advantage. These are chosen among all prefix tokens of a
    micro-batch of one process, in the forward that the loss needs anyway; the others have advantage 0
    but still count in whatever the loss divides by. A KL penalty (`beta`) acts on all tokens.

    Rows of the data set have a column `demonstration`: text (tokenised by itself, and ended), token
    ids, or None: then all rollouts of the prompt are ordinary. All of them are checked at
    construction. Evaluation never hands out a prefix. The same seed gives the same shares l whatever
    the number of processes, also after resuming.

    Arguments are those of TRL's `GRPOTrainer` and of `SharedPrefixGRPOTrainer`. Logged beside theirs:
    `prefix_rft/low`, `prefix_rft/ratio_mean` (mean share handed out), `prefix_rft/capped` (share of
    hybrid rollouts that were handed less than was drawn, for `prefix_keep` or `prefix_stop_at`),
    `prefix_rft/tokens_share` (of completion tokens that are prefix), `prefix_rft/entropy_threshold`,
    `prefix_rft/advantage_on_policy` (mean advantage of the ordinary rollouts beside a hybrid one),
    `reward/hybrid`, `reward/on_policy`. `reward` has both: only `reward/on_policy` says how well the
    policy does.

    Raises:
        ParameterError: a demonstration or setting that cannot be used, with the way out.
        SharingError: as `SharedPrefixGRPOTrainer`.
    """

    args: PrefixRFTConfig
    _tag_names = ["trl", "prefix-rft"]
    _name = "Prefix-RFT"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: PrefixRFTConfig | None = None,
        *rest: Any,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = PrefixRFTConfig("Prefix-RFT")
        if not isinstance(args, PrefixRFTConfig):
            raise ParameterError(
                f"args is a {type(args).__name__}: PrefixRFTTrainer takes a PrefixRFTConfig"
            )
        super().__init__(model, reward_funcs, args, *rest, **kwargs)
        self._active = bool(args.prefix_rollouts or args.demonstration_loss)
        self._demonstrations = Demonstrations(
            self._tokenizer,
            keep=args.prefix_keep,
            stop_at=args.prefix_stop_at,
            longest=self.max_completion_length,
        )
        self._planned: _Plan | None = None
        self._passing: _Pass | None = None
        self._scored: Tensor | None = None
        self._generations = (-1, 0)  # optimiser step, and how often it has generated
        if self._active:
            self._refuse()
            if hasattr(self.train_dataset, "__len__"):
                self._demonstrations.check(self.train_dataset)

    def _refuse(self) -> None:
        if self.rollout_func is not None:
            raise ParameterError(
                "rollout_func writes completions by itself and knows no prefixes: pass rollouts=, or "
                "set prefix_rollouts=0 and demonstration_loss=0"
            )
        if self.tools or self.environment_factories is not None:
            raise ParameterError(
                "prefixes of demonstrations with tools or environments are not supported: a "
                "completion has one turn here"
            )
        if self._is_vlm:
            raise ParameterError("prefixes of demonstrations are for text; this is a processor")

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if COLUMN not in self._signature_columns:
            self._signature_columns.append(COLUMN)

    # ------------------------------------------------------------------ generation

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._active or not self.model.training:
            result: dict[str, Any] = super()._generate_and_score_completions(inputs)
            return result
        plan = self._planned = self._plan(inputs)
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._planned = None
        rewards, self._scored = self._scored, None
        assert rewards is not None
        self._mark(output, plan, self._one_reward(rewards))
        if self.args.demonstration_loss:
            self._carry_demonstrations(output, plan)
        return output

    def _plan(self, inputs: list[dict[str, Any]]) -> _Plan:
        args, step = self.args, self.state.global_step
        before, times = self._generations
        self._generations = (step, times + 1 if step == before else 0)
        plan = _Plan(
            lower_bound(
                step,
                start=args.prefix_low_start,
                end=args.prefix_low_end,
                steps=args.prefix_decay_steps,
                schedule=args.prefix_schedule,
            )
        )
        # Rows of a group lie side by side over all processes, as TRL's sampler and rewards have them.
        first = self.accelerator.process_index * len(inputs)
        for row, example in enumerate(inputs, first):
            place = row % self.num_generations
            hybrid = place >= self.num_generations - args.prefix_rollouts
            leads = bool(args.demonstration_loss) and place == 0
            read = self._demonstrations.read if hybrid or leads else _nothing
            shown = read(example.get(COLUMN), f"the demonstration of {example.get('prompt')!r}")
            prefix: list[int] = []
            drawn = 0
            if hybrid and shown is not None:
                share = draw(args.seed, step, self._generations[1], row, plan.low, args.prefix_high)
                drawn = int(share * len(shown.ids))
                prefix = list(shown.ids[: prefix_length(share, len(shown.ids), shown.limit)])
            total = len(shown.ids) if shown is not None else 1
            plan.prefixes.append(prefix)
            plan.shares.append(len(prefix) / total if prefix else torch.nan)
            plan.capped.append(float(drawn > len(prefix)) if prefix else torch.nan)
            plan.demonstrations.append(shown.ids if leads and shown is not None else ())
        return plan

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._planned
        if plan is None or not any(plan.prefixes):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        longest = self.max_completion_length
        begun = [[*p, *x] for p, x in zip(prompt_ids, plan.prefixes, strict=True)]
        completions, logps = super()._generate_single_turn(begun, *args, **kwargs)
        # A sample cut short is a sample with a smaller budget.
        whole = [[*x, *c][:longest] for x, c in zip(plan.prefixes, completions, strict=True)]
        if logps is not None:  # nobody sampled a prefix: TRL reads None as unknown
            logps = [
                [*[None] * len(x), *given][:longest]
                for x, given in zip(plan.prefixes, logps, strict=True)
            ]
        return whole, logps

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._scored = super()._calculate_rewards(*args, **kwargs)
        return self._scored

    def _one_reward(self, rewards: Tensor) -> Tensor:
        """Each row's weighted sum, NaN where no function gave one: `[rows of all processes]`."""
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return total.masked_fill(rewards.isnan().all(1), torch.nan)

    def _mark(self, output: dict[str, Any], plan: _Plan, rewards: Tensor) -> None:
        """Put the mask of prefixes into the batch, and advantages of its own if it has some."""
        mask = output["completion_mask"]
        lengths = torch.tensor([len(prefix) for prefix in plan.prefixes], device=mask.device)
        places = torch.arange(mask.shape[1], device=mask.device)
        output["prefix_mask"] = (places < lengths[:, None]) & mask.bool()
        rows = torch.stack(
            (
                lengths.float(),
                mask.sum(1).float(),
                output["prefix_mask"].sum(1).float(),
                torch.tensor(plan.shares, device=mask.device),
                torch.tensor(plan.capped, device=mask.device),
            ),
            1,
        )
        rows = self.accelerator.gather(rows)
        hybrid = rows[:, 0] > 0
        mine = slice(
            self.accelerator.process_index * len(lengths),
            (self.accelerator.process_index + 1) * len(lengths),
        )
        if self.args.prefix_advantage == "prefix_baseline" and self.args.prefix_rollouts:
            continuation, prefix = baseline_advantages(
                rewards, hybrid, self.num_generations, self.args.prefix_rollouts
            )
            output["advantages"] = torch.where(
                output["prefix_mask"], prefix[mine, None], continuation[mine, None]
            )
            everyone = continuation
        else:
            everyone = self.accelerator.gather(output["advantages"])
        self._log_generation(plan, rows, hybrid, rewards, everyone)

    def _log_generation(
        self, plan: _Plan, rows: Tensor, hybrid: Tensor, rewards: Tensor, advantages: Tensor
    ) -> None:
        metrics = self._metrics["train"]
        beside = hybrid.view(-1, self.num_generations).any(1)
        beside = beside.repeat_interleave(self.num_generations) & ~hybrid
        found = {
            "prefix_rft/low": torch.tensor(plan.low),
            "prefix_rft/ratio_mean": rows[:, 3].nanmean(),
            "prefix_rft/capped": rows[:, 4].nanmean(),
            "prefix_rft/tokens_share": rows[:, 2].sum() / rows[:, 1].sum().clamp(min=1),
            "prefix_rft/advantage_on_policy": advantages[beside].mean(),
            "reward/hybrid": rewards[hybrid].nanmean(),
            "reward/on_policy": rewards[~hybrid].nanmean(),
        }
        for name, value in found.items():
            if not value.isnan():  # there is no such row in this batch
                metrics[name].append(float(value))

    def _carry_demonstrations(self, output: dict[str, Any], plan: _Plan) -> None:
        device = output["completion_mask"].device
        lengths = torch.tensor([len(ids) for ids in plan.demonstrations], device=device)
        width = int(lengths.max())
        ids = torch.full((len(lengths), width), self._tokenizer.pad_token_id, device=device)
        for row, shown in enumerate(plan.demonstrations):
            ids[row, : len(shown)] = torch.tensor(shown, dtype=ids.dtype, device=device)
        output["demonstration_ids"] = ids
        output["demonstration_mask"] = torch.arange(width, device=device) < lengths[:, None]
        output["demonstration_items"] = self.accelerator.gather(lengths.sum()).sum()

    # ------------------------------------------------------------------ loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if "prefix_mask" not in inputs:
            plain: Tensor = super()._compute_loss(model, inputs)
            return plain
        # Batches are kept for further iterations: what this forward changes is its own copy.
        now = self._passing = _Pass(dict(inputs))
        try:
            loss: Tensor = super()._compute_loss(model, now.inputs)
        finally:
            self._passing = None
        if now.threshold is not None:
            self._metrics["train"]["prefix_rft/entropy_threshold"].append(now.threshold)
        if now.likelihood is not None:
            loss = loss + self._supervised(now.inputs, now.likelihood)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        now = self._passing
        if now is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        rows, width = len(input_ids), logits_to_keep
        shown = now.inputs.get("demonstration_mask")
        which = shown.any(1).nonzero()[:, 0] if shown is not None else ()
        if len(which):
            input_ids, attention_mask, logits_to_keep = self._with_demonstrations(
                now.inputs, which, input_ids, attention_mask
            )
        logps, entropies, aux = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if len(which):
            kept = attention_mask[rows:, -logits_to_keep:]
            now.likelihood = (logps[rows:] * kept).sum()
            logps, entropies = logps[:rows, :width], entropies[:rows, :width]
        self._filter(now, entropies)
        return logps, entropies, aux

    def _with_demonstrations(
        self, inputs: dict[str, Any], which: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """The batch with the rows of its demonstrations behind it: they share the prompts."""
        shown = inputs["demonstration_mask"][which]
        width = inputs["completion_ids"].shape[1]
        longest = max(width, int(shown.sum(1).max()))
        pad = int(self._tokenizer.pad_token_id)

        def beside(left: Tensor, right: Tensor, fill: int) -> Tensor:
            joined = torch.cat((left, right.to(left.dtype)), 1)[:, : left.shape[1] + longest]
            short = left.shape[1] + longest - joined.shape[1]
            return torch.nn.functional.pad(joined, (0, short), value=fill)

        more = beside(inputs["prompt_ids"][which], inputs["demonstration_ids"][which], pad)
        more_mask = beside(inputs["prompt_mask"][which], shown, 0)
        extra = longest - width
        ids = torch.cat((torch.nn.functional.pad(ids, (0, extra), value=pad), more))
        mask = torch.cat((torch.nn.functional.pad(mask, (0, extra)), more_mask))
        return ids, mask, longest

    def _filter(self, now: _Pass, entropies: Tensor) -> None:
        """Take the advantage from the prefix tokens that are not to be updated."""
        mask = now.inputs["prefix_mask"]
        if self.args.prefix_update == "all" or not mask.any():
            return
        keep = torch.zeros_like(mask)
        if self.args.prefix_update == "entropy":
            keep, now.threshold = top_entropy(entropies, mask, self.args.prefix_entropy_share)
        advantages = now.inputs["advantages"]
        if advantages.dim() == 1:
            advantages = advantages[:, None].expand(mask.shape)
        now.inputs["advantages"] = advantages.masked_fill(mask & ~keep, 0.0)

    def _supervised(self, inputs: dict[str, Any], likelihood: Tensor) -> Tensor:
        """The weighted mean over the tokens of the demonstrations of one optimiser step."""
        tokens = inputs["demonstration_mask"].sum()
        self._metrics["train"]["prefix_rft/demonstration_nll"].append(
            float(-likelihood.detach() / tokens)
        )
        per_process = inputs["demonstration_items"] / self.accelerator.num_processes
        steps = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return -self.args.demonstration_loss * likelihood / (per_process * steps)


def _nothing(value: Any, where: str) -> Demonstration | None:
    return None
