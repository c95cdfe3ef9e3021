"""Completions by another writer than `model.generate`, and how far it is from the trainer."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import Any, Protocol

import torch
from torch import Tensor

from foreword.training._errors import SharingError


class Rollouts(Protocol):
    """Who writes the completions: an object that a trainer asks once per generation.

    `EngineRollouts` is one. It may have a method `check(trainer)`, called once at construction,
    that refuses what it cannot do; an attribute `last_cost` as `RolloutCost`, which is logged; and
    `expected_gap`, the mean difference of log-probabilities above which the trainer warns.
    """

    def generate(
        self, trainer: Any, prompts: list[list[int]], samples: list[int]
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """`samples[i]` completions of `prompts[i]`, in order, flat, with the log-probability of
        each token under the sampling distribution if it is known. Prompts are distinct; no
        completion may be empty."""


class TakesRollouts:
    """Mixed into GRPO and RLOO: completions come from `rollouts` instead of `model.generate`.

    Logs, where the writer gives log-probabilities, `rollouts/logp_gap_mean` and
    `rollouts/logp_gap_max`: the absolute difference per token between them and the trainer's own
    under the same weights, over all processes. Later iterations on a batch, when the policy has
    moved, are not compared. And per generation, where the writer says what it cost,
    `rollouts/seconds`, `rollouts/sync_seconds` (of the slowest process) and
    `rollouts/prompt_tokens_saved`.

    Raises:
        SharingError: `rollouts` cannot generate, or returns another number of rows than asked for.
    """

    model: Any
    state: Any
    accelerator: Any
    _metrics: Any  # TRL: mode, name, values

    def __init__(self, *args: Any, rollouts: Rollouts | None = None, **kwargs: Any) -> None:
        if rollouts is not None and (
            isinstance(rollouts, type) or not callable(getattr(rollouts, "generate", None))
        ):
            raise SharingError(
                f"rollouts is {rollouts!r}: give an object with generate(trainer, prompts, "
                "samples), such as EngineRollouts()"
            )
        super().__init__(*args, **kwargs)
        self.rollouts = rollouts
        self._rollout_logps: list[list[float]] | None = None
        self._rollout_costs: list[Any] = []
        self._rollout_steps: dict[str, int] = {}
        self._compared: Tensor | None = None
        self._comparing = False
        self._gap_warned = False
        check = getattr(rollouts, "check", None)
        if check is not None:
            check(self)

    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        theirs = super()._generate_single_turn  # type: ignore[misc]
        if self.rollouts is None:
            return theirs(prompt_ids, *args, **kwargs)
        order: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, ids in enumerate(prompt_ids):
            order[tuple(ids)].append(row)
        completions, logps = self.rollouts.generate(
            self, [list(prompt) for prompt in order], [len(rows) for rows in order.values()]
        )
        for what, rows in (("completions", completions), ("log-probabilities", logps)):
            if rows is not None and len(rows) != len(prompt_ids):
                raise SharingError(
                    f"rollouts {type(self.rollouts).__name__} returned {what} of {len(rows)} rows "
                    f"for {len(order)} prompts and {len(prompt_ids)} samples: samples[i] for "
                    "prompts[i], flat and in order"
                )
        self._rollout_costs.append(getattr(self.rollouts, "last_cost", None))
        flat = [row for rows in order.values() for row in rows]
        back = [0] * len(flat)
        for at, row in enumerate(flat):
            back[row] = at
        ids = [completions[at] for at in back]
        self._rollout_logps = None if logps is None else [logps[at] for at in back]
        # RLOO gives images and further fields, and wants ids alone; GRPO gives the group's size.
        return (ids, self._rollout_logps) if len(args) + len(kwargs) > 2 else ids

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._rollout_costs, self._rollout_logps = [], None
        output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self.rollouts is None:
            return output
        mode = self._mode()
        self._log_costs(mode)
        self._rollout_steps[mode] = self.state.global_step
        ours, theirs = output.get("sampling_per_token_logps"), output.get("old_per_token_logps")
        if ours is None and self._rollout_logps is not None:  # RLOO
            ours = _padded(self._rollout_logps, output["completion_mask"])
            if ours is not None:
                output["sampling_per_token_logps"] = ours
        if ours is not None and theirs is not None:
            self._log_gap(mode, ours, theirs, output["completion_mask"])
            self._rollout_steps.pop(mode)  # compared already
        return output

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]
        if self._comparing:  # the first call of a loss is the policy's
            self._compared, self._comparing = result[0].detach(), False
        return result

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        mode = self._mode()
        ours = inputs.get("sampling_per_token_logps")
        unmoved = self._rollout_steps.get(mode) == self.state.global_step
        self._comparing = self.rollouts is not None and ours is not None and unmoved
        try:
            loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        finally:
            self._comparing, theirs, self._compared = False, self._compared, None
        if theirs is not None:
            theirs = theirs[: ours.shape[0], : ours.shape[1]]  # a trainer may add rows of its own
            self._log_gap(mode, ours, theirs, inputs["completion_mask"])
        return loss

    def _log_costs(self, mode: str) -> None:
        costs = [cost for cost in self._rollout_costs if cost is not None]
        if not costs:
            return
        mine = [
            sum(cost.seconds for cost in costs),
            sum(cost.sync_seconds for cost in costs),
            float(sum(cost.saved_tokens for cost in costs)),
        ]
        device = self.accelerator.device
        every = self.accelerator.gather(torch.tensor([mine], dtype=torch.float32, device=device))
        metrics = self._metrics[mode]
        metrics["rollouts/seconds"].append(every[:, 0].max().item())
        metrics["rollouts/sync_seconds"].append(every[:, 1].max().item())
        metrics["rollouts/prompt_tokens_saved"].append(every[:, 2].sum().item())

    def _log_gap(self, mode: str, ours: Tensor, theirs: Tensor, mask: Tensor) -> None:
        # Of tokens that the writer did not write, such as a given beginning, it says nothing: NaN.
        gap = (ours - theirs).abs()[mask.bool() & ours.isfinite()].float()
        largest = gap.max() if len(gap) else gap.new_zeros(())
        mine = torch.stack((gap.sum(), gap.new_tensor(len(gap)), largest))
        every = self.accelerator.gather(mine[None])
        count = every[:, 1].sum().item()
        if not count:
            return
        mean = every[:, 0].sum().item() / count
        self._metrics[mode]["rollouts/logp_gap_mean"].append(mean)
        self._metrics[mode]["rollouts/logp_gap_max"].append(every[:, 2].max().item())
        expected = getattr(self.rollouts, "expected_gap", None)
        if expected is not None and not mean <= expected and not self._gap_warned:
            self._gap_warned = True
            warnings.warn(
                f"at step {self.state.global_step} the log-probabilities of completions differ by "
                f"{mean:.2g} a token between who wrote them and the trainer, more than the "
                f"{expected:.2g} that rounding explains: the gradient is that of another policy "
                "than the one that was sampled. Compute both in float32 (bf16=False and "
                "EngineRollouts(dtype='float32')); if it stays, look for what the trainer's "
                "forward does and the engine's does not",
                RuntimeWarning,
                stacklevel=2,
            )


def _padded(logps: list[list[float]], mask: Tensor) -> Tensor | None:
    """Rows as the rectangle of `mask`; None if they are not the rows that it is of.

    A row may be masked as a whole. The answer must be that of every process: a gather hangs on it.
    """
    there = mask.sum(1).tolist()
    if len(there) != len(logps) or any(
        n not in (0, len(values)) for n, values in zip(there, logps, strict=True)
    ):
        return None
    padded = torch.zeros(mask.shape, device=mask.device)
    for row, values in zip(padded, logps, strict=True):
        row[: len(values)] = torch.tensor(values)
    return padded
