"""Tables of a result, and the README's block that must equal the result it links."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from foreword.bench import ReportError, check_readme, default_name, tables, write_readme
from foreword.bench._measure import summary
from foreword.bench._report import END, START

SPEED = {
    "decode": summary([100.0, 110.0, 130.0], "tokens/s"),
    "decode_step": summary([50.0, 51.0, 52.0], "ms"),
    "total_cold": summary([9.0, 9.5, 10.0], "s"),
    "first_token": {"median": summary([2.0], "s"), "last": summary([3.0, 5.0], "s")},
    "peak_rss_bytes": 1_500_000_000,
}
POINT = {
    "requests": 8,
    "prefix": 1024,
    "suffix": 32,
    "foreword": SPEED,
    "peers": {
        "vllm": SPEED | {"ours_over_theirs": 1.5},
        "openvino": {"skipped": "no environment for it"},
    },
}
RESULT: dict[str, Any] = {
    "kind": "foreword bench engine",
    "date": "2026-01-31T12:00:00+00:00",
    "machine": {
        "cpu": "Some(R) CPU X1 @ 2.00GHz",
        "flags": ["avx2"],
        "cores": 2,
        "memory_bytes": 2**34,
    },
    "versions": {"torch": "2.13", "transformers": "5.23", "foreword": "0.1"},
    "source": {"commit": "0123456789abcdef", "dirty": False},
    "quietness": {"load_before": [0.1, 0, 0], "load_after": None, "stolen_share": None},
    "settings": {"threads": 2, "sizes": {"repeats": 3}},
    "model": {
        "name": "m350",
        "dtype": "bfloat16",
        "hidden": 1024,
        "layers": 24,
        "heads": 16,
        "kv_heads": 4,
        "head_dim": 64,
        "vocab": 32000,
    },
    "cases": {
        "sharers": {
            "prefix": 4096,
            "requests": 64,
            "suffix": 32,
            "new_tokens": 64,
            "foreword": SPEED
            | {
                "prompt_tokens": 264192,
                "prompt_tokens_computed": [6144, 6144, 6144],
                "prompt_tokens_distinct": 6144,
                "kv_bytes_held": 250_000_000,
                "kv_bytes_unshared": 6_000_000_000,
                "kv_held_over_distinct": 1.01,
                "planning_share": summary([0.02], "of a step"),
                "backend": "torch",
            },
            "peers": {
                "transformers": SPEED
                | {"ours_over_theirs": 12.345, "measured_once": "a repeat takes 120 s"},
                "vllm": {"skipped": "no environment for it"},
            },
            "unshared": {
                "prefix": 1024,
                "requests": 16,
                "decode_shared_over_unshared": 2.0,
                "total_unshared_over_shared": 3.0,
            },
        }
    },
}


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """A README with an empty block, and a result two directories below."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    _result(tmp_path).write_text(json.dumps(RESULT))
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{START}\n{END}\n\nMore text.\n")
    return path


def _result(root: Path) -> Path:
    return root / "benchmarks" / "results" / "engine.json"


def test_a_written_block_checks_and_leaves_the_rest_alone(readme: Path) -> None:
    write_readme(readme, _result(readme.parent))
    check_readme(readme)
    text = readme.read_text()
    assert text.startswith(f"# Title\n\n{START}\n")
    assert text.endswith(f"{END}\n\nMore text.\n")
    assert "[engine.json](benchmarks/results/engine.json)" in text
    write_readme(readme, _result(readme.parent))
    assert readme.read_text() == text


def test_the_block_says_numbers_and_conditions(readme: Path) -> None:
    write_readme(readme, _result(readme.parent))
    text = readme.read_text()
    for part in (
        "64 requests behind 4,096 shared tokens",
        "| Foreword | 110 ± 15 | 51.0 ± 1.0 | 2.0 | 9.5 ± 0.5 | 1.5 |",
        "12.35x",
        "| first token, s |",
        "avx2",
        "commit 0123456789;",
        "medians of 3",
        "2026-01-31",
    ):
        assert part in text, part
    assert "vLLM" not in text  # it was not measured


def test_a_result_of_the_first_format_can_still_be_checked(readme: Path) -> None:
    old = deepcopy(RESULT)
    for engine in ("foreword", "transformers"):
        case = old["cases"]["sharers"]
        del (case["peers"] | case)[engine]["first_token"]
    _result(readme.parent).write_text(json.dumps(old))
    write_readme(readme, _result(readme.parent))
    assert "| Foreword | 110 ± 15 | 51.0 ± 1.0 | 9.5 ± 0.5 | 1.5 |" in readme.read_text()
    old["cases"]["nothing-to-share"] = {"requests": 32}
    assert "requests behind 4,096" in tables(old)


def test_an_edited_number_is_found(readme: Path) -> None:
    write_readme(readme, _result(readme.parent))
    readme.write_text(readme.read_text().replace("110 ± 15", "111 ± 15"))
    with pytest.raises(ReportError, match="are not those of"):
        check_readme(readme)


def test_a_changed_result_is_found(readme: Path) -> None:
    write_readme(readme, _result(readme.parent))
    changed = deepcopy(RESULT)
    changed["source"]["dirty"] = True
    _result(readme.parent).write_text(json.dumps(changed))
    with pytest.raises(ReportError, match="are not those of"):
        check_readme(readme)


def test_a_readme_that_cannot_be_checked_says_so(readme: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="links no result"):
        check_readme(readme)
    readme.write_text("nothing here")
    with pytest.raises(ReportError, match="needs one"):
        check_readme(readme)
    with pytest.raises(ReportError, match="cannot read"):
        check_readme(tmp_path / "none.md")


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "other"}', "\x00"])
def test_other_files_are_refused(readme: Path, text: str) -> None:
    _result(readme.parent).write_text(text)
    with pytest.raises(ReportError, match=r"engine\.json"):
        write_readme(readme, _result(readme.parent))


def test_a_result_outside_the_repository_is_refused(
    readme: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "engine.json"
    other.write_text(json.dumps(RESULT))
    with pytest.raises(ReportError, match="copy it to benchmarks/results"):
        write_readme(readme, other)


def test_tables_show_what_was_left_out_and_why() -> None:
    text = tables(RESULT)
    assert "Left out: vLLM, CPU build: no environment for it" in text
    assert "Measured once: transformers `generate`" in text
    assert "prefix cache expanded 4.0 ± 1.0 s" in text  # the last first token
    assert "6144 of 264192, distinct: 6144" in text
    assert tables(RESULT | {"cases": {}}).startswith("Some(R) CPU")


def test_the_sweep_has_a_row_for_each_point() -> None:
    case = {"new_tokens": 16, "repeats": 2, "points": [POINT, POINT | {"peers": {}}]}
    lines = tables(RESULT | {"cases": {"sweep": case}}).splitlines()
    decode = lines.index("Decode, tokens/s; in brackets ours over theirs")
    head, with_peer, without = (line.split() for line in lines[decode + 1 : decode + 4])
    assert head == ["requests", "shared", "own", "Foreword", "vllm"]
    assert " ".join(with_peer) == "8 1,024 32 110 ± 15 110 ± 15 (1.50x)"
    assert " ".join(without) == "8 1,024 32 110 ± 15"
    assert "2.0 / 4.0  2.0 / 4.0" in "\n".join(lines)
    assert "Left out: openvino at 8 x 1,024 + 32: no environment for it" in lines


def test_nothing_to_share_stands_beside_peers() -> None:
    whole = {"total": summary([2.0], "s")}
    point = {"requests": 8, "prompt": 512, "on": whole, "off": whole, "speed_on_over_off": 0.99}
    point |= {"foreword": SPEED, "peers": POINT["peers"]}
    text = tables(RESULT | {"cases": {"nothing-to-share": {"points": [point]}}})
    row = next(line for line in text.splitlines() if line.startswith("8 requests of 512"))
    assert row.split() == (
        "8 requests of 512 2.00 2.00 0.99x 110 ± 15 110 ± 15 (1.50x)".split()  # noqa: SIM905
    )


def test_a_result_gets_a_name_of_its_own() -> None:
    assert default_name(RESULT) == "engine-some-2026-01-31.json"
    nameless = RESULT | {"machine": RESULT["machine"] | {"cpu": None}}
    assert default_name(nameless) == "engine-cpu-2026-01-31.json"


def test_the_readme_says_what_was_measured() -> None:
    path = Path(__file__).parents[2] / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if "|" not in text[text.find(START) : text.find(END)]:
        pytest.skip("README.md has no table of measurements yet")
    check_readme(path)
