"""The canonical manifold of a task: the subspaces in which a model's states lie when it is right.

(Yang & Liu, ICLR 2022, arXiv 2203.10378.) Per layer, over correctly classified training examples:

    m = mean of h,  h~ = h - m,  U S V^T = SVD(h~)
    rank = the smallest r with s_1 + ... + s_r > share (s_1 + s_2 + ...)    singular values,
    Q = V_r V_r^T                                                           not their squares
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foreword.prefixes._errors import PrefixError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from torch import Tensor


@dataclass(frozen=True)
class Manifold:
    """A subspace per layer, bottom layers first.

    Attributes:
        centres: per layer `[hidden]`, the mean state of the training examples.
        bases: per layer `[hidden, rank]`, orthonormal columns; a rank may be 0.
    """

    centres: tuple[Tensor, ...]
    bases: tuple[Tensor, ...]

    @classmethod
    def of(cls, states: Sequence[Tensor], share: float = 0.99) -> Manifold:
        """From states `[examples, hidden]` of each layer. One SVD per layer.

        Directions that are nothing but rounding do not count: the first layer reads the same token
        in every example, and gets rank 0.

        Raises:
            PrefixError: no states, or a share outside 0 to 1.
        """
        if not states or not len(states[0]):
            raise PrefixError("a manifold needs states: no example was classified correctly")
        if not 0 < share <= 1:
            raise PrefixError(f"share is {share:g}: give more than 0 and at most 1")
        centres, bases = [], []
        for each in states:
            wide = each.double()
            centre = wide.mean(0)
            _, sizes, right = torch.linalg.svd(wide - centre, full_matrices=False)
            noise = wide.norm() * torch.finfo(each.dtype).eps * 8
            sizes = sizes[sizes > noise]
            within = sizes.cumsum(0) <= share * sizes.sum()
            rank = min(int(within.sum()) + 1, len(sizes))
            centres.append(centre.float())
            bases.append(right[:rank].T.float().contiguous())
        return cls(tuple(centres), tuple(bases))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of each layer's subspace."""
        return tuple(int(basis.shape[1]) for basis in self.bases)

    def random(self, seed: int) -> Manifold:
        """Subspaces of the same ranks that know nothing of the task: what a control needs."""
        draw = torch.Generator().manual_seed(seed)
        bases = tuple(
            torch.linalg.qr(torch.randn(basis.shape, generator=draw))[0].to(basis)
            for basis in self.bases
        )
        return Manifold(self.centres, bases)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file."""
        from safetensors.torch import save_file

        parts = {f"centre.{layer}": each for layer, each in enumerate(self.centres)}
        parts |= {f"basis.{layer}": each for layer, each in enumerate(self.bases)}
        save_file({name: each.contiguous() for name, each in parts.items()}, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Manifold:
        """Read what `save` wrote.

        Raises:
            PrefixError: nothing there, not a manifold, or damaged.
        """
        from safetensors.torch import load_file

        try:
            parts = load_file(path)
            layers = range(len(parts) // 2)
            return cls(
                tuple(parts[f"centre.{layer}"] for layer in layers),
                tuple(parts[f"basis.{layer}"] for layer in layers),
            )
        except Exception as error:
            raise PrefixError(f"cannot read a manifold from {str(path)!r}: {error}") from error
