"""The triton backend where there is no GPU: its interpreter, its compiler, its manners."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from foreword.attention import PlanError, _triton, plan
from foreword.attention._triton import TritonBackend
from foreword.attention._triton_buffers import PlanBuffer
from tests.attention.forests import tree

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def triton_version() -> tuple[int, ...]:
    """Triton's major and minor version, none of both if it is not there."""
    try:
        return tuple(int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:
        return ()


needs_triton = pytest.mark.skipif(not triton_version(), reason="needs the package triton")
# The interpreter of 3.6 turns arrays of one element into numbers, which NumPy 2.4 refuses.
needs_interpreter = pytest.mark.skipif(triton_version() < (3, 9), reason="needs Triton 3.9")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """This Python in a process of its own, at the root of the repository."""
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _triton._device_fault.cache_clear()
    yield
    _triton._device_fault.cache_clear()


@needs_interpreter
def test_in_the_interpreter() -> None:
    suite = HERE / "triton_interpreted.py"
    done = python("-m", "pytest", "-q", "-rs", str(suite), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from foreword.attention import _triton_kernels as kernels
from foreword.attention._triton_plan import BLOCKS
from foreword.attention._triton_shapes import Device, largest_block, padded, shape

def build(kernel, arch, constants, element, warps, stages):
    types = {"q": element, "keys": element, "values": element, "out": element, "plan": "*i32",
             "lse": "*fp32", "partial_out": "*fp32", "partial_lse": "*fp32", "scale": "fp32"}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
               if signature[n] not in ("constexpr", "fp32")}
    source = ASTSource(kernel, signature, {(names.index(n),): c for n, c in constants.items()},
                       aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)

def attend(arch, shared, element, itemsize, dim, bucket):
    block = BLOCKS[bucket]
    n, warps, stages = shape(block, dim, itemsize, Device(132, shared, arch in (90, 100)))
    constants = {"BUCKET": bucket, "KV_HEADS": 8, "GROUP": 4, "DIM": dim, "BLOCK_M": block,
                 "BLOCK_N": n, "BLOCK_D": padded(dim), "WIDEN": False}
    built = build(kernels.attend, arch, constants, element, warps, stages)
    print(arch, element, dim, block, built.metadata.shared, shared, flush=True)
    assert built.metadata.shared <= shared
    # Keys and values are loaded ahead, 16 bytes at a time, and multiplied by tensor cores.
    assert "cp.async.cg.shared.global" in built.asm["ptx"]
    assert any(each in built.asm["ptx"] for each in ("mma.sync", "wgmma", "tcgen05.mma"))

for arch, shared in ((80, 166_912), (90, 232_448), (120, 101_376)):
    for element, itemsize, dim in (("*bf16", 2, 80), ("*bf16", 2, 256), ("*fp32", 4, 256)):
        for bucket, block in enumerate(BLOCKS):
            if block <= largest_block(dim, itemsize):
                attend(arch, shared, element, itemsize, dim, bucket)
    constants = {"HEADS": 32, "DIM": 80, "BLOCK_H": 8, "BLOCK_D": 128}
    build(kernels.merge, arch, constants, "*bf16", 4, 3)
"""


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    done = python("-W", "error", "-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_backend_imports_no_kernel() -> None:
    code = (
        "import sys, foreword.attention._triton; "
        "sys.exit('foreword.attention._triton_kernels' in sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("device", "dtype", "dim", "reason"),
    [
        (CUDA, torch.float64, 64, "not torch.float64"),
        (CUDA, torch.bfloat16, 257, "up to 256"),
        (CPU, torch.float32, 64, "compiles for GPUs only"),
        (torch.device("mps"), torch.float32, 64, "NVIDIA"),
    ],
)
def test_what_it_does_not_run(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, dtype: torch.dtype, dim: int, reason: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    found = TritonBackend().supports(device, dtype, dim)
    assert found is not None
    assert reason in found


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for device in (CPU, CUDA):
        reason = TritonBackend().supports(device, torch.float16, 64)
        assert reason == "the package triton is not installed"


def test_an_old_gpu_is_refused_by_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, fits in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        _triton._device_fault.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        reason = TritonBackend().supports(CUDA, torch.float16, 64)
        assert (reason is None) == fits
        assert reason is None or "compute capability 8.0, this device has 7.5" in reason


def test_a_capture_wants_the_plan_on_the_device_in_a_buffer_that_stays() -> None:
    forest, keys = tree("1,2_40,5"), torch.empty(2, 64, 32)
    work, other = (plan(forest.spans, forest.rows, group=2) for _ in range(2))
    backend, buffer = TritonBackend(), PlanBuffer("cpu")

    def refused() -> None:
        with pytest.raises(PlanError, match=r"call prepare\(\) with a PlanBuffer"):
            _triton._prepared(work, 4, keys)

    refused()
    backend.prepare(work, 4, keys)  # in a buffer of the list's own
    refused()
    backend.prepare(work, 4, keys, buffer)
    assert _triton._prepared(work, 4, keys).buffer is buffer
    assert backend.prepare(work, 4, keys) is buffer
    work.advance()
    refused()
    backend.prepare(work, 4, keys)
    assert _triton._prepared(work, 4, keys).shared
    backend.prepare(other, 4, keys, buffer)
    refused()
