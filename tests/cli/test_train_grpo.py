"""`foreword train grpo` and `foreword train prefix-rft`: prompts and rewards in, a model out."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.support import read_records, write_lines

pytest.importorskip("trl")

QUICK = ("--steps", 2, "--batch", 2, "--group", 2, "--max-tokens", 4, "--device", "cpu",
         "--lr", "1e-3", "--threads", 1)  # fmt: skip
REWARDS = """
import math, os, signal

not_a_function = 3

def length(completions, word, **columns):
    return [float(len(text) % 5) for text in completions]

def interrupting(completions, trainer_state, **columns):
    if trainer_state.global_step == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return [float(len(text) % 5) for text in completions]

def closed(completions):
    return [0.0] * len(completions)

def wants_more(completions, solution, **columns):
    return [0.0] * len(completions)

def short(completions, **columns):
    return [0.0]

def wordy(completions, **columns):
    return ["good"] * len(completions)

def nothing(completions, **columns):
    return None

def failing(completions, **columns):
    return [{}[0] for _ in completions]

async def judged(completions, log_metric, **columns):
    assert all(isinstance(messages, list) for messages in completions)
    log_metric("judged", 7.0)
    return [math.nan if row % 4 == 3 else float(row % 4) for row in range(len(completions))]

def endless(completions, **columns):
    return [math.inf] * len(completions)
"""


@pytest.fixture(scope="module", autouse=True)
def _quick_collection():
    """Trainers collect garbage when they end: not through all that was imported."""
    import foreword.training._trainers  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A random Llama of two layers with the tokenizer of nano."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("policy") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("foreword.models") / "nano"))
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def prompts(tmp_path):
    lines = [
        {"prompt": f"Once upon a time there lived a {word} in a small", "word": word,
         "demonstration": f" house and the {word} was very old.\n#### 3"}
        for word in ("cat", "dog", "king")
    ]  # fmt: skip
    return write_lines(tmp_path / "prompts.jsonl", *lines)


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS)
    return path


def test_it_trains_and_leaves_a_model_that_runs(run, policy, prompts, rewards, tmp_path):
    out = tmp_path / "run"
    reward = ("--reward", f"{rewards}:length", "--reward", "length:3")
    ran = run("train", "grpo", policy, prompts, "-o", out, *reward, *QUICK, "--eval", prompts)
    assert ran.code == 0, ran.err
    assert "3 prompts, 3 to judge by" in ran.err
    assert "step 2/2: reward " in ran.err
    assert "Writing model" not in ran.err
    assert f"foreword generate {out}/model" in ran.out
    card = json.loads((out / "card.json").read_text())
    assert (card["settings"]["method"], card["settings"]["lr"], card["steps"]) == ("grpo", 1e-3, 2)
    assert [each["name"] for each in card["rewards"]] == ["length", "length_penalty"]
    assert [each["use"] for each in card["data"]] == ["data", "evaluation"]
    assert card["rollouts"] == "engine"
    assert abs(card["last_step"]["rollouts/logp_gap_mean"]) < 1e-4
    assert len(card["curves"]["reward"]) == len(card["curves"]["eval_reward"]) == 2
    assert {"trl", "foreword", "torch"} <= card["versions"].keys()
    logged = read_records(out / "metrics.jsonl")
    assert [each["step"] for each in logged if "reward" in each] == [1, 2]
    assert "| reward | length (" in (out / "README.md").read_text()
    trained, before = (load_file(path / "model.safetensors") for path in (out / "model", policy))
    assert any(not torch.equal(trained[name], before[name]) for name in before)
    ran = run("generate", out / "model", "Once upon", "--max-tokens", 2, "--json", "--threads", 1)
    assert ran.code == 0, ran.err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's
def test_lora_leaves_the_adapter_and_the_merged_model(run, policy, prompts, rewards, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "run"
    reward = ("--reward", f"{rewards}:length", "--lora", 2, "--save-every", 0)
    told = run("train", "grpo", policy, prompts, "-o", out, *reward, *QUICK, "--json", "--quiet")
    assert told.err == ""
    assert told.json["written"] == {name: str(out / name) for name in ("model", "adapter")}
    assert not list(out.glob("checkpoint-*"))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(policy)
        base = plain(ids).logits
        adapted = PeftModel.from_pretrained(plain, out / "adapter")(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(out / "model")(ids).logits
    assert not torch.equal(base, adapted)
    torch.testing.assert_close(adapted, merged)


def test_where_the_engine_cannot_write_transformers_does(run, policy, prompts, tmp_path):
    kept = ("--set", 'generation_kwargs={"renormalize_logits": true}', "--steps", 1)
    words = ("train", "grpo", policy, prompts, "--reward", "length:3", *QUICK, *kept)
    assert run(*words, "-o", tmp_path / "a").code == 0
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["rollouts"] == "transformers"
    assert "renormalize_logits" in card["not_by_engine"]
    assert run(*words, "-o", tmp_path / "b", "--rollouts", "transformers").code == 0
    ran = run(*words, "-o", tmp_path / "c", "--rollouts", "engine")
    assert (ran.code, "do not go with generation_kwargs['renorm" in ran.err) == (2, True)
    assert not (tmp_path / "c").exists()


def test_prefix_rft_needs_demonstrations(run, policy, prompts, rewards, tmp_path):
    out = tmp_path / "run"
    reward = (
        "--reward",
        f"{rewards}:length",
        "--set",
        "prefix_low_start=0.9",
        "--set",
        "top_p=0.9",
    )
    words = ("train", "prefix-rft", policy, prompts, "-o", out, *reward, *QUICK, "--max-tokens", 24)
    ran = run(*words)
    assert ran.code == 0, ran.err
    card = json.loads((out / "card.json").read_text())
    own = {"prefix_low_start": 0.9, "top_p": 0.9, "prefix_decay_steps": 2}
    assert card["settings"]["trl"] == own
    assert card["paper"].startswith("Prefix-RFT")
    bare = write_lines(tmp_path / "bare.jsonl", {"prompt": "a"})
    ran = run("train", "prefix-rft", policy, bare, "-o", tmp_path / "b", *reward, *QUICK)
    assert (ran.code, "bare.jsonl line 1 has no demonstration" in ran.err) == (2, True)


def test_ctrl_c_keeps_a_checkpoint_and_resuming_changes_nothing(
    run, policy, prompts, rewards, tmp_path
):
    """The same parameters to the bit, beyond the data's end, with and without an interruption."""
    words = ["train", "grpo", policy, prompts, *QUICK, "--steps", 4]
    cut = tmp_path / "cut"
    interrupting = ["--reward", f"{rewards}:interrupting", "--out", str(cut)]
    stopped = run(*words, *interrupting)
    assert stopped.code == 130, stopped.err
    assert stopped.out == ""
    assert "checkpoint-2 is kept; the same command with --resume goes on" in stopped.err
    assert not (cut / "model").exists()

    again = [*words, *interrupting]
    refused = run(*again)
    assert (refused.code, "holds a run already" in refused.err) == (2, True)
    refused = run(*again, "--resume", "--lr", "0.5")
    assert (refused.code, "another settings.lr (0.001; now 0.5)" in refused.err) == (2, True)
    resumed = run(*again, "--resume", "--json").json
    assert (resumed["resumed_from"], resumed["steps"], resumed["stopped"]) == (2, 4, "steps")
    assert [each["step"] for each in read_records(cut / "metrics.jsonl")] == [1, 2, 3, 4]
    assert "holds a finished run" in run(*again, "--resume").err

    whole = tmp_path / "whole"
    plain = ["--reward", f"{rewards}:length", "--out", whole, "--resume"]
    fresh = run(*words, *plain)
    assert "whole has no checkpoint: this run begins at step 1" in fresh.err
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_flags_override_the_file(run, policy, prompts, rewards, tmp_path, suffix):
    out, file = tmp_path / "run", tmp_path / f"c.{suffix}"
    said = {"model": str(policy), "data": str(prompts), "out": str(out), "steps": 9, "group": 2,
            "batch": 2, "max_tokens": 4, "lr": 1, "reward": f"{rewards}:length", "device": "cpu",
            }  # fmt: skip
    if suffix == "json":
        file.write_text(json.dumps({**said, "trl": {"top_p": 0.5, "top_k": 9}}))
    else:
        lines = [f"{key} = {json.dumps(value)}" for key, value in said.items()]
        file.write_text("\n".join([*lines, "[trl]", "top_p = 0.5", "top_k = 9"]))
    ran = run("train", "grpo", "--config", file, "--steps", 1, "--set", "top_k=5", "--no-share")
    assert ran.code == 0, ran.err
    card = json.loads((out / "card.json").read_text())
    settings = card["settings"]
    assert (settings["steps"], settings["lr"], settings["share"]) == (1, 1.0, False)
    assert settings["trl"] == {"top_p": 0.5, "top_k": 5}
    assert card["tokens_saved"] == 0


@pytest.mark.parametrize(
    ("config", "words", "told"),
    [
        ({"epochs": 3}, [], "has 'epochs', which is no setting; there are batch,"),
        ({"learning_rat": 3}, [], "has 'learning_rat'"),
        ({"step": 3}, [], "has 'step', which is no setting: did you mean 'steps'?"),
        ({"trl": 3}, [], "trl is a table"),
        ({"groups_at_once": "many"}, [], "groups_at_once is 'many': give a whole number"),
        ({"beta": "high"}, [], "beta is 'high': give a number"),
        ({"save_every": 0.5}, [], "save_every is 0.5: give a whole number"),
        ({"reward": 3}, [], "reward is 3: give a text, or a list"),
        ("{", [], "cannot be read"),
        (None, ["--set", "betta=3"], "GRPOConfig has no argument 'betta': did you mean 'beta'?"),
        (None, ["--set", "learning_rate=3"], "learning_rate is set by lr"),
        (None, ["--set", "top_k=many"], "top_k is 'many': GRPOConfig has a int there"),
        (None, ["--set", "loss_type=other"], "from the trainer: Unknown loss type: other"),
        (None, ["--group", 1], "group is 1"),
        (None, ["--batch", 0], "batch is 0: give 1 or more"),
        (None, ["--batch", 3, "--groups-at-once", 2], "give a batch that is a multiple of 2"),
        (None, ["--lr", 0], "lr is 0.0: give a number above 0"),
        (None, ["--lr", "nan"], "lr is nan: give a number above 0"),
        (None, ["--temperature", 0], "temperature is 0.0: give a number above 0"),
        (None, ["--beta", -1], "beta is -1.0: give 0 or more"),
        (None, ["--rollouts", "vllm"], "rollouts is 'vllm': give one of auto, engine, trans"),
        (None, ["--non-finite-rewards", "hope"], "non_finite_rewards is 'hope': give one of stop"),
        (None, ["--max-tokens", 128], "max_tokens is 128, and the context"),
        (None, ["--max-tokens", 120], "prompts.jsonl line 1: a prompt of 12 tokens and complet"),
        (None, ["--eval", "gone.jsonl"], "cannot read 'gone.jsonl'"),
        (None, ["--dtype", "int3"], "dtype 'int3' is unknown"),
        (None, ["--device", "tpu"], "device is 'tpu': give auto, cpu or cuda"),
        (None, ["--reward", "nice"], "no reward is called 'nice': give a built-in one (exact-"),
        (None, ["--reward", "gone.py:f"], "no reward file 'gone.py'"),
        (None, ["--reward", "no.such:f"], "no module 'no.such': rewards are a built-in one"),
        (None, ["--reward", "json:loadz"], "json has no function 'loadz': did you mean 'load"),
        (None, ["--reward", "json:JSONEncoder"], "is a class: give a function"),
        (None, ["--reward", "length:many"], "length:many: give a number of tokens"),
        (None, ["--reward", "format:("], "is not a regular expression"),
        (None, ["--reward", "exact-answer"], "reward exact_answer reads 'answer', which the data"),
        (None, ["--reward", "{}:lenght"], "has no function 'lenght': did you mean 'length'?"),
        (None, ["--reward", "{}:not_a_function"], "'not_a_function' in {} is a int, not a fun"),
        (None, ["--reward", "{}:closed"], "reward closed has no room"),
        (None, ["--reward", "{}:wants_more"], "reward wants_more wants 'solution', which the"),
        (None, ["--reward", "{}:short"], "reward short returned 1 numbers for 4 completions"),
        (None, ["--reward", "{}:wordy"], "reward wordy returned 'good', which is no number"),
        (None, ["--reward", "{}:nothing"], "reward nothing returned None: give a list"),
        (None, ["--reward", "{}:failing"], "reward failing failed: KeyError: 0"),
        (None, ["--reward", "{}:endless"], "'endless' returned a reward that is not finite"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(
    run, policy, prompts, rewards, tmp_path, config, words, told
):
    words = [str(word).replace("{}", str(rewards)) for word in words]
    if config is not None:
        (tmp_path / "c.json").write_text(config if config == "{" else json.dumps(config))
        words = [*words, "--config", tmp_path / "c.json"]
    elif "--reward" not in words:
        words = [*words, "--reward", f"{rewards}:length"]
    out = tmp_path / "runs" / "run"
    ran = run("train", "grpo", policy, prompts, "--out", out, *QUICK, *words)
    assert ran.code == 2
    assert told.replace("{}", str(rewards)) in ran.err
    assert ran.err.count("error:") == 1
    assert "Traceback" not in ran.err
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "holds no prompts"),
        (["{"], "d.jsonl line 1 is not JSON"),
        (["[]"], "d.jsonl line 1 is not a JSON object"),
        ([{"text": "a"}], "d.jsonl line 1 has no prompt; it has text"),
        ([{"prompt": ""}], "d.jsonl line 1: the prompt is empty"),
        ([{"prompt": 3}], "d.jsonl line 1: the prompt is no text and no list"),
        ([{"prompt": []}], "d.jsonl line 1: the prompt is no text and no list"),
        ([{"prompt": [{"role": "user"}]}], "d.jsonl line 1: a message is"),
        ([{"prompt": "a"}, "", {"prompt": "b", "x": 1}], "d.jsonl line 3 has 'x', unlike line 1"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b"}], "d.jsonl line 2 lacks 'x', unlike line 1"),
        ([{"prompt": "a", "image": 1}], "'image' is a name that TRL uses"),
        ([{"prompt": [{"role": "user", "content": "a"}]}], "has no chat template: give texts"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "c"}], "from the trainer"),
    ],
)
def test_bad_data_is_named_by_line(run, policy, tmp_path, lines, told):
    data = write_lines(tmp_path / "d.jsonl", *lines)
    out = tmp_path / "run"
    ran = run("train", "grpo", policy, data, "-o", out, "--reward", "length:3", *QUICK)
    assert (ran.code, told in ran.err) == (2, True), ran.err
    assert not out.exists()


def test_messages_and_functions_that_are_awaited(run, policy, rewards, tmp_path):
    import shutil

    from transformers import AutoTokenizer

    chatting = shutil.copytree(policy, tmp_path / "chatting")
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    )
    tokenizer.save_pretrained(chatting)
    chats = [{"prompt": [{"role": "user", "content": f"Say {word}."}]} for word in ("yes", "no")]
    data, out = write_lines(tmp_path / "chats.jsonl", *chats), tmp_path / "run"
    skip = ("--reward", f"{rewards}:judged", "--non-finite-rewards", "skip", "--group", 4)
    ran = run("train", "grpo", chatting, data, "-o", out, *QUICK, *skip)
    assert ran.code == 0, ran.err
    for each in read_records(out / "metrics.jsonl"):
        assert (each["judged"], each["rewards/non_finite"]) == (7.0, 2.0)
        assert each["rewards/judged/mean"] == 1.0  # of 0, 1 and 2


def test_gsm8k_is_read_from_its_directory(run, policy, tmp_path):
    for split in ("train", "test"):
        problem = {"question": f"What is 1 + 1 in {split}?", "answer": "It is 2.\n#### 2"}
        write_lines(tmp_path / f"gsm8k_{split}.jsonl", problem)
    out = tmp_path / "run"
    gsm8k = f"gsm8k:{tmp_path}"
    words = ("--eval", gsm8k, "--reward", "exact-answer", *QUICK, "--steps", 1, "--max-tokens", 40)
    ran = run("train", "prefix-rft", policy, gsm8k, "-o", out, *words)
    assert ran.code == 0, ran.err
    card = json.loads((out / "card.json").read_text())
    assert card["settings"]["trl"] == {"prefix_decay_steps": 1, "prefix_stop_at": "####"}
    assert [Path(each["path"]).stem for each in card["data"]] == ["gsm8k_train", "gsm8k_test"]


def test_what_is_missing_is_named(run, policy, prompts, tmp_path, tiny_model_dir):
    assert "give MODEL and DATA" in run("train", "grpo", policy, "-o", tmp_path).err
    assert "give --out" in run("train", "grpo", policy, prompts).err
    assert "give --reward" in run("train", "grpo", policy, prompts, "-o", tmp_path).err
    words = (prompts, "--reward", "length:3", *QUICK, "-o", tmp_path / "run")
    assert "no end token" in run("train", "grpo", tiny_model_dir, *words).err
    (tmp_path / "mine" / "model").mkdir(parents=True)
    ran = run("train", "grpo", policy, *words, "-o", tmp_path / "mine")
    assert (ran.code, "holds model, which is of no run" in ran.err) == (2, True)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        ran = run("train", "grpo", policy, *words, "-o", out)
        assert (ran.code, "is a file" in ran.err) == (2, True)


def test_a_model_that_cannot_be_shared_is_refused_by_name(run, prompts, tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("foreword.models") / "nano"))
    path = tmp_path / "gpt2"
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    words = ("-o", tmp_path / "run", "--reward", "length:3", *QUICK)
    ran = run("train", "grpo", path, prompts, *words)
    assert (ran.code, "GPT2LMHeadModel cannot be trained" in ran.err) == (2, True), ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["grpo", "prefix-rft"])
def test_without_trl_one_line_says_what_to_install(
    run, policy, prompts, tmp_path, monkeypatch, verb
):
    import foreword.training as training

    for name in ("trl", *(each for each in sys.modules if each.startswith("trl."))):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("_trainers", "_prefix_rft", "_prefix_rft_config"):
        monkeypatch.delitem(sys.modules, f"foreword.training.{name}", raising=False)
    for name in ("SharedPrefixGRPOTrainer", "PrefixRFTTrainer", "PrefixRFTConfig"):
        monkeypatch.delitem(vars(training), name, raising=False)
    words = (policy, prompts, "-o", tmp_path / "run", "--reward", "length:3")
    ran = run("train", verb, *words)
    assert ran.code == 2
    assert "pip install 'foreword[train]'" in ran.err
    assert ran.err.count("error:") == 1
    assert not (tmp_path / "run").exists()


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom foreword.cli import main\n"
        "main(['train', 'grpo', '--help']); main(['train', '--help'])\n"
        "assert not {'torch', 'transformers', 'trl', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--non-finite-rewards" in done.stdout
