"""`foreword train prefix`: files in, a prefix out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from foreword.prefixes import Prefix
from foreword.prefixes.methods import METHODS
from foreword.prefixes.training import read_card
from tests.cli.support import write_lines

QUICK = ("--steps", 4, "--batch-size", 2, "--set", "length=3", "--threads", 1)


@pytest.fixture
def texts(tmp_path):
    lines = [
        {"text": f"the {word} sat on the {word}"} for word in ["cat", "dog", "hen", "fox", "ant"]
    ]
    return write_lines(tmp_path / "texts.jsonl", *lines, *lines)


def test_it_trains_exports_and_says_how_to_serve(run, tiny_model_dir, texts, tmp_path):
    out = tmp_path / "run"
    ran = run("train", "prefix", tiny_model_dir, texts, "--out", out, *QUICK)
    assert ran.code == 0, ran.err
    assert "loss without a prefix" in ran.out
    assert f"foreword serve {tiny_model_dir} --prefix mine={out}/prefix" in ran.out
    assert "9 examples, 1 to judge by" in ran.err
    assert "step 4/4" in ran.err
    assert Prefix.load(out / "prefix").length == 3
    card = read_card(out)
    assert card["settings"] == {"length": 3}
    assert [source["examples"] for source in card["data"]] == [10]
    assert (card["training"]["steps"], card["training"]["eval_every"]) == (4, 1)


def test_the_same_seed_gives_the_same_prefix(run, tiny_model_dir, texts, tmp_path):
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        more = ("--set", "hidden=4", "--seed", seed, "--quiet", "--json")
        ran = run("train", "prefix", tiny_model_dir, texts, "-o", out, *QUICK, *more)
        assert ran.err == ""
        assert ran.json["exported"] == {"": str(out / "prefix")}
        made.append(Prefix.load(out / "prefix").identity)
    assert made[0] == made[1] != made[2]


def test_json_is_one_object(run, tiny_model_dir, texts, tmp_path):
    told = run(
        "train", "prefix", tiny_model_dir, texts, "--out", tmp_path / "r", "--json", *QUICK
    ).json
    assert (told["steps"], told["stopped"], told["method"]) == (4, "steps", "prefix-tuning")
    assert told["best_loss"] > 0


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_flags_override_the_file(run, tiny_model_dir, texts, tmp_path, suffix):
    if suffix == "toml" and sys.version_info < (3, 11):
        pytest.skip("reading TOML needs Python 3.11")
    file, out = tmp_path / f"c.{suffix}", tmp_path / "run"
    if suffix == "json":
        said = {"model": str(tiny_model_dir), "data": str(texts), "steps": 9, "lr": 1,
                "out": str(out), "dev_share": 0, "set": {"length": 3, "hidden": 2}}  # fmt: skip
        file.write_text(json.dumps(said))
    else:
        file.write_text(
            f'model = "{tiny_model_dir}"\ndata = "{texts}"\nout = "{out}"\nsteps = 9\nlr = 1\n'
            "dev_share = 0\n[set]\nlength = 3\nhidden = 2\n"
        )
    ran = run("train", "prefix", "--config", file, "--steps", 2, "--set", "hidden=4")
    assert ran.code == 0, ran.err
    card = read_card(out)
    assert card["settings"] == {"length": 3, "hidden": 4}
    assert (card["training"]["steps"], card["training"]["lr"]) == (2, 1)
    assert card["dev_losses"] == []


def test_an_old_python_is_told_to_write_json(run, tmp_path, monkeypatch):
    (tmp_path / "c.toml").write_text("steps = 2\n")
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    ran = run("train", "prefix", "nano", "x", "--config", tmp_path / "c.toml")
    assert ran.code == 2
    assert "Python 3.11 or newer; write it as JSON" in ran.err


@pytest.mark.parametrize(
    ("config", "words", "told"),
    [
        ({"epochs": 3}, [], "has 'epochs', which is no setting; there are accumulate,"),
        ({"set": 3}, [], "set is a table"),
        ({"window": "wide"}, [], "window is 'wide': give a whole number"),
        ({"lr": "high"}, [], "lr is 'high'"),
        ("{", [], "cannot be read"),
        (None, ["--set", "length"], "--set 'length': write KEY=VALUE"),
        (None, ["--set", "size=3"], "prefix-tuning has no setting 'size'; it has length"),
        (None, ["--method", "magic"], "no method is called 'magic'; there are prefix-tuning"),
        (None, ["--steps", "0"], "steps is 0: give 1 or more"),
        (None, ["--schedule", "step"], "schedule is 'step'"),
        (None, ["--dev-share", "1"], "dev examples is 1.0"),
        (None, ["--dev", "gone.jsonl"], "cannot read 'gone.jsonl'"),
        (None, ["--dtype", "int3"], "dtype 'int3' is unknown"),
        (None, ["--set", "length=512"], "leaves no room: the context is 512"),
        (None, ["--set", "length=500"], "texts.jsonl line 1 has 22 tokens, and 12 fit behind"),
    ],
)
def test_what_is_wrong_is_named(run, tiny_model_dir, texts, tmp_path, config, words, told):
    if config is not None:
        (tmp_path / "c.json").write_text(config if config == "{" else json.dumps(config))
        words = [*words, "--config", tmp_path / "c.json"]
    ran = run("train", "prefix", tiny_model_dir, texts, "--out", tmp_path / "run", *words)
    assert ran.code == 2
    assert told in ran.err
    assert ran.err.count("error:") == 1
    assert not list(tmp_path.glob("run/*"))


def test_what_is_missing_is_named(run, texts, tmp_path):
    assert "give MODEL and DATA" in run("train", "prefix", "nano", "--out", tmp_path).err
    assert "give --out" in run("train", "prefix", "nano", texts).err


def test_long_records_are_truncated_and_recomputed(run, tiny_model_dir, texts, tmp_path):
    ran = run(
        "train", "prefix", tiny_model_dir, texts, "-o", tmp_path / "r", "--steps", 1,
        "--set", "length=500", "--truncate", "--recompute", "--threads", 1,
    )  # fmt: skip
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_from_the_command_line(run, tiny_model_dir, tmp_path, method):
    lines = [
        {
            "prompt": f"{style}{letter}",
            "chosen": f" {letter}!",
            "rejected": " none",
            "attributes": {"style": style},
            "private": [letter],
        }
        for style in "xy"
        for letter in "abc"
    ]
    data, out = write_lines(tmp_path / "d.jsonl", *lines), tmp_path / "run"
    words = ("--steps", 2, "--batch-size", 2, "--threads", 1, "--method", method)
    small = ("--set", "layers=2") if method == "robust" else ()  # the model has no more
    ran = run("train", "prefix", tiny_model_dir, data, "-o", out, *words, *small)
    assert ran.code == 0, ran.err
    card = read_card(out)
    assert card["method"] == method
    assert ran.out.count("serve it: ") == min(3, len(card["exported"]))
    for exported in card["exported"].values():
        assert Prefix.load(out / exported["folder"]).identity == exported["identity"]


def test_a_method_takes_from_the_data_what_it_was_not_told(run, tiny_model_dir, tmp_path):
    lines = [{"text": f"{a}{b}", "attributes": {"style": a}} for a in "xy" for b in "abc"]
    data = write_lines(tmp_path / "d.jsonl", *lines)
    words = ("train", "prefix", tiny_model_dir, data, "--method", "control-prefixes", "--steps", 1)
    assert run(*words, "-o", tmp_path / "a").code == 0
    assert read_card(tmp_path / "a")["settings"] == {"attributes": {"style": ["x", "y"]}}
    told = run(*words, "-o", tmp_path / "b", "--set", 'attributes={"style": ["x"]}')
    assert told.code == 2
    assert "no label 'y'" in told.err


INTERRUPTED = """
import os, signal, sys
import foreword.cli._train_display as display
told = display.TrainDisplay.update
def update(self, progress):
    told(self, progress)
    if progress.step == 2:
        os.kill(os.getpid(), signal.SIGINT)
display.TrainDisplay.update = update
from foreword.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(run, tiny_model_dir, texts, tmp_path):
    words = ["train", "prefix", str(tiny_model_dir), str(texts), *map(str, QUICK), "--out"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *words, str(tmp_path / "run")],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert "checkpoint-3 is kept; the same command with --resume goes on" in done.stderr
    assert not (tmp_path / "run" / "prefix").exists()

    refused = run(*words, tmp_path / "run")
    assert (refused.code, "holds a run already" in refused.err) == (2, True)
    resumed = run(*words, tmp_path / "run", "--resume", "--json").json
    fresh = run(*words, tmp_path / "whole", "--resume", "--json")
    assert "whole has no checkpoint: this run begins at step 1" in fresh.err
    whole = fresh.json
    assert (resumed["resumed_from"], whole["resumed_from"]) == (3, 0)
    assert resumed["last_loss"] == whole["last_loss"]
    assert (
        Prefix.load(tmp_path / "run" / "prefix").identity
        == Prefix.load(tmp_path / "whole" / "prefix").identity
    )


@pytest.mark.parametrize("setting", ["length=abc", "length=2.5", "hidden=-4", "init_ids=foo"])
def test_a_setting_of_another_type_is_refused_by_name(
    run, tiny_model_dir, texts, tmp_path, setting
):
    asked = ("train", "prefix", tiny_model_dir, texts, "--out", tmp_path / "run", "--set", setting)
    ran = run(*asked, "--steps", 1)
    assert ran.code == 2
    assert setting.split("=")[0] in ran.err
    assert "not expected" not in ran.err


def test_a_directory_that_cannot_be_made_is_refused(run, tiny_model_dir, texts, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        ran = run("train", "prefix", tiny_model_dir, texts, "--out", out, *QUICK)
        assert ran.code == 2
        assert "take another one" in ran.err
    assert (tmp_path / "file").read_text() == "mine"


def test_the_line_that_serves_it_is_quoted(run, tiny_model_dir, texts, tmp_path):
    out = tmp_path / "a run"
    ran = run("train", "prefix", tiny_model_dir, texts, "--out", out, *QUICK)
    assert f"--prefix 'mine={out}/prefix'" in ran.out
