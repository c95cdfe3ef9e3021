"""Rollouts that cannot be trained on: completions of no token, rewards that are not numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from foreword.training._errors import SharingError

OnNonFinite = Literal["stop", "skip"]
_SHOWN = 200  # characters of a prompt in a message


class ChecksRollouts:
    """Mixed into GRPO and RLOO: a reward of NaN or infinity does not reach the advantages unseen,
    nor a completion of no token TRL.

    TRL takes NaN for "this function does not apply to this row", as if the function had returned
    None, and an infinity leaves no usable advantage in its group.

    Args:
        non_finite_rewards: ``"stop"`` raises `SharingError` naming the function, the prompt and the
            value, in all processes at once; ``"skip"`` takes the reward as None, and logs how many
            there were in all processes as ``rewards/non_finite``.

    Raises:
        SharingError: another value of `non_finite_rewards`, `rollouts` beside vLLM, or data without
            prompts; later, such a reward or completion.
    """

    if TYPE_CHECKING:
        accelerator: Any
        model: Any
        reward_funcs: list[Any]
        reward_func_names: list[str]
        _metrics: Any

    def __init__(self, *args: Any, non_finite_rewards: OnNonFinite = "stop", **kwargs: Any) -> None:
        if non_finite_rewards not in ("stop", "skip"):
            raise SharingError(
                f"non_finite_rewards is {non_finite_rewards!r}: it is 'stop' or 'skip'"
            )
        settings = kwargs.get("args", args[2] if len(args) > 2 else None)
        if kwargs.get("rollouts") is not None and getattr(settings, "use_vllm", False):
            raise SharingError(
                "use_vllm=True and rollouts= both write the completions: leave one of them out"
            )
        data = kwargs.get("train_dataset", args[3] if len(args) > 3 else None)
        columns = getattr(data, "column_names", None)
        if isinstance(columns, list) and "prompt" not in columns:
            raise SharingError(
                f"train_dataset has no column 'prompt', only {sorted(columns)}: rename the one "
                "that holds the prompts"
            )
        self.non_finite_rewards = non_finite_rewards
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._generate_single_turn(  # type: ignore[misc]
            prompt_ids, *args, **kwargs
        )
        # GRPO's comes with log-probabilities, RLOO's alone.
        for row, completion in enumerate(result[0] if isinstance(result, tuple) else result):
            if len(completion) == 0:
                raise SharingError(
                    f"completion {row} has no token; its prompt has the tokens "
                    f"{_short(list(prompt_ids[row]))}. A completion holds at least the token that "
                    f"ends it: whoever writes completions must not strip it"
                )
        return result

    def _calculate_rewards(
        self, inputs: Any, prompts: list[Any], completions: Any, completion_ids_list: Any
    ) -> Tensor:
        with _marked(self) as returned:
            rewards: Tensor = super()._calculate_rewards(  # type: ignore[misc]
                inputs, prompts, completions, completion_ids_list
            )
        # A function's NaN was marked by infinity, a model's was not.
        models = torch.tensor([isinstance(f, nn.Module) for f in self.reward_funcs])
        bad = rewards.isinf() | (rewards.isnan() & models.to(rewards.device))
        if not bool(bad.any()):
            if self.non_finite_rewards == "skip":
                self._count(0)
            return rewards
        if self.non_finite_rewards == "stop":
            self._stop(bad, prompts, returned)
        self._count(int(bad.sum()))
        return rewards.masked_fill(bad, torch.nan)

    def _count(self, number: int) -> None:
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["rewards/non_finite"].append(float(number))

    def _stop(self, bad: Tensor, prompts: list[Any], returned: dict[int, Sequence[Any]]) -> None:
        row, column = (int(i) for i in bad.nonzero()[0])
        name, number = self.reward_func_names[column], int(bad.sum())
        process, local = divmod(row, len(prompts))
        told = f"row {local} of process {process}"
        if process == self.accelerator.process_index:
            value = returned[column][local] if column in returned else "a value that is not finite"
            told = f"{value} for {told}, whose prompt is {_short(prompts[local])}"
        raise SharingError(
            f"the reward function {name!r} returned a reward that is not finite: {told} "
            f"({number} of {bad.numel()} rewards of this generation). Return None where it does "
            f"not apply, or set non_finite_rewards='skip'"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@contextmanager
def _marked(trainer: Any) -> Iterator[dict[int, Sequence[Any]]]:
    """While it lasts, a function's NaN is infinity, so that it is not taken for None. Yields what
    the functions returned, by their place."""
    plain, returned = trainer.reward_funcs, dict[int, Sequence[Any]]()
    trainer.reward_funcs = [
        function if isinstance(function, nn.Module) else _marking(function, index, returned)
        for index, function in enumerate(plain)
    ]
    try:
        yield returned
    finally:
        trainer.reward_funcs = plain


def _marking(
    function: Callable[..., Any], index: int, returned: dict[int, Sequence[Any]]
) -> Callable[..., Any]:
    def mark(rewards: Sequence[Any]) -> list[Any]:
        returned[index] = rewards
        return [
            math.inf if reward is not None and not math.isfinite(reward) else reward
            for reward in rewards
        ]

    from trl.trainer.utils import is_async_callable

    if is_async_callable(function):

        @functools.wraps(function)
        async def later(*args: Any, **kwargs: Any) -> Any:
            return mark(await function(*args, **kwargs))

        return later

    @functools.wraps(function)
    def now(*args: Any, **kwargs: Any) -> Any:
        return mark(function(*args, **kwargs))

    return now
