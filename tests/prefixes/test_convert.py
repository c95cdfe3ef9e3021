"""Third-party prefixes: SVEN's published ones, PEFT's older files, and pickles that are refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from foreword.prefixes import Prefix, PrefixError, PrefixRows, convert, run


@pytest.fixture
def sven(data) -> Path:
    path = data / "checkpoints" / "sven-350m-prefix" / "pytorch_model.bin"
    if not path.is_file():
        pytest.skip(f"no SVEN prefixes at {path}")
    return path


@pytest.fixture(scope="module")
def codegen():
    """A model of CodeGen-350M's cache layout with random weights and a small vocabulary."""
    from transformers import CodeGenConfig, CodeGenForCausalLM

    torch.manual_seed(5)
    config = CodeGenConfig(
        vocab_size=50,
        n_positions=64,
        n_embd=1024,
        n_layer=20,
        n_head=16,
        n_inner=16,
        rotary_dim=32,
        bos_token_id=None,
        eos_token_id=None,
    )
    return CodeGenForCausalLM(config).eval()


def written(path: Path, controls: int = 2, layers: int = 3) -> Path:
    """A file as SVEN writes it, each tensor full of its place in the list."""
    parts = {str(i): torch.full((4, 5, 8), float(i)) for i in range(controls * layers * 2)}
    torch.save(parts, path)
    return path


def test_sven_runs_through_controls_then_layers_then_keys_and_values(tmp_path):
    found = convert("sven", written(tmp_path / "pytorch_model.bin"), base="codegen")
    assert list(found) == ["sec", "vul"]
    for control, name in enumerate(found):
        prefix = found[name]
        assert prefix.kv.shape == (3, 2, 4, 5, 8)
        assert prefix.kv[:, :, 0, 0, 0].tolist() == [
            [control * 6 + layer * 2 + kind for kind in range(2)] for layer in range(3)
        ]
        assert (prefix.position_offset, prefix.base) == (5, "codegen")
        assert prefix.provenance["control"] == name
    assert convert("sven", tmp_path)["vul"] == found["vul"]


def test_the_published_prefixes_run_in_front_of_codegen(sven, codegen, tmp_path):
    found = convert("sven", sven)
    raw = torch.load(sven, weights_only=True)
    ids = torch.tensor([[3, 14, 15, 9], [2, 6, 5, 35]])
    made = {}
    for control, name in enumerate(("sec", "vul")):
        prefix = found[name]
        prefix.check(codegen)
        # SVEN's own order, straight from the file, in transformers' cache.
        from transformers import DynamicCache

        first = control * 40
        layers = [
            tuple(raw[str(first + 2 * layer + kind)].expand(2, -1, -1, -1) for kind in range(2))
            for layer in range(20)
        ]
        with torch.no_grad():
            expected = codegen(
                input_ids=ids,
                attention_mask=torch.ones(2, 9),
                position_ids=torch.arange(5, 9).expand(2, -1),
                past_key_values=DynamicCache(layers),
            ).logits
            made[name] = run(codegen, ids, prefix=PrefixRows.of([prefix, prefix])).logits
        torch.testing.assert_close(made[name], expected, atol=1e-6, rtol=0)
        prefix.save(tmp_path / name)
        assert Prefix.load(tmp_path / name) == prefix
    assert not torch.allclose(made["sec"], made["vul"], atol=1e-3)


def test_the_published_file_itself_tells_keys_from_values(sven):
    # Learned keys are larger than learned values, in every layer of both controls.
    for prefix in convert("sven", sven).values():
        keys, values = prefix.kv.std(dim=(2, 3, 4)).unbind(1)
        assert bool((keys > values).all())


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, zipped):
    file, target = tmp_path / "pytorch_model.bin", tmp_path / "was here"
    if zipped:
        torch.save({"0": torch.ones(1), "1": Evil(target)}, file)
    else:
        file.write_bytes(pickle.dumps({"0": Evil(target)}, protocol=2))
    with pytest.raises(PrefixError, match=r"pickle of more than tensors, which would run code$"):
        convert("sven", file)
    assert not target.exists()
    pickle.loads(pickle.dumps(Evil(target)))  # the trap does work
    assert target.exists()


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "nothing.bin", "there is no file"),
        (lambda d: saved(d / "x", [torch.ones(1)]), "something else than tensors"),
        (lambda d: saved(d / "x", {"0": 1.0}), "something else than tensors"),
        (lambda d: saved(d / "x", {}), "numbered from 0; it holds 0 tensors"),
        (lambda d: saved(d / "x", {"a": torch.ones(4, 5, 8)}), r"1 tensors \(a\)"),
        (lambda d: written(d / "x", controls=1), "numbered from 0; it holds 6 tensors"),
        (
            lambda d: saved(d / "x", {str(i): torch.ones(4, 5 + i, 8) for i in range(4)}),
            r"should all be \[heads, length, head_dim\]",
        ),
        (
            lambda d: saved(d / "x", {str(i): torch.ones(4, 5) for i in range(4)}),
            r"should all be \[heads",
        ),
        (
            lambda d: saved(d / "x", {str(i): torch.ones(4, 5, 8) / 0 for i in range(4)}),
            "not finite",
        ),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, make, message):
    with pytest.raises(PrefixError, match=message):
        convert("sven", make(tmp_path))


def test_what_is_not_a_file_of_tensors_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(PrefixError, match=r"cannot read tensors|was refused"):
        convert("sven", tmp_path / "x")


def test_an_unknown_format_is_named():
    with pytest.raises(PrefixError, match="no converter is called 'csv'; there are sven, peft"):
        convert("csv", "anywhere")


def older_peft(folder: Path, flat: torch.Tensor, **changes: object) -> Path:
    config = {
        "peft_type": "PREFIX_TUNING",
        "base_model_name_or_path": "gpt",
        "num_virtual_tokens": 5,
        "num_layers": 2,
        "num_attention_heads": 1,
        "token_dim": 4,
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"prompt_embeddings": flat}, folder / "adapter_model.bin")
    return folder


def test_an_older_peft_file_becomes_a_prefix(tmp_path):
    flat = torch.randn(5, 16)
    folder = older_peft(tmp_path, flat)
    found = convert("peft", folder)[""]
    assert found == convert("peft", folder / "adapter_model.bin")[""]
    assert (found.length, found.position_offset, found.base) == (5, 5, "gpt")
    # Row by row PEFT has layers, keys and values, heads, numbers.
    assert torch.equal(found.kv[1, 0, 0], flat[:, 8:12])
    found.save(tmp_path / "new")
    assert Prefix.load(tmp_path / "new") == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LORA"}, "type 'LORA'"),
        ({"num_layers": 3}, "3 layers and"),
    ],
)
def test_older_peft_files_are_checked_like_new_ones(tmp_path, change, message):
    with pytest.raises(PrefixError, match=message) as caught:
        convert("peft", older_peft(tmp_path, torch.randn(5, 16), **change))
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(PrefixError, match=r"no adapter_config\.json beside"):
        convert("peft", tmp_path)
    saved(tmp_path / "adapter_model.bin", {"embedding.weight": torch.ones(5, 4)})
    with pytest.raises(PrefixError, match="still holds the MLP"):
        convert("peft", tmp_path)
