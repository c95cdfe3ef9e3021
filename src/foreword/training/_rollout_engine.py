"""Completions by Foreword's engine, on a copy of the policy that follows the trainer's."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import numpy as np
import torch

from foreword._errors import ParameterError, PromptError
from foreword.engine import LLM, EngineConfig, SamplingParams
from foreword.models import Decoder, wrap_model
from foreword.training._errors import SharingError
from foreword.training._rollout_weights import engine_copy, named_weights, plain_model

_MOST = 128
"""Answers that one request of the engine may have; larger groups are several requests."""

_KNOWN = ("top_p", "top_k", "min_p", "repetition_penalty")
_EXPECTED_GAP = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class RolloutCost:
    """What one generation cost: seconds in all and of pushing weights, and prompt tokens.

    `saved_tokens` are prompt tokens that were not computed because another sample, or an earlier
    generation under the same weights, had computed them.
    """

    seconds: float
    sync_seconds: float
    prompt_tokens: int
    computed_tokens: int

    @property
    def saved_tokens(self) -> int:
        return self.prompt_tokens - self.computed_tokens


class EngineRollouts:
    """Lets Foreword's engine write the completions of a GRPO or RLOO trainer.

        SharedPrefixGRPOTrainer(..., rollouts=EngineRollouts())

    A prompt is computed once for all samples of its group. At the first generation the engine gets
    a copy of the policy, adapters merged; whenever the policy has moved since the last generation,
    its weights are pushed and the engine's cache is dropped, and only then. The trainer's model is
    only read. Each process has an engine of its own.

    Temperature, top-p, top-k, min-p, repetition penalty and length come from the trainer's
    arguments. A completion ends with the token that ended it, and is never empty; it also ends
    where the context does. The same `args.seed`, step and process give the same completions.

    Costs a second copy of the weights in `dtype`, the engine's cache (`kv_memory`; by default a
    quarter of what is free), and while weights are pushed the merged layers of an adapter.

    Args:
        dtype: what the engine computes in; "auto" is what the trainer does: its mixed precision,
            else its weights'.
        decoder: as `foreword.LLM`.
        config: fields of `EngineConfig` (`kv_memory`, `max_batch`, ...), except `seed`.

    Raises:
        ParameterError: a setting the engine does not know, or out of its limits.
    """

    def __init__(self, dtype: str = "auto", decoder: Decoder = "auto", **config: Any) -> None:
        if dtype != "auto" and dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise ParameterError(f"dtype {dtype!r} is unknown: use 'auto' or one of {known}")
        known_settings = {field.name for field in fields(EngineConfig)} - {"seed"}
        for name in config:
            if name not in known_settings:
                raise ParameterError(
                    f"{name!r} is no setting of rollouts: the engine takes "
                    f"{', '.join(sorted(known_settings))}; seed and sampling are the trainer's"
                )
        if decoder not in get_args(Decoder):
            known = ", ".join(repr(each) for each in get_args(Decoder))
            raise ParameterError(f"decoder {decoder!r} is unknown: use one of {known}")
        EngineConfig(**config)
        self.last_cost: RolloutCost | None = None
        self.llm: LLM | None = None
        self._expected_gap = _EXPECTED_GAP[torch.float32]
        self._dtype, self._decoder, self._config = dtype, decoder, config
        self._source: weakref.ref[Any] | None = None
        self._seen: tuple[int, int] | None = None
        self._calls: dict[str, tuple[int, int]] = {}

    @property
    def expected_gap(self) -> float:
        """Mean difference of log-probabilities a token up to which rounding explains it.

        That of the coarser of two formats, what the engine computes in and what the trainer does.
        """
        return self._expected_gap

    def check(self, trainer: Any) -> None:
        """Refuse by name what of a trainer's settings the engine cannot do. Mutates nothing.

        Raises:
            SharingError: as said.
            ParameterError: a sampling parameter outside its limits.
        """
        args = trainer.args
        found = [
            what
            for what, there in (
                ("use_vllm=True", getattr(args, "use_vllm", False)),
                (
                    "use_transformers_continuous_batching=True",
                    getattr(args, "use_transformers_continuous_batching", False),
                ),
                ("cache_implementation", getattr(args, "cache_implementation", None)),
                ("rollout_func", getattr(trainer, "rollout_func", None)),
                ("tools", getattr(trainer, "tools", None)),
                ("environments", getattr(trainer, "environment_factories", None)),
                ("a model of images and text", getattr(trainer, "_is_vlm", False)),
                ("temperature=0", args.temperature == 0),
            )
            if there
        ]
        extra = getattr(args, "generation_kwargs", None) or {}
        found += [f"generation_kwargs[{name!r}]" for name in extra if name not in _KNOWN]
        if found:
            raise SharingError(
                f"rollouts by Foreword's engine do not go with {', '.join(found)}: leave that out, "
                "or leave rollouts out"
            )
        plain_model(trainer)
        self._sampling(trainer, 1)

    def generate(
        self, trainer: Any, prompts: list[list[int]], samples: list[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """`samples[i]` completions of `prompts[i]`, flat and in order, with log-probabilities.

        They are of the untruncated distribution at the trainer's temperature, natural, float32:
        what TRL's trainers compute, whatever top-p, top-k, min-p and penalties left to choose from.

        Raises:
            PromptError: a prompt that leaves no room in the context; nothing has been generated.
            SharingError: the policy's logits are not numbers.
        """
        began = time.perf_counter()
        llm = self._follow(trainer)
        synced = time.perf_counter()
        limit = llm.engine.max_context
        for at, prompt in enumerate(prompts):
            if not 0 < len(prompt) < limit:
                raise PromptError(
                    f"the prompt of row {sum(samples[:at])} has {len(prompt)} tokens: the engine "
                    f"takes from 1 to {limit - 1} (a context of {limit}); shorten or drop it"
                )
        seeds = self._seeds(trainer)
        many, params = [], []
        for prompt, wanted in zip(prompts, samples, strict=True):
            base = self._sampling(trainer, limit - len(prompt))
            for first in range(0, wanted, _MOST):
                many.append(prompt)
                seed = int(seeds.integers(2**63))
                params.append(replace(base, n=min(_MOST, wanted - first), seed=seed))
        with torch.autocast(llm.engine.loaded.shape.device.type, enabled=False):
            results = llm.generate(many, params)
        ids: list[list[int]] = []
        logprobs: list[list[float]] = []
        for result in results:
            if result.error is not None:
                raise SharingError(
                    f"no completions at step {trainer.state.global_step}: {result.error}. If it "
                    "is the policy's weights that are not numbers, go back to a checkpoint"
                )
            for output in result.outputs:
                ids.append(list(output.token_ids))
                logprobs.append([each.logprob for each in output.logprobs or ()])
        self.last_cost = RolloutCost(
            seconds=time.perf_counter() - began,
            sync_seconds=synced - began,
            prompt_tokens=sum(len(p) * n for p, n in zip(prompts, samples, strict=True)),
            computed_tokens=llm.engine.counters.computed_prompt_tokens,
        )
        return ids, logprobs

    def _follow(self, trainer: Any) -> LLM:
        """The engine, with the weights that the trainer's policy has now."""
        base = plain_model(trainer)
        # Steps say when an optimiser ran; versions, when anything else wrote into the weights.
        versions = sum(parameter._version for parameter in base.parameters())
        seen = (trainer.state.global_step, versions)
        mine = self._source is not None and self._source() is trainer
        if self.llm is None or not mine:
            self.llm = self._build(trainer, base)
            self._source, self._calls = weakref.ref(trainer), {}
        elif seen != self._seen:
            dtype = self.llm.engine.loaded.shape.dtype
            self.llm.update_weights(named_weights(base, dtype))
        self._seen = seen
        return self.llm

    def _build(self, trainer: Any, base: Any) -> LLM:
        self.llm = None  # an older engine's memory is free before the new one takes its own
        weights = next(p.dtype for p in base.parameters() if p.is_floating_point())
        mixed = _MIXED.get(str(trainer.accelerator.mixed_precision), weights)
        dtype = _DTYPES.get(self._dtype, mixed)
        self._expected_gap = max(_EXPECTED_GAP.get(each, 1e-3) for each in (dtype, mixed))
        loaded = wrap_model(engine_copy(base, dtype), name="policy", decoder=self._decoder)
        loaded = replace(loaded, eos_token_ids=frozenset(trainer.eos_token_ids))
        return LLM(loaded, **self._config)

    def _sampling(self, trainer: Any, room: int) -> SamplingParams:
        args = trainer.args
        given = {"top_p": args.top_p, "top_k": args.top_k, "min_p": args.min_p}
        given["repetition_penalty"] = args.repetition_penalty
        given.update(getattr(args, "generation_kwargs", None) or {})
        return SamplingParams(
            max_tokens=min(trainer.max_completion_length or room, room),
            temperature=trainer.temperature,
            logprobs=0,
            scaled_logprobs=True,
            **{name: value for name, value in given.items() if value is not None},
        )

    def _seeds(self, trainer: Any) -> np.random.Generator:
        """A stream that the seed, process, step and number of this generation determine."""
        mode, step = "train" if trainer.model.training else "eval", trainer.state.global_step
        before, calls = self._calls.get(mode, (-1, 0))
        calls = calls + 1 if step == before else 0
        self._calls[mode] = (step, calls)
        rank = trainer.accelerator.process_index
        key = (trainer.args.seed & 2**64 - 1, rank, step, mode == "eval", calls)
        return np.random.default_rng(np.random.SeedSequence(key))
