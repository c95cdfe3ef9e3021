"""`foreword generate`: where prompts come from, what is printed, and how it ends."""

from __future__ import annotations

import io
import json
import signal
import sys

import pytest

from foreword import LLM, SamplingParams
from foreword.cli._progress import ProgressDisplay
from tests.cli.support import write_lines


@pytest.fixture(scope="module")
def llm(tiny_model_dir):
    return LLM(tiny_model_dir, dtype="float32")


def text_of(llm, prompt, **params):
    return llm.generate(prompt, SamplingParams(**params))[0].outputs[0].text


def test_one_prompt_prints_its_answer_alone(run, tiny_model_dir, llm):
    ran = run("generate", tiny_model_dir, "Hello", "--max-tokens", 5)
    assert ran.code == 0
    assert ran.out == text_of(llm, "Hello", max_tokens=5) + "\n"
    assert "5 tokens generated" in ran.err


def test_json_is_one_object_with_the_progress_on(run, tiny_model_dir, llm):
    ran = run("generate", tiny_model_dir, "Hello", "Help", "--max-tokens", 5, "--n", 2, "--json")
    assert "loading" in ran.err
    assert [len(result["outputs"]) for result in ran.json["results"]] == [2, 2]
    assert ran.json["results"][1]["outputs"][0]["text"] == text_of(llm, "Help", max_tokens=5)
    assert ran.json["stats"]["requests"] == 2
    assert ran.json["interrupted"] is False


def test_several_answers_say_whose_they_are(run, tiny_model_dir):
    ran = run("generate", tiny_model_dir, "Hello", "Help", "--max-tokens", 2, "-q")
    assert ran.out.startswith("[1] Hello\n")
    assert "\n[2] Help\n" in ran.out
    assert ran.err == ""


def test_prompts_from_files_and_stdin(run, tiny_model_dir, tmp_path, monkeypatch):
    def answers(*words):
        ran = run("generate", tiny_model_dir, *words, "--max-tokens", 4, "--json")
        assert ran.code == 0, ran.err
        return [result["outputs"][0]["token_ids"] for result in ran.json["results"]]

    expected = answers("One", "Two")
    text = tmp_path / "p.txt"
    text.write_text("One\n\nTwo\n", encoding="utf-8")
    assert answers("--file", text) == expected
    lines = [{"prompt": "One"}, {"prompt": "Two", "max_tokens": 2}]
    jsonl = write_lines(tmp_path / "p.jsonl", *lines)
    assert answers("--file", jsonl) == [expected[0], expected[1][:2]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("One\nTwo"))
    assert answers("--file", "-") == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("Two"))
    assert answers("One", "-") == expected


def test_sampling_options_arrive(run, tiny_model_dir, llm):
    options = "--temperature=0.9 --top-k=7 --top-p=0.8 --min-p=0.01 --seed=3 --max-tokens=8"
    words = options.split()
    ran = run("generate", tiny_model_dir, "Hello", *words, "--json", "--logprobs", 1)
    params = {"temperature": 0.9, "top_k": 7, "top_p": 0.8, "min_p": 0.01, "seed": 3}
    output = ran.json["results"][0]["outputs"][0]
    assert output["text"] == text_of(llm, "Hello", max_tokens=8, **params)
    assert len(output["logprobs"]) == 8
    stopped = run(
        "generate", tiny_model_dir, "Hello", "--stop", output["text"][0], *words, "--json"
    )
    assert stopped.json["results"][0]["outputs"][0]["finish_reason"] == "stop"


def test_streaming(run, tiny_model_dir, llm):
    words = ("generate", tiny_model_dir, "Hello", "--max-tokens", 6, "--stream")
    whole = text_of(llm, "Hello", max_tokens=6)
    assert run(*words).out == whole + "\n"
    pieces = [json.loads(line) for line in run(*words, "--json").out.splitlines()]
    assert "".join(piece["text"] for piece in pieces) == whole
    assert [piece["finish_reason"] for piece in pieces][-1] == "length"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["./nosuch", "Hi"], "no model directory"),
        (["{model}"], "no prompt"),
        (["{model}", "Hi", "--file", "x.txt"], "not both"),
        (["{model}", "--file", "/nosuch.txt"], "/nosuch.txt"),
        (["{model}", ""], "empty"),
        (["{model}", "a" * 600], "context"),
        (["{model}", "Hi", "--temperature", "-1"], "temperature"),
        (["{model}", "Hi", "--top-p", "0"], "top_p"),
        (["{model}", "Hi", "--max-tokens", "0"], "max_tokens"),
        (["{model}", "Hi", "--n", "0"], "n must be"),
        (["{model}", "Hi", "--kv-memory", "lots"], "lots"),
        (["{model}", "Hi", "--kv-memory", "100"], "kv_memory"),
        (["{model}", "Hi", "--max-batch", "0"], "max_batch"),
        (["{model}", "Hi", "--backend", "nosuch"], "nosuch"),
        (["{model}", "Hi", "--dtype", "nosuch"], "nosuch"),
        (["{model}", "Hi", "Ho", "--stream"], "--stream"),
    ],
)
def test_bad_input_is_2_and_one_line(run, tiny_model_dir, words, told):
    ran = run("generate", *(word.format(model=tiny_model_dir) for word in words), "-q")
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert told in ran.err


def test_an_unsupported_architecture_is_refused_by_name(run, tiny_model_dir, tmp_path):
    config = json.loads((tiny_model_dir / "config.json").read_text(encoding="utf-8"))
    config.update(model_type="mistral", sliding_window=16, architectures=["MistralForCausalLM"])
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ran = run("generate", tmp_path, "Hi", "-q")
    assert ran.code == 2
    assert "sliding window" in ran.err


def test_a_truncated_weight_file_is_an_error(run, tiny_model_dir, tmp_path):
    for file in tiny_model_dir.iterdir():
        data = file.read_bytes()
        whole = file.suffix != ".safetensors"
        (tmp_path / file.name).write_bytes(data if whole else data[: len(data) // 2])
    ran = run("generate", tmp_path, "Hi", "-q")
    assert ran.code == 2
    assert ran.err.startswith("error: cannot load the weights")
    assert ran.err.count("\n") == 1


def test_interrupted_keeps_what_there_is(run, tiny_model_dir, monkeypatch, llm):
    def interrupt(self, progress):
        if progress.generated_tokens >= 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressDisplay, "update", interrupt)
    ran = run("generate", tiny_model_dir, "Hello", "--max-tokens", 400, "--json")
    assert ran.code == 130
    assert ran.json["interrupted"] is True
    output = ran.json["results"][0]["outputs"][0]
    assert output["finish_reason"] == "abort"
    assert len(output["token_ids"]) >= 3
    assert text_of(llm, "Hello", max_tokens=400).startswith(output["text"])
    assert "interrupted" in ran.err


def test_the_decoder_is_chosen_by_name(run):
    args = ("generate", "nano", "Once upon a time", "--max-tokens", "2", "--json")
    decoders = {
        wish: run(*args, "--decoder", wish).json["stats"]["decoder"]
        for wish in ("auto", "lean", "transformers")
    }
    assert decoders == {"auto": "lean", "lean": "lean", "transformers": "transformers"}
    refused = run(*args, "--decoder", "fast")
    assert refused.code == 2
    assert "'fast'" in refused.err
