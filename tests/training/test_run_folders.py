"""The directory of a run, and what it takes from a file, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foreword._errors import ParameterError
from foreword.training import SharingError
from foreword.training.runs._lengths import check_demonstrations
from foreword.training.runs._out import IDENTITY, check_identity, make_out
from foreword.training.runs._records import read_prompts


def test_a_directory_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    make_out(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(SharingError, match=r"cannot make .*c': No space left on device; take"):
        make_out(tmp_path / "c")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([{"name": "a", "sha256": "f00"}], r"rewards\.0\.sha256 \(ba5; now f00\)"),
        ([{"name": "a", "sha256": "ba5"}, {"name": "b"}], r"rewards\.number \(1; now 2\)"),
        ([], r"rewards\.number \(1; now 0\)"),
    ],
)
def test_what_differs_from_the_run_is_named_within_lists_too(
    tmp_path: Path, now: list[dict[str, str]], said: str
) -> None:
    was = {"rewards": [{"name": "a", "sha256": "ba5"}]}
    (tmp_path / IDENTITY).write_text(json.dumps(was))
    check_identity(tmp_path, was)
    with pytest.raises(SharingError, match=said):
        check_identity(tmp_path, {"rewards": now})


def test_a_demonstration_is_named_by_its_line(tmp_path: Path, tokenizer: Any) -> None:
    texts = ("a b c", "a b " * 40)
    lines = ["", *(json.dumps({"prompt": "p", "demonstration": text}) for text in texts)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    data = read_prompts(str(tmp_path / "data.jsonl"), demonstrations=True)
    config = SimpleNamespace(prefix_keep=1, prefix_stop_at=None, max_completion_length=16)
    check_demonstrations(data, [0], tokenizer, config)  # the other one is not taken
    with pytest.raises(ParameterError, match=r"the demonstration of data\.jsonl line 3 has"):
        check_demonstrations(data, [0, 1], tokenizer, config)
