"""What a contender hands back when it is set up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass
class Ready:
    """A contender on its problem.

    Attributes:
        run: one call: every request's output, ``[batch, heads, dim]``.
        replan: make the plan that `run` follows anew, as after a request joined; None if there is
            none.
        advance: move the plan on by a token per request, at most once between two `replan`; None if
            it cannot.
        by: the backend behind it, where the name does not say.
        error: of its answer against float64, see `Problem.error`.
    """

    run: Callable[[], Tensor]
    replan: Callable[[], object] | None = None
    advance: Callable[[], object] | None = None
    by: str | None = None
    error: float = 0.0
