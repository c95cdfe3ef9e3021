"""What every trainer with shared prefixes has: the model's calls, and what is logged of them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from foreword.training._errors import SharingError
from foreword.training._model import refuse
from foreword.training._share import SharedForward, Sharing, share_prefixes

if TYPE_CHECKING:
    from torch import Tensor

_SHARDED = ("FSDP", "MEGATRON_LM")


class SharesPrefixes:
    """Mixed into a TRL trainer, in front of it: `model` and `ref_model` share prefixes.

    Logs, for each optimiser step, of this process: ``sharing/tokens_saved`` (tokens, padding
    included, that were not computed, over all passes), ``sharing/token_ratio`` (tokens as they
    came to tokens computed), ``sharing/plain_calls`` (the share of calls that went through as they
    came), ``sharing/plan_seconds`` and ``sharing/forward_seconds`` (time on the host to find what
    rows share, and of packed forward calls), and once ``sharing/check_gap`` (nats).

    Args:
        sharing: how prefixes are shared; see `Sharing`.

    Raises:
        SharingError: a model, an adapter or a setting that cannot be trained with shared prefixes;
            before anything is loaded, unless the model is named by a string.
    """

    if TYPE_CHECKING:
        model: Any
        args: Any
        accelerator: Any
        ref_model: Any
        _metrics: Any

    def __init__(self, *args: Any, sharing: Sharing | None = None, **kwargs: Any) -> None:
        self.sharing = Sharing() if sharing is None else sharing
        if not isinstance(self.sharing, Sharing):
            raise SharingError(f"sharing is {sharing!r}: give Sharing(...)")
        construct = super().__init__
        _refuse_arguments(inspect.signature(construct).bind_partial(*args, **kwargs).arguments)
        construct(*args, **kwargs)
        _refuse_sharded(self.accelerator, self.sharing)
        self.shared: SharedForward = share_prefixes(self.model, self.sharing)
        reference = getattr(self, "ref_model", None)
        if reference is not None:
            share_prefixes(reference, self.sharing).tally = self.shared.tally

    def _log_sharing(self, mode: str) -> None:
        for name, value in self.shared.tally.take().metrics().items():
            self._metrics[mode][f"sharing/{name}"].append(value)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self.accelerator.sync_gradients:
            self._log_sharing("train")
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().prediction_step(*args, **kwargs)  # type: ignore[misc]
        self._log_sharing("eval")
        return result


def _refuse_arguments(given: dict[str, Any]) -> None:
    """Raise `SharingError` for what a trainer's arguments tell beforehand."""
    from transformers import ProcessorMixin

    model, settings, adapter = given.get("model"), given.get("args"), given.get("peft_config")
    if isinstance(given.get("processing_class"), ProcessorMixin):
        raise SharingError("images and sounds are not found as shared prefixes: train on text only")
    if getattr(settings, "torch_compile", False):
        raise SharingError(
            "torch_compile=True: what a batch shares is found on the host and differs from batch "
            "to batch, which cannot be compiled; leave it off"
        )
    if getattr(adapter, "is_prompt_learning", False):
        raise SharingError(
            f"{type(adapter).__name__} puts vectors in front of the tokens, which are not found as "
            f"shared prefixes: use LoRA, or TRL's own trainer"
        )
    dropping = not getattr(settings, "disable_dropout", False)
    rate = getattr(adapter, "lora_dropout", 0.0) or 0.0
    if dropping and rate:
        raise SharingError(
            f"lora_dropout of {rate}: a shared token would be dropped for all of its rows at once; "
            f"set it to 0, or disable_dropout=True"
        )
    if model is None or isinstance(model, str):
        return
    if not dropping:
        from trl.trainer.utils import disable_dropout_in_model

        disable_dropout_in_model(model)  # TRL does so too, later
    refuse(model)


def _refuse_sharded(accelerator: Any, sharing: Sharing) -> None:
    kind = getattr(accelerator.distributed_type, "value", "")
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    stage = getattr(plugin, "zero_stage", 0) if kind == "DEEPSPEED" else 0
    if sharing.self_check and (kind in _SHARDED or stage == 3):
        name = f"DeepSpeed ZeRO-{stage}" if stage else kind
        raise SharingError(
            f"{name} gathers weights in every forward call, and the self-check makes one that "
            f"other processes do not: set Sharing(self_check=False), after a run in one process "
            f"that passed it. Sharing has not been tested with {name}"
        )
