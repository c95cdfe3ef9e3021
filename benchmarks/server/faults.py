"""What is left of work and files when a server is killed, its disk fills up, its files rot.

python -m benchmarks.server.faults --out FILE
"""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server._faults import (
    Served,
    answers_of,
    batch,
    compare,
    recorded,
    start_batch,
    upload,
    wait_for,
)
from benchmarks.server._trial import Trial

_SYSTEM = "You are the keeper of a small museum and answer its visitors patiently. " * 12
_FEW = ("--max-batch", "8")
"""Seats that a batch is longer than, so that it can be met in the middle."""
_FLIPS = (8, 0.001, 0.3, 0.6, 0.999)  # bytes into the file, or fractions of it


def main() -> int:
    """Run the four trials; 0 if each went as expected."""
    trial = Trial("faults", "Does a server that fails lose or change anything it has promised?")
    trial.parser.add_argument("--kills", type=int, help="times a batch is killed")
    trial.parser.add_argument("--lines", type=int, help="lines of a batch")
    given = trial.options()
    kills = given.kills or (2 if given.quick else 10)
    count = given.lines or (60 if given.quick else 400)
    for what in ("lost", "doubled", "different"):
        trial.expect(f"kill_{what}", f"lines {what} after {kills} kills", exactly=0)
    trial.expect("kills", "kills that met a batch in the middle", at_least=max(1, kills // 2))
    for what in ("lost", "doubled", "different"):
        trial.expect(f"full_{what}", f"lines {what} after the disk was full", exactly=0)
    trial.expect("full_said", "batch said that the disk is full", exactly=1)
    trial.expect("full_upload", "status of an upload on the full disk", exactly=507)
    trial.expect("full_left", "bytes of that upload left on the disk", exactly=0)
    trial.expect("full_serves", "status of a completion meanwhile", exactly=200)
    trial.expect("rot_loaded", "damaged prefixes that were used", exactly=0)
    trial.expect("rot_kept", "damaged prefixes that were kept to look at", exactly=len(_FLIPS) + 1)
    trial.expect("rot_different", "answers that differ behind a damaged prefix", exactly=0)
    trial.expect("drain_broken", "streams cut short by SIGTERM", exactly=0)
    trial.expect("drain_let_in", "requests let in after SIGTERM", exactly=0)
    trial.expect("drain_exit", "exit code after SIGTERM", exactly=0)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        whole = _whole(trial, root, count)
        _kill(trial, root, whole, kills)
        _fill(trial, root, whole)
        _rot(trial, root)
        _drain(trial, root, 4 if given.quick else 16)
    return trial.finish()


def _whole(trial: Trial, root: Path, count: int) -> list[tuple[str, str]]:
    """What a batch answers that nobody disturbs."""
    with Served(["--data", str(root / "whole"), *_FEW], log=root / "log") as served:
        answers = answers_of(served, start_batch(served, count))
    trial.say(f"an undisturbed batch: {len(answers)} answers")
    return answers


def _kill(trial: Trial, root: Path, whole: list[tuple[str, str]], kills: int) -> None:
    data, met, batch_id = root / "killed", 0, ""
    for turn in range(kills):
        with Served(["--data", str(data), *_FEW], log=root / "log") as served:
            if turn == 0:
                batch_id = start_batch(served, len(whole))
            _until_recorded(served, data, batch_id, (turn + 1) * len(whole) // (kills + 1))
            served.kill()
        met += 0 < recorded(data, batch_id) < len(whole)
    with Served(["--data", str(data), *_FEW], log=root / "log") as served:
        outcome = compare(answers_of(served, batch_id), whole)
    for what, value in outcome.items():
        trial.measured(f"kill_{what}", value)
    trial.measured("kills", met)
    trial.say(f"killed {met} times in the middle: {outcome}")


def _until_recorded(served: Served, data: Path, batch_id: str, count: int) -> None:
    wait_for(
        lambda: (
            recorded(data, batch_id) >= count or batch(served, batch_id)["status"] == "completed"
        ),
        "records of a batch",
    )


def _fill(trial: Trial, root: Path, whole: list[tuple[str, str]]) -> None:
    data = root / "full"
    # The input fits; its answers, about three times as long, do not.
    limit = 200 * len(whole)
    with Served(["--data", str(data), *_FEW], log=root / "log", file_limit=limit) as served:
        batch_id = start_batch(served, len(whole))
        wait_for(lambda: batch(served, batch_id)["errors"], "a full disk")
        told = batch(served, batch_id)
        trial.measured("full_said", told["errors"]["data"][0]["code"] == "disk_full")
        trial.fact("full_status", told["status"])
        before = _sizes(data / "files")
        answer = upload(served.client, b"x" * (2 * limit))
        trial.measured("full_upload", answer.status_code)
        trial.measured("full_left", _sizes(data / "files") - before)
        body = {"prompt": "Once", "max_tokens": 4}
        trial.measured("full_serves", served.client.post("/v1/completions", json=body).status_code)
        served.kill()
    trial.fact("full_recorded", recorded(data, batch_id))
    with Served(["--data", str(data), *_FEW], log=root / "log") as served:
        outcome = compare(answers_of(served, batch_id), whole)
    for what, value in outcome.items():
        trial.measured(f"full_{what}", value)
    trial.say(f"full disk: {outcome}")


def _sizes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _rot(trial: Trial, root: Path) -> None:
    """A saved prefix with one byte changed, or its end cut off, is found out and made anew."""
    system = root / "system.txt"
    system.write_text(_SYSTEM, encoding="utf-8")
    saved = root / "saved"
    options = ["--pin", str(system), "--save-prefixes", str(saved)]
    with Served(options, log=root / "log") as served:
        expected, _ = _ask(served)
        served.stop()
    (path,) = saved.glob("*.safetensors")
    with Served(options, log=root / "log") as served:
        trial.fact("sound_prefix_log", served.log)
        again, cached = _ask(served)
        different = int(again != expected)
        trial.fact("sound_prefix_cached_tokens", cached)
        served.stop()
    whole = path.read_bytes()
    loaded = kept = 0
    for place in (*_FLIPS, None):
        rotten = bytearray(whole[: len(whole) // 2] if place is None else whole)
        if place is not None:
            rotten[place if isinstance(place, int) else int(place * len(whole))] ^= 0x10
        path.write_bytes(rotten)
        with Served(options, log=root / "log") as served:
            answer, _ = _ask(served)
            different += answer != expected
            served.stop()
        bad = [other for other in saved.iterdir() if ".bad" in other.name]
        kept += any(other.read_bytes() == rotten for other in bad)
        loaded += path.read_bytes() == rotten
        for other in bad:
            other.unlink()
        path.write_bytes(whole)
    trial.measured("rot_loaded", loaded)
    trial.measured("rot_kept", kept)
    trial.measured("rot_different", different)
    trial.say(f"damaged prefixes: {kept} found out and kept, {loaded} used")


def _ask(served: Served) -> tuple[str, int]:
    """An answer behind the pinned prefix, and how many of its prompt's tokens were there."""
    body = {"prompt": _SYSTEM + "When do you open?", "max_tokens": 24, "temperature": 0}
    told = served.post("/v1/completions", body)
    cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
    return str(told["choices"][0]["text"]), int(cached)


def _drain(trial: Trial, root: Path, streams: int) -> None:
    """SIGTERM while answers are being written: they are written to their end."""
    with Served(["--data", str(root / "drained")], log=root / "log") as served:
        start_batch(served, 200)  # a batch in the background must not hold it up
        begun = threading.Barrier(streams + 1)
        whole = [False] * streams
        readers = [
            threading.Thread(target=_read, args=(served.client, i, begun, whole))
            for i in range(streams)
        ]
        for reader in readers:
            reader.start()
        begun.wait(60)
        served.process.terminate()
        wait_for(lambda: not _lets_in(served), "a server that refuses")
        let_in = sum(_lets_in(served) for _ in range(10))
        for reader in readers:
            reader.join()
        trial.measured("drain_exit", served.process.wait(90))
    trial.measured("drain_broken", whole.count(False))
    trial.measured("drain_let_in", let_in)
    trial.say(f"SIGTERM during {streams} streams: {whole.count(True)} ended whole")


def _read(client: httpx.Client, i: int, begun: threading.Barrier, whole: list[bool]) -> None:
    body: dict[str, Any] = {"prompt": f"Once {i}", "max_tokens": 300, "stream": True}
    finished = done = False
    try:
        with client.stream("POST", "/v1/completions", json={**body, "ignore_eos": True}) as answer:
            first = True
            for line in answer.iter_lines():
                if first:
                    begun.wait(60)
                    first = False
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    reasons = [choice["finish_reason"] for choice in event.get("choices", [])]
                    finished = finished or "length" in reasons
    except httpx.TransportError:
        return
    whole[i] = finished and done


def _lets_in(served: Served) -> bool:
    try:
        body = {"prompt": "Once", "max_tokens": 1}
        return served.client.post("/v1/completions", json=body).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    raise SystemExit(main())
