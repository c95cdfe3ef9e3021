"""What prefixes and demonstrations do to the loss, in the one forward that the loss makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foreword.training._prefix_rft_rules import top_entropy

if TYPE_CHECKING:
    from foreword.training._prefix_rft_config import PrefixRFTConfig


@dataclass
class _Pass:
    """One loss: its own copy of the inputs, and what its forward finds."""

    inputs: dict[str, Any]
    likelihood: Tensor | None = None  # of the demonstrations' tokens, summed
    threshold: float | None = None


class LearnsPrefixes:
    """Mixed into GRPO, in front of it: reads what `PrefixRFTTrainer` puts into batches.

    Where a batch has a `prefix_mask` (bool, shaped as `completion_ids`), the prefix tokens that are
    not to be updated lose their advantage; where it has demonstrations (`demonstration_ids`,
    `demonstration_mask`, `demonstration_items`), they get a loss.

    TRL asks for log-probabilities and entropies first and reads the advantages after; between the
    two the entropies of this very forward decide. What changes is a copy of the batch, which TRL
    keeps for further iterations.
    """

    if TYPE_CHECKING:
        args: PrefixRFTConfig
        accelerator: Any
        _tokenizer: Any
        _metrics: Any
        current_gradient_accumulation_steps: int

    _passing: _Pass | None = None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if "prefix_mask" not in inputs:
            plain: Tensor = super()._compute_loss(model, inputs)  # type: ignore[misc]
            return plain
        now = self._passing = _Pass(dict(inputs))
        try:
            loss: Tensor = super()._compute_loss(model, now.inputs)  # type: ignore[misc]
        finally:
            self._passing = None
        if now.threshold is not None:
            self._metrics["train"]["prefix_rft/entropy_threshold"].append(now.threshold)
        return loss if now.likelihood is None else loss + self._supervised(now)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        ask = super()._get_per_token_logps_and_entropies  # type: ignore[misc]
        now = self._passing
        if now is None:
            return ask(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        rows, width = len(input_ids), logits_to_keep
        input_ids, attention_mask, logits_to_keep = self._with_demonstrations(
            now.inputs, input_ids, attention_mask, width
        )
        logps, entropies, aux = ask(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if len(input_ids) > rows:
            scored = attention_mask[rows:, -logits_to_keep:]
            now.likelihood = (logps[rows:] * scored).sum()
            logps, entropies = logps[:rows, :width], entropies[:rows, :width]
        self._choose(now, entropies)
        return logps, entropies, aux

    def _choose(self, now: _Pass, entropies: Tensor) -> None:
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

    def _with_demonstrations(
        self, inputs: dict[str, Any], ids: Tensor, mask: Tensor, width: int
    ) -> tuple[Tensor, Tensor, int]:
        """The rectangle with a row for each demonstration behind it, where it shares its prompt,
        and how many of the last columns are completion."""
        shown = inputs.get("demonstration_mask")
        if shown is None or not shown.any():
            return ids, mask, width
        which = shown.any(1).nonzero()[:, 0]
        shown = shown[which]
        longest = max(width, int(shown.sum(1).max()))
        filler = int(self._tokenizer.pad_token_id)

        def joined(prompt: str, completion: Tensor, fill: int) -> Tensor:
            kept = completion[:, :longest].to(ids.dtype)
            kept = pad(kept, (0, longest - kept.shape[1]), value=fill)
            return torch.cat((inputs[prompt][which].to(ids.dtype), kept), 1)

        more = joined("prompt_ids", inputs["demonstration_ids"][which], filler)
        there = joined("prompt_mask", shown, 0).to(mask.dtype)
        extra = (0, longest - width)
        ids = torch.cat((pad(ids, extra, value=filler), more))
        return ids, torch.cat((pad(mask, extra), there)), longest

    def _supervised(self, now: _Pass) -> Tensor:
        """The weighted mean over the demonstrations' tokens of one step of all processes."""
        assert now.likelihood is not None
        tokens = now.inputs["demonstration_mask"].sum()
        self._metrics["train"]["prefix_rft/demonstration_nll"].append(
            float(-now.likelihood.detach() / tokens)
        )
        # As TRL divides its token-weighted losses: the count spans a generation, a step part of it.
        part = self.current_gradient_accumulation_steps / (self.args.steps_per_generation or 1)
        items = now.inputs["demonstration_items"] / self.accelerator.num_processes * part
        loss: Tensor = -self.args.demonstration_loss * now.likelihood / items
        return loss
