"""The self-check of the first packed call: what it stops, what it allows, what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from foreword.training import Sharing, SharingError
from foreword.training._check import allowed, compare
from tests.training.padded import EAGER, gradients, group, rectangle


class TestSelfCheck:
    @pytest.fixture
    def corrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Attention behind a prefix that does not see its first tokens."""
        from foreword.training import _model

        right = _model.forest_attention

        def wrong(q: Any, k: Any, v: Any, forest: Any, scale: float) -> Any:
            k = k.clone()
            k[:, :, :4] = 0
            return right(q, k, v, forest, scale)

        monkeypatch.setattr(_model, "forest_attention", wrong)

    @pytest.mark.usefixtures("corrupt")
    def test_stops_at_a_difference_and_names_it(self, pair: Callable[..., tuple[Any, Any]]) -> None:
        _, shared = pair()
        batch = rectangle(group())
        for _ in range(2):  # once caught, it is not forgotten
            with pytest.raises(SharingError, match=r"token \d+ in row \d+, column \d+") as caught:
                shared(**batch, fused_lm_head=True)
        assert "0.002" in str(caught.value)
        assert "self_check=False" in str(caught.value)

    @pytest.mark.usefixtures("corrupt")
    def test_does_not_run_where_it_is_switched_off(
        self, pair: Callable[..., tuple[Any, Any]]
    ) -> None:
        _, shared = pair(Sharing(min_run=1, min_gain=0, self_check=False))
        shared(**rectangle(group()), fused_lm_head=True)
        assert shared.forward.tally.check_gap is None

    def test_runs_once_and_changes_nothing(self, pair: Callable[..., tuple[Any, Any]]) -> None:
        batch = rectangle(group())
        found = []
        for sharing in (EAGER, Sharing(min_run=1, min_gain=0, self_check=False)):
            _, shared = pair(sharing)
            calls: list[bool] = []
            shared.model.register_forward_pre_hook(
                lambda *_, calls=calls: calls.append(torch.is_grad_enabled())
            )
            before = torch.random.get_rng_state()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                first = shared(**batch, fused_lm_head=True)
                shared(**batch, fused_lm_head=True)
            assert torch.equal(torch.random.get_rng_state(), before)
            assert calls == ([True, False, True] if sharing.self_check else [True, True])
            found.append(gradients(shared, first.loss))
        for name, value in found[1].items():
            assert torch.equal(found[0][name], value), name

    @pytest.mark.parametrize(
        ("dtype", "gap"), [(torch.float64, 1e-3), (torch.float32, 1e-2), (torch.bfloat16, 2.0)]
    )
    def test_allows_what_the_precision_explains(self, dtype: torch.dtype, gap: float) -> None:
        ids = torch.arange(202).view(2, 101)
        wanted = torch.ones(2, 100, dtype=torch.bool)
        right = SimpleNamespace(log_probs=-torch.rand(2, 100), entropy=None)
        off = SimpleNamespace(log_probs=right.log_probs.clone(), entropy=None)
        off.log_probs[1, 2] += gap
        assert compare(right, right, wanted, ids, dtype) == 0
        with pytest.raises(SharingError, match="token 104 in row 1, column 3"):
            compare(off, right, wanted, ids, dtype)
        off.log_probs[1, 2] = right.log_probs[1, 2] + gap / 100
        assert compare(off, right, wanted, ids, dtype) == pytest.approx(gap / 100, rel=1e-2)
        little = SimpleNamespace(log_probs=right.log_probs + gap / 15, entropy=None)
        with pytest.raises(SharingError, match="apart on average"):
            compare(little, right, wanted, ids, dtype)
        off.log_probs[1, 2] = right.log_probs[1, 2] = torch.nan
        assert compare(off, right, wanted, ids, dtype) == 0
        right.log_probs[1, 2] = -1.0
        with pytest.raises(SharingError, match="nan"):
            compare(off, right, wanted, ids, dtype)

    @pytest.mark.parametrize(
        ("where", "name", "value", "rounded"),
        [
            (torch.backends, "fp32_precision", "tf32", True),  # as transformers' tf32=True has it
            (torch.backends, "fp32_precision", "ieee", False),
            (torch.backends.cuda.matmul, "allow_tf32", True, True),
            (torch.backends.cuda.matmul, "allow_tf32", False, False),
        ],
    )
    def test_rounded_products_are_allowed_more_however_they_were_asked_for(
        self, where: Any, name: str, value: Any, rounded: bool
    ) -> None:
        if not hasattr(where, name):
            pytest.skip(f"this PyTorch has no {name}")
        before = getattr(where, name)
        setattr(where, name, value)
        try:
            limit = allowed(torch.float32, torch.device("cuda"))
            assert limit == (1.0 if rounded else 2e-3)
            assert allowed(torch.float32, torch.device("cpu")) == 2e-3
        finally:
            setattr(where, name, before)
