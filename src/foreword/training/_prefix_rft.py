"""Prefix-RFT: one rollout of each group goes on from the beginning of a demonstration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foreword._errors import ParameterError
from foreword.training._demonstrations import COLUMN, Demonstrations
from foreword.training._prefix_rft_config import PrefixRFTConfig
from foreword.training._prefix_rft_loss import LearnsPrefixes
from foreword.training._prefix_rft_plan import Beginning, continued, least_share, plan
from foreword.training._prefix_rft_rules import baseline_advantages
from foreword.training._trainers import SharedPrefixGRPOTrainer


class PrefixRFTTrainer(LearnsPrefixes, SharedPrefixGRPOTrainer):
    """TRL's GRPO with shared prefixes, where demonstrations lead some of the rollouts.

        PrefixRFTTrainer(
            model=model,
            reward_funcs=rewards.exact_answer(),
            args=PrefixRFTConfig(output_dir="out", prefix_stop_at="####"),
            train_dataset=rows,  # prompt, demonstration, and what the rewards want
            processing_class=tokenizer,
        ).train()

    Prefix-RFT (arXiv 2507.01679). Of the N rollouts of a prompt with a demonstration y*, the last
    `prefix_rollouts` begin with its first L tokens, ``L = floor(l |y*|)``, ``l ~ U(low_t, high)``,
    and the policy writes what follows. The prefix is part of the completion: of its length, of what
    is rewarded, and of the loss. There a prefix token has the importance ratio of any other token,
    the policy's to the policy's that sampled, and only those of highest entropy under the current
    policy have an advantage: `prefix_entropy_share` of all prefix tokens in a micro-batch of one
    process, chosen in the forward that the loss makes anyway. The others have advantage 0 and still
    count in what the loss divides by. A KL penalty (`beta`) acts on all tokens.

    The data set has a column `demonstration`: text (tokenised by itself, and ended), token ids, or
    None, where all rollouts are ordinary. All are read once at construction, to check them; those
    of an `IterableDataset` when they come. Evaluation never hands out a prefix. The shares l depend
    on seed, step and row alone: the same for any number of processes, and after resuming.

    Arguments are those of TRL's `GRPOTrainer` and of `SharedPrefixGRPOTrainer`. Logged beside
    theirs: ``prefix_rft/low``; ``prefix_rft/ratio_mean`` (the mean share handed out);
    ``prefix_rft/capped`` (how many of the hybrid rollouts were handed less than was drawn, for
    `prefix_keep` or `prefix_stop_at`); ``prefix_rft/tokens_share`` (of the completions' tokens);
    ``reward/hybrid`` and ``reward/on_policy``, which TRL's ``reward`` mixes;
    ``prefix_rft/advantage_on_policy`` (the mean over ordinary rollouts with a hybrid one beside
    them: below 0 in so far as that raises the mean of the group); and for each loss, of this
    process, ``prefix_rft/entropy_threshold`` (nats) and ``prefix_rft/demonstration_nll``.

    Raises:
        ParameterError: a demonstration or setting that cannot be used, with the way out.
        SharingError: as `SharedPrefixGRPOTrainer`.
    """

    if TYPE_CHECKING:
        args: PrefixRFTConfig
        num_generations: int
        max_completion_length: int

    _tag_names = ["trl", "prefix-rft"]  # noqa: RUF012 - as TRL declares them
    _name = "Prefix-RFT"
    _paper = {  # noqa: RUF012
        "title": "Blending Supervised and Reinforcement Fine-Tuning with Prefix Sampling",
        "id": "2507.01679",
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: PrefixRFTConfig | None = None,
        *rest: Any,
        **kwargs: Any,
    ) -> None:
        args = PrefixRFTConfig("Prefix-RFT") if args is None else args
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
        self._beginnings: list[Beginning] | None = None
        self._scored: Tensor | None = None
        self._generated = (-1, 0)  # optimiser step, and how often it has generated before
        if self._active:
            self._refuse()
            if hasattr(self.train_dataset, "__len__"):
                self._demonstrations.check(self.train_dataset)

    def _refuse(self) -> None:
        if self.rollout_func is not None:
            raise ParameterError(
                "rollout_func writes completions by itself and knows no prefixes: pass rollouts=, "
                "or set prefix_rollouts=0 and demonstration_loss=0"
            )
        if self.tools or self.environment_factories is not None:
            raise ParameterError(
                "with tools or environments a completion has several turns, a demonstration one: "
                "leave them out, or set prefix_rollouts=0 and demonstration_loss=0"
            )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        columns: Any = self._signature_columns
        if COLUMN not in columns:
            columns.append(COLUMN)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any]
        if not self._active or not self.model.training:
            output = super()._generate_and_score_completions(inputs)
            return output
        step, before = self.state.global_step, self._generated
        self._generated = (step, before[1] + 1 if step == before[0] else 0)
        first = self.accelerator.process_index * len(inputs)
        self._beginnings = beginnings = plan(
            inputs,
            self._demonstrations,
            self.args,
            step=step,
            generation=self._generated[1],
            first=first,
        )
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._beginnings = None
        self._mark(output, beginnings, slice(first, first + len(inputs)))
        if self.args.demonstration_loss:
            self._carry(output, beginnings)
        return output

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        ask = super()._generate_single_turn
        beginnings = self._beginnings
        if beginnings is None or not any(b.prefix for b in beginnings):
            return ask(prompt_ids, *args, **kwargs)
        context = self._context()
        for ids, beginning in zip(prompt_ids, beginnings, strict=True):
            if len(ids) + len(beginning.prefix) >= context:
                raise ParameterError(
                    f"a prompt of {len(ids)} tokens and {len(beginning.prefix)} of its "
                    f"demonstration leave no room in a context of {context}: shorten the prompt, "
                    f"or set the row's demonstration to None"
                )
        return continued(
            lambda begun: ask(begun, *args, **kwargs),
            prompt_ids,
            beginnings,
            self.max_completion_length,
        )

    def _context(self) -> float:
        config = self.accelerator.unwrap_model(self.model).config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or float("inf")

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Also keeps each row's weighted sum, NaN where no function gave one."""
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        self._scored = total.masked_fill(rewards.isnan().all(1), torch.nan)
        return rewards

    def _mark(self, output: dict[str, Any], beginnings: list[Beginning], mine: slice) -> None:
        """Put the mask of prefixes into the batch, and the advantages that go with it."""
        mask = output["completion_mask"]
        lengths = torch.tensor([len(b.prefix) for b in beginnings], device=mask.device)
        places = torch.arange(mask.shape[1], device=mask.device)
        output["prefix_mask"] = prefix = (places < lengths[:, None]) & mask.bool()
        told = torch.tensor([(b.share, b.capped) for b in beginnings], device=mask.device)
        counts = torch.stack((lengths, mask.sum(1), prefix.sum(1)), 1).to(told.dtype)
        # One exchange for all that is logged; rows of all processes from here on.
        rows = self.accelerator.gather(torch.cat((counts, told), 1))
        hybrid, rewards = rows[:, 0] > 0, self._scored
        assert rewards is not None
        if self.args.prefix_advantage == "prefix_baseline":
            advantages, begun = baseline_advantages(
                rewards, hybrid, self.num_generations, max(self.args.prefix_rollouts, 1)
            )
            output["advantages"] = torch.where(prefix, begun[mine, None], advantages[mine, None])
        else:
            advantages = self.accelerator.gather(output["advantages"])
        beside = hybrid.view(-1, self.num_generations).any(1)
        beside = beside.repeat_interleave(self.num_generations) & ~hybrid
        low = least_share(self.args, self._generated[0])
        self._metrics["train"]["prefix_rft/low"].append(low)
        self._log_rows(
            {
                "prefix_rft/ratio_mean": rows[:, 3].nanmean(),
                "prefix_rft/capped": rows[:, 4].nanmean(),
                "prefix_rft/tokens_share": rows[:, 2].sum() / rows[:, 1].sum().clamp(min=1),
                "prefix_rft/advantage_on_policy": advantages[beside].mean(),
                "reward/hybrid": rewards[hybrid].nanmean(),
                "reward/on_policy": rewards[~hybrid].nanmean(),
            }
        )

    def _log_rows(self, found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            if not value.isnan():  # there is no such row in this batch
                self._metrics["train"][name].append(float(value))

    def _carry(self, output: dict[str, Any], beginnings: list[Beginning]) -> None:
        """Put whole demonstrations into the batch, each once, for a loss of their own."""
        device = output["completion_mask"].device
        lengths = torch.tensor([len(b.demonstration) for b in beginnings], device=device)
        width = int(lengths.max())
        ids = torch.full((len(lengths), width), int(self._tokenizer.pad_token_id), device=device)
        for row, beginning in enumerate(beginnings):
            shown = torch.tensor(beginning.demonstration, dtype=ids.dtype, device=device)
            ids[row, : len(shown)] = shown
        output["demonstration_ids"] = ids
        output["demonstration_mask"] = torch.arange(width, device=device) < lengths[:, None]
        output["demonstration_items"] = self.accelerator.gather(lengths.sum()).sum()
