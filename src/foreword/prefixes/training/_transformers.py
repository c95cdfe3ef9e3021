"""A method as a model for transformers' `Trainer`, and a callback that saves what it made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.modeling_outputs import CausalLMOutput

from foreword.prefixes._forward import run
from foreword.prefixes.methods import Batch, Example, Method
from foreword.prefixes.objectives import IGNORED, lm_loss
from foreword.prefixes.training._card import folder_of
from foreword.prefixes.training._errors import TrainingError
from foreword.prefixes.training._files import new_folder

if TYPE_CHECKING:
    from os import PathLike

    from torch import Tensor


class PrefixedModel(nn.Module):
    """A frozen model behind a method's prefixes, as `transformers.Trainer` wants a model.

        prefixed = PrefixedModel(model, method)
        trainer = Trainer(prefixed, args, train_dataset=examples, data_collator=prefixed.collate,
                          callbacks=[SavePrefixCallback(prefixed)])

    Its parameters and its state dict are the method's alone; the model goes along when it is moved.

    Args:
        model: a transformers causal model; frozen, and left so.
        method: what is trained. Call `method.start(model, examples)` before, as `train` does.
    """

    def __init__(self, model: Any, method: Method) -> None:
        super().__init__()
        self.method = method
        # Not a submodule: a checkpoint is to hold the method and nothing of the model.
        self._base = (model.eval().requires_grad_(False),)
        self.config = model.config

    @property
    def base(self) -> Any:
        """The frozen model."""
        return self._base[0]

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The `data_collator` for a dataset of `Example`s. The examples themselves go along, for
        methods that read more of them than ids."""
        batch = Batch.of(examples)
        return {
            "input_ids": batch.ids,
            "attention_mask": batch.mask,
            "labels": batch.labels,
            "examples": tuple(examples),
        }

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        examples: Sequence[Example] | None = None,
    ) -> CausalLMOutput:
        """The method's loss, and the logits `[rows, tokens, vocab]` of the texts.

        With `examples` the rest is not looked at. Without `labels` there is no loss. Where a method
        has a loss of its own, logits take a second pass: they are there in eval mode, and None in
        training.

        Raises:
            TrainingError: neither examples nor ids, or padding on the left.
        """
        device = next(self.method.parameters()).device
        if examples is not None:
            batch = self.method.collate(list(examples), device)
            plain = Batch.of(list(examples), device)
        elif input_ids is not None:
            batch = plain = _batch(input_ids, attention_mask, labels)
        else:
            raise TrainingError("a batch has input_ids, or examples: `collate` gives both")
        learns = labels is not None or examples is not None
        if type(self.method).loss is Method.loss:
            return self._plain(batch, learns)
        loss = self.method.loss(self.base, batch).value if learns else None
        logits = None
        if not self.training:
            rows = self.method.rows(self.base, plain)
            logits = run(self.base, plain.ids, plain.mask, rows).logits.detach()
        return CausalLMOutput(loss=loss, logits=logits)

    def _plain(self, batch: Batch, learns: bool) -> CausalLMOutput:
        """Language modelling: one pass gives both."""
        rows = self.method.rows(self.base, batch)
        logits = run(self.base, batch.ids, batch.mask, rows).logits
        loss = lm_loss(logits, batch.labels) if learns else None
        return CausalLMOutput(loss=loss, logits=logits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PrefixedModel:
        self.base.to(fn(torch.empty(0)).device)  # its number format is its own
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


def _batch(ids: Tensor, mask: Tensor | None, labels: Tensor | None) -> Batch:
    """A batch of tensors, as tokenizers and collators make them, with its examples read back."""
    there = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if bool((there[:, 1:] & ~there[:, :-1]).any()):
        raise TrainingError("the batch is padded on the left: pad it on the right")
    learned = torch.full_like(ids, IGNORED) if labels is None else labels
    learned = learned.masked_fill(~there, IGNORED)
    examples = []
    for row in range(len(ids)):
        count = int(there[row].sum())
        wanted = (learned[row] != IGNORED).nonzero()
        prompt = int(wanted[0]) if len(wanted) else count
        examples.append(Example(tuple(ids[row, :count].tolist()), prompt))
    return Batch(ids, there, learned, tuple(examples))


class SavePrefixCallback(TrainerCallback):
    """Writes the prefixes beside the checkpoints that a `Trainer` saves, and at its end.

    Each `checkpoint-N` gets `prefix/` (a folder per name where the method exports several), and so
    does `args.output_dir` in the end.

    Args:
        prefixed: the model that is trained.
        directory: where the last prefixes go instead.
    """

    def __init__(
        self, prefixed: PrefixedModel, directory: str | PathLike[str] | None = None
    ) -> None:
        self._prefixed = prefixed
        self._directory = directory

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(Path(args.output_dir if self._directory is None else self._directory))

    def _write(self, folder: Path) -> None:
        exported = self._prefixed.method.export(self._prefixed.base)
        if not exported:
            return
        with new_folder(folder / "prefix") as draft:
            for name, prefix in exported.items():
                prefix.save(draft / Path(folder_of(name)).relative_to("prefix"))
