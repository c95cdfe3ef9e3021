"""Loading a model for a verb: quietly, with the phase shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.cli import _console
from foreword.cli._policy import build_policy, check_policy

if TYPE_CHECKING:
    from pathlib import Path

    from foreword.cli._progress import ProgressDisplay
    from foreword.engine import LLM
    from foreword.models import LoadedModel


def load(
    display: ProgressDisplay,
    model: str,
    *,
    dtype: str,
    device: str,
    threads: int | None = None,
    decoder: str = "auto",
) -> LoadedModel:
    """Load a model; `threads` is how many torch may use from now on, None leaves it as it is.

    Raises:
        ModelError: it cannot be loaded or is not supported.
    """
    display.phase(f"loading {model}")
    import torch
    from transformers.utils import logging

    from foreword.models import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # A wrong name is refused by load_model itself.
    return load_model(model, dtype=dtype, device=device, decoder=decoder)  # type: ignore[arg-type]


def load_llm(
    display: ProgressDisplay,
    model: str,
    *,
    dtype: str,
    device: str,
    threads: int | None,
    decoder: str = "auto",
    policy: str = "fcfs",
    cost: Path | None = None,
    **settings: Any,
) -> LLM:
    """Load a model and put an engine around it.

    Raises:
        ForewordError: the model cannot be loaded, or a setting makes no sense.
    """
    display.phase(f"loading {model}")
    from foreword.engine import LLM, EngineConfig

    settings.setdefault("max_step_tokens", max(2048, settings.get("max_batch", 0)))
    settings.setdefault("debug", _console.debug)
    EngineConfig(**settings)  # a wrong setting is said before the model is read
    check_policy(policy, cost)
    loaded = load(display, model, dtype=dtype, device=device, threads=threads, decoder=decoder)
    return LLM(loaded, policy=build_policy(policy, cost, loaded, display), **settings)
