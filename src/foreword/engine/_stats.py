"""What sharing saved: the numbers of one call, with their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foreword.engine._results import to_plain


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """What one call computed, held and took.

    `of` derives the three derived numbers from the measured ones.

    Attributes:
        requests: prompts handed over, refused ones included.
        prompt_tokens: sum of the prompts' lengths, each times its `n`: every answer reads one.
        computed_prompt_tokens: prompt tokens run through the model, each time they were. That is
            the number of distinct tokens in the prompts' tree, plus one for each prompt whose
            last token was in the cache already and was run for its logits only, plus what was
            computed anew after eviction.
        shared_prompt_tokens: `prompt_tokens - computed_prompt_tokens`; below zero only when
            preemption made more be computed again than sharing saved.
        generated_tokens: tokens sampled, over all answers.
        dedup_ratio: `prompt_tokens / computed_prompt_tokens`; 1.0 when there was no prompt.
        kv_bytes_peak: most bytes of keys and values, in whole pages, that running answers and pins
            held at one time; what several share counts once.
        kv_bytes_unshared: bytes the answers running at that same moment would hold if each had
            its own copy of every token it sees, page rounding left out.
        seconds: wall time of the call.
        time_to_first_token: median over requests (the last 4,096 of them) of the seconds from a
            request's arrival to its first token; None when nothing was generated.
        tokens_per_second: `generated_tokens / seconds`; 0.0 when no time passed.
        steps: forward passes of the model.
        preemptions: times a running answer was put back in line for want of memory.
        backend: the attention backend's name.
        decoder: who computed the model's layers: "lean" or "transformers".
    """

    requests: int
    prompt_tokens: int
    computed_prompt_tokens: int
    shared_prompt_tokens: int
    generated_tokens: int
    dedup_ratio: float
    kv_bytes_peak: int
    kv_bytes_unshared: int
    seconds: float
    time_to_first_token: float | None
    tokens_per_second: float
    steps: int
    preemptions: int
    backend: str
    decoder: str

    @classmethod
    def of(
        cls,
        *,
        requests: int,
        prompt_tokens: int,
        computed_prompt_tokens: int,
        generated_tokens: int,
        kv_bytes_peak: int,
        kv_bytes_unshared: int,
        seconds: float,
        time_to_first_token: float | None,
        steps: int,
        preemptions: int,
        backend: str,
        decoder: str,
    ) -> PrefixStats:
        """The statistics of these measurements."""
        return cls(
            requests=requests,
            prompt_tokens=prompt_tokens,
            computed_prompt_tokens=computed_prompt_tokens,
            shared_prompt_tokens=prompt_tokens - computed_prompt_tokens,
            generated_tokens=generated_tokens,
            dedup_ratio=prompt_tokens / max(1, computed_prompt_tokens) if prompt_tokens else 1.0,
            kv_bytes_peak=kv_bytes_peak,
            kv_bytes_unshared=kv_bytes_unshared,
            seconds=seconds,
            time_to_first_token=time_to_first_token,
            tokens_per_second=generated_tokens / seconds if seconds > 0 else 0.0,
            steps=steps,
            preemptions=preemptions,
            backend=backend,
            decoder=decoder,
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-ready values, named as here."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def summary(self) -> str:
        """Four short lines of plain text in human units, without a final newline."""
        first = self.time_to_first_token
        wait = "" if first is None else f", first token after {first:.2f} s"
        return "\n".join(
            (
                f"{human_count(self.requests)} requests, {human_count(self.prompt_tokens)} prompt "
                f"tokens, {human_count(self.computed_prompt_tokens)} computed "
                f"({self.dedup_ratio:.1f}x fewer)",
                f"{human_count(self.generated_tokens)} tokens generated in {self.seconds:.1f} s "
                f"({human_count(self.tokens_per_second)} tokens/s{wait})",
                f"{human_bytes(self.kv_bytes_peak)} of keys and values held, "
                f"{human_bytes(self.kv_bytes_unshared)} if unshared",
                f"{human_count(self.steps)} steps, {human_count(self.preemptions)} preemptions, "
                f"backend {self.backend}, decoder {self.decoder}",
            )
        )


def human_count(value: float) -> str:
    """A number as people read it: 950, 25.6k, 1.2M, 3.0G."""
    return _scaled(value, ("", "k", "M", "G", "T"), "")


def human_bytes(value: float) -> str:
    """A size as people read it, in powers of 1000: 950 B, 25.6 kB, 1.2 GB."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"), " ")


def _scaled(value: float, units: tuple[str, ...], gap: str) -> str:
    step = 0
    # 999.95 would be written 1000.0: it belongs to the next unit already.
    while step < len(units) - 1 and abs(value) >= (999.95 if step else 999.5):
        value /= 1000
        step += 1
    digits = f"{value:.1f}" if step else f"{value:.0f}"
    return f"{digits}{gap}{units[step]}"
