"""Choosing a backend: the fastest that fits, or a reason and a way out."""

from __future__ import annotations

import pytest
import torch

from foreword import _library
from foreword.attention import BackendError, backends, choose


def test_names_are_unique_and_the_reference_comes_last() -> None:
    assert len(set(backends())) == len(backends())
    assert "torch" in backends()
    assert backends()[-1] == "reference"


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_every_backend_can_be_chosen_by_name(name: str) -> None:
    backend = choose("cpu", torch.float32, 64, name)
    assert backend.name == name
    assert backend is choose(torch.device("cpu"), torch.float32, 64, name)


def test_auto_takes_the_first_that_fits() -> None:
    fastest = "torch" if isinstance(_library.load(), str) else "native"
    assert choose("cpu", torch.bfloat16, 64).name == fastest
    assert choose("cpu", torch.float64, 64).name == "torch"
    assert choose("cpu", torch.float8_e4m3fn, 64).name == "reference"
    assert choose("cuda", torch.float64, 64).name == "reference"


def test_an_unknown_name_is_answered_with_those_that_fit() -> None:
    with pytest.raises(BackendError, match=r"'flash'.*torch, reference"):
        choose("cpu", torch.float32, 64, "flash")


def test_an_unfit_backend_says_why_and_what_fits() -> None:
    with pytest.raises(BackendError, match=r"'torch'.*float64.*backends that fit: reference"):
        choose("cuda", torch.float64, 64, "torch")


def test_when_nothing_fits_every_reason_is_given() -> None:
    with pytest.raises(BackendError, match=r"torch: .*; reference: .*torch.int8"):
        choose("cpu", torch.int8, 64)
