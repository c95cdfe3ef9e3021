"""`foreword tree`: the forecast against a brute-force trie, the drawing, the files it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.cli._forecast import byte_codec, encode_all, forecast, kv_bytes_per_token, word_codec
from foreword.cli._tree import outline
from foreword.engine import PrefixStats
from tests.cli.support import write_lines

CALM = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
PROMPTS = st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=12)


@CALM
@given(PROMPTS)
def test_distinct_tokens_are_those_of_the_trie(prompts):
    trie = {tuple(prompt[:n]) for prompt in prompts for n in range(1, len(prompt) + 1)}
    found = forecast(prompts, kv_bytes_per_token=10)
    numbers = found.to_dict()
    assert found.distinct_tokens == len(trie)
    assert found.prompt_tokens == sum(map(len, prompts))
    assert numbers["saved_tokens"] == found.prompt_tokens - len(trie)
    assert numbers["kv_bytes"] == 10 * len(trie)
    found.tree.check()
    # Every node is drawn with the requests that begin with its whole path.
    for node in found.tree.nodes():
        path, at = [], node
        while at is not None:
            path[:0] = at.tokens
            at = at.parent
        assert node.pins == sum(prompt[: len(path)] == path for prompt in prompts)


@CALM
@given(PROMPTS, st.integers(1, 3), st.integers(1, 3))
def test_the_drawing_leaves_nothing_uncounted(prompts, top, depth):
    found = forecast(prompts)

    def tokens(entries):
        return sum(entry.tokens + tokens(entry.children) for entry in entries)

    entries = outline(found.roots, byte_codec(), top=[top], depth=depth)
    assert tokens(entries) == found.distinct_tokens
    assert sum(entry.node is not None for entry in entries) <= top


@CALM
@given(st.lists(st.text()))
def test_words_and_bytes_come_back_whole(texts):
    for codec in (word_codec(), byte_codec()):
        encodable = [text.encode("utf-8", "replace").decode() for text in texts]
        for text, ids in zip(encodable, codec.encode(encodable), strict=True):
            assert codec.decode(ids) == text


def test_numbers_and_tree_as_json(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a b c d\n\na b c e\na b\nz\n", encoding="utf-8")
    numbers = run("tree", file, "--words", "--json").json
    assert numbers["requests"] == 4
    # "b " and the "b" that ends its line are two words here.
    assert numbers["prompt_tokens"] == 4 + 4 + 2 + 1
    assert numbers["distinct_tokens"] == 3 + 2 + 1 + 1
    assert numbers["dedup_ratio"] == pytest.approx(11 / 7)
    first = numbers["tree"][0]
    assert (first["text"], first["requests"], first["tokens"]) == ("a ", 3, 1)


def test_drawn_as_indented_text_in_a_pipe(run, tmp_path):
    lines = [{"prompt": f"one head\n{i}"} for i in range(9)]
    ran = run("tree", write_lines(tmp_path / "p.jsonl", *lines), "--bytes", "--top", 2)
    drawn = ran.out.split("\n\n")[0].splitlines()
    assert drawn[0] == '9 tokens x 9  "one head\\n"'
    assert drawn[1] == '  1 token x 1  "0"'
    assert drawn[3] == "  … and 7 more (7 x, 7 tokens in all)"
    assert len(drawn) == 4
    assert "\x1b" not in ran.out
    assert "dedup ratio" in ran.out


def test_drawn_with_lines_on_a_terminal(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    ran = run("tree", write_lines(tmp_path / "p.jsonl", {"prompt": "[b]x"}), "--bytes")
    assert "── " in ran.out
    assert '"[b]x"' in ran.out


def test_a_models_tokenizer_and_shape(run, tmp_path, tiny_model_dir):
    file = write_lines(tmp_path / "p.jsonl", {"prompt": "hello"}, {"prompt": [72, 1]})
    numbers = run("tree", file, "--model", tiny_model_dir, "--json").json
    assert numbers["prompt_tokens"] == 5 + 2
    assert numbers["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 4  # K and V, layers, heads, dim, fp32
    only = run("tree", file, "--tokenizer", tiny_model_dir / "tokenizer.json", "--json").json
    assert only["prompt_tokens"] == 5 + 2


def test_chats_are_plain_lines(run, tmp_path):
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    ran = run("tree", write_lines(tmp_path / "p.jsonl", chat), "--bytes", "--json")
    assert ran.json["prompt_tokens"] == len("user: Hi\nassistant:")
    assert "plain" in ran.err


def test_no_torch(tmp_path, tiny_model_dir):
    file = write_lines(tmp_path / "p.jsonl", {"prompt": "hello"})
    code = (
        "import sys; from foreword.cli import main\n"
        "code = main(['tree', *sys.argv[1:], '--json'])\n"
        "sys.exit('torch is loaded' if 'torch' in sys.modules else code)"
    )
    words = [sys.executable, "-c", code, str(file), "--model", str(tiny_model_dir)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt_tokens"] == 5


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.txt", "", "no prompt"),
        ("p.jsonl", "", "no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{nonsense\n', "line 2"),
        ("p.jsonl", '{"prompt": [1, 2]}\n', "token ids"),
    ],
)
def test_bad_files(run, tmp_path, name, text, told):
    (tmp_path / name).write_text(text, encoding="utf-8")
    ran = run("tree", tmp_path / name, "--bytes")
    assert ran.code == 2
    assert told in ran.err
    assert ran.out == ""


def test_bad_models(run, tmp_path):
    file = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    assert "no model directory" in run("tree", file, "--model", "./nosuch").err
    assert "--bytes" in run("tree", file, "--model", tmp_path).err
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    ran = run("tree", file, "--model", tmp_path)
    assert ran.code == 2
    assert "cannot read the tokenizer" in ran.err


def test_shapes_of_other_families(tmp_path):
    config = {"n_layer": 2, "n_head": 4, "n_embd": 32, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert kv_bytes_per_token(tmp_path, "gpt") == 2 * 2 * 4 * 8 * 2
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    assert kv_bytes_per_token(tmp_path, "gpt") is None


def test_ids_pass_where_there_is_a_tokenizer():
    codec = word_codec()
    named = type(codec)("model", codec.encode, codec.decode)
    assert encode_all(["a", [5], "a"], named) == [[0], [5], [0]]


def test_names_agree_with_the_engines():
    names = set(forecast([[1]]).to_dict())
    assert {"requests", "prompt_tokens", "dedup_ratio", "kv_bytes_unshared"} <= names
    assert {"requests", "prompt_tokens", "dedup_ratio", "kv_bytes_unshared"} <= set(
        PrefixStats.__dataclass_fields__
    )
