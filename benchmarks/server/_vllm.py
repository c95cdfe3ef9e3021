"""vLLM's CPU build as a server; `benchmarks/peers/prepare_vllm.sh` makes its environment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from foreword.bench._peer import locate

START_SECONDS = 900.0

_PRELOAD = """
import glob, os, sys
found = glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4")
found += glob.glob(os.path.join(sys.prefix, "lib", "**", "libiomp5.so"), recursive=True)
print(":".join(found))
"""


class VLLMServer:
    """The server while the block runs; `url` is its address without a slash at its end.

    Settings are those of `benchmarks/peers/vllm_cpu.py`.

    Args:
        model: a directory with a tokenizer in it.
        threads: as many cores are bound.
        max_batch, max_context: limits of the run.
        kv_gib: memory for keys and values.
        dtype: of the weights.
    """

    def __init__(
        self,
        model: Path,
        *,
        threads: int,
        max_batch: int,
        max_context: int,
        kv_gib: int,
        dtype: str,
    ) -> None:
        self._python, _ = locate("vllm")
        self._threads = threads
        self._kv_gib = kv_gib
        self.settings: dict[str, Any] = {
            "dtype": dtype,
            "max-model-len": max_context,
            "max-num-seqs": max_batch,
            "max-num-batched-tokens": 4096,
        }
        self._model = model
        self.url = ""
        self.version = ""

    def __enter__(self) -> VLLMServer:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        words = [self._python, "-m", "vllm.entrypoints.openai.api_server"]
        words += ["--model", str(self._model), "--served-model-name", self._model.name]
        words += ["--host", "127.0.0.1", "--port", str(port)]
        words += ["--enable-prefix-caching", "--enable-prompt-tokens-details"]
        words += ["--disable-uvicorn-access-log"]
        for name, value in self.settings.items():
            words += [f"--{name}", str(value)]
        self._log = tempfile.TemporaryFile("w+b")
        self._process = subprocess.Popen(
            words, env=self._environment(), stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self._wait()
            with urlopen(f"{self.url}/version", timeout=30) as answer:
                self.version = str(json.load(answer)["version"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def _environment(self) -> dict[str, str]:
        cores = sorted(os.sched_getaffinity(0))[: self._threads]
        asked = [self._python, "-c", _PRELOAD]
        found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        return {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": str(self._kv_gib),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(self._threads),
            "LD_PRELOAD": ":".join(filter(None, [os.environ.get("LD_PRELOAD"), found])),
        }

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"vLLM ended with {self._process.returncode}: {self._words()}")
            with suppress(URLError, OSError), urlopen(f"{self.url}/v1/models", timeout=5):
                return
            time.sleep(0.5)
        raise RuntimeError(f"vLLM did not answer within {START_SECONDS:g} s: {self._words()}")

    def _words(self) -> str:
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        print(text[-6000:], file=sys.stderr)
        lines = text.strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
