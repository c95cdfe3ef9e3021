"""Prefixes on disk: exact round trips, PEFT both ways, and every kind of damage by name."""

from __future__ import annotations

import copy
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from foreword.prefixes import Prefix, PrefixError, PrefixRows, PrefixShape, run
from foreword.prefixes._peft import CONFIG, KEY, WEIGHTS
from tests.conftest import SHAPES

IDS = torch.tensor([[5, 17, 3, 99, 42], [8, 1, 64, 2, 7]])


def made(shape: PrefixShape, length: int = 5, seed: int = 0, scale: float = 0.3) -> Prefix:
    kv = torch.randn(shape.size(length), generator=torch.Generator().manual_seed(seed)) * scale
    return Prefix(kv, base="some-model", provenance={"method": "random", "seed": seed})


SMALL = PrefixShape(2, 1, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [-1, 0, 40])
def test_what_is_saved_is_loaded(tmp_path, dtype, offset):
    prefix = Prefix(
        made(SMALL).kv.to(dtype), offset, model="e" * 64, base="m", provenance={"steps": [1, 2.5]}
    )
    assert prefix.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    back = Prefix.load(str(tmp_path / "new" / "folder"))
    assert back == prefix
    assert back.kv.dtype == dtype
    assert (back.position_offset, back.model, back.base, back.provenance) == (
        prefix.position_offset,
        "e" * 64,
        "m",
        {"steps": [1, 2.5]},
    )
    assert load_file(tmp_path / "new" / "folder" / WEIGHTS)[KEY].dtype == torch.float32
    assert sorted(each.name for each in (tmp_path / "new" / "folder").iterdir()) == [
        CONFIG,
        WEIGHTS,
    ]


def test_saving_again_replaces(tmp_path):
    made(SMALL, 5).save(tmp_path)
    shorter = made(SMALL, 2, seed=1)
    shorter.save(tmp_path)
    assert Prefix.load(tmp_path) == shorter


def test_who_is_reading_a_file_that_is_replaced_reads_the_old_one(tmp_path):
    made(SMALL, 5).save(tmp_path)
    for name in (WEIGHTS, CONFIG):
        before = (tmp_path / name).read_bytes()
        with (tmp_path / name).open("rb") as reader:
            made(SMALL, 2).save(tmp_path)
            assert reader.read() == before
        made(SMALL, 5).save(tmp_path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    from foreword.prefixes import _peft

    before = made(SMALL)
    before.save(tmp_path)

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(_peft, "_sync", fails)
    with pytest.raises(PrefixError, match=r"cannot write a prefix.*no space left"):
        made(SMALL, 2, seed=1).save(tmp_path)
    assert Prefix.load(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(PrefixError, match=r"cannot write a prefix to .*taken"):
        made(SMALL).save(tmp_path / "taken")


# -- PEFT both ways ---------------------------------------------------------------------------


THEIRS = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
"""What PEFT asks transformers by a name that is on its way out."""


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def logits(model, prefix: Prefix) -> torch.Tensor:
    with torch.no_grad():
        return run(model, IDS, prefix=PrefixRows.same(prefix.kv, len(IDS))).logits


@THEIRS
@pytest.mark.parametrize("name", SHAPES)
def test_peft_computes_the_same_with_what_we_saved(name, plain_model, peft, tmp_path):
    model = copy.deepcopy(plain_model(name))
    prefix = made(PrefixShape.of(model))
    prefix.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(model, str(tmp_path)).eval()
    with torch.no_grad():
        found = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    torch.testing.assert_close(found, logits(plain_model(name), prefix), atol=1e-5, rtol=0)


@THEIRS
@pytest.mark.parametrize("kind", ["direct", "projected", "cartridge"])
@pytest.mark.parametrize("name", ["llama-4to1-d64-tied", "qwen3-qknorm-yarn-tied", "gpt2"])
def test_what_peft_trained_is_loaded(name, kind, plain_model, peft, tmp_path):
    torch.manual_seed(0)
    model = copy.deepcopy(plain_model(name))
    if kind == "cartridge":
        config = peft.CartridgeConfig(
            num_virtual_tokens=4, num_frozen_tokens=1, task_type="CAUSAL_LM"
        )
    else:
        config = peft.PrefixTuningConfig(
            num_virtual_tokens=4, prefix_projection=kind == "projected", task_type="CAUSAL_LM"
        )
    theirs = peft.get_peft_model(model, config)
    mask = torch.ones_like(IDS)
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.1)
    loss = theirs(input_ids=IDS, attention_mask=mask, labels=IDS).loss
    loss.backward()
    optimizer.step()
    theirs.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(input_ids=IDS, attention_mask=mask).logits
    prefix = Prefix.load(tmp_path)
    prefix.check(plain_model(name))
    assert (prefix.length, prefix.position_offset) == (4, 4)
    torch.testing.assert_close(logits(plain_model(name), prefix), expected, atol=1e-5, rtol=0)


@THEIRS
def test_adapters_by_name_lie_in_folders_of_their_own(plain_model, peft, tmp_path):
    model = copy.deepcopy(plain_model("gpt2"))

    def config():
        return peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")

    theirs = peft.get_peft_model(model, config(), adapter_name="verse")
    theirs.save_pretrained(tmp_path / "one")
    assert Prefix.load(tmp_path / "one") == Prefix.load(tmp_path / "one" / "verse")
    theirs.add_adapter("prose", config())
    theirs.save_pretrained(tmp_path / "two")
    assert Prefix.load(tmp_path / "two" / "verse") != Prefix.load(tmp_path / "two" / "prose")
    with pytest.raises(PrefixError, match=r"several adapters \(prose, verse\)"):
        Prefix.load(tmp_path / "two")


def test_peft_refuses_a_prefix_that_it_would_misread(plain_model, peft, tmp_path):
    prefix = made(PrefixShape.of(plain_model("gpt2")))
    Prefix(prefix.kv, 40).save(tmp_path)
    with pytest.raises((KeyError, ValueError), match="FOREWORD_PREFIX"):
        peft.PeftModel.from_pretrained(copy.deepcopy(plain_model("gpt2")), str(tmp_path))


# -- damage -----------------------------------------------------------------------------------


def edit(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def weights(folder, tensors, **head):
    save_file(tensors, folder / WEIGHTS, {"format": "pt", **head})


def _missing(folder):
    (folder / WEIGHTS).unlink()


def _pickled(folder):
    _missing(folder)
    (folder / "adapter_model.bin").write_bytes(b"anything")


def _cut(folder):
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[:-20])


def _flipped(folder):
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[-3] ^= 1
    (folder / WEIGHTS).write_bytes(raw)


def _head(**changes):
    def damage(folder):
        from safetensors import safe_open

        with safe_open(folder / WEIGHTS, framework="pt") as held:
            head = held.metadata()
        weights(folder, load_file(folder / WEIGHTS), **{**head, **changes})

    return damage


FLAT = torch.ones(5, 2 * 2 * 4)
DAMAGE = {
    "no configuration": (lambda f: (f / CONFIG).unlink(), "no adapter_config.json"),
    "configuration not JSON": (lambda f: (f / CONFIG).write_text("{"), "is not JSON"),
    "configuration a list": (lambda f: (f / CONFIG).write_text("[]"), "not a JSON object"),
    "configuration too deep": (
        lambda f: (f / CONFIG).write_text("[" * 200_000 + "]" * 200_000),
        "is not JSON",
    ),
    "configuration not text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe"), "is not JSON"),
    "another adapter": (lambda f: edit(f, peft_type="LORA"), "type 'LORA', not a prefix"),
    "encoder-decoder": (lambda f: edit(f, num_transformer_submodules=2), "encoder-decoder"),
    "no number of layers": (lambda f: edit(f, num_layers=None), "num_layers in .* is None"),
    "no number of heads": (lambda f: edit(f, num_attention_heads=0), "num_attention_heads"),
    "layers disagree": (lambda f: edit(f, num_layers=3), "tells of 5 positions, 3 layers"),
    "length disagrees": (lambda f: edit(f, num_virtual_tokens=6), "tells of 6 positions"),
    "columns disagree": (lambda f: edit(f, token_dim=8), "1 heads in 8 columns"),
    "heads do not divide": (lambda f: edit(f, num_attention_heads=3), "3 heads in 4 columns"),
    "heads exchanged": (lambda f: edit(f, num_attention_heads=2), "not those that were written"),
    "no tensors": (_missing, "no adapter_model.safetensors"),
    "a pickle": (_pickled, "foreword prefix convert peft"),
    "cut short": (_cut, "cut short or not safetensors"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "cut short or not safetensors"),
    "a bit flipped": (_flipped, "not those that were written"),
    "another checksum": (_head(identity="0" * 64), "not those that were written.*000000000000"),
    "offset not a number": (_head(position_offset="left"), "left"),
    "another offset": (_head(position_offset="9"), "not those that were written"),
    "unknown format": (_head(dtype="int4"), "int4"),
    "provenance not JSON": (_head(provenance="{"), "damaged"),
    "provenance too deep": (_head(provenance="[" * 200_000), "damaged"),
    "provenance a list": (_head(provenance="[1]"), "must be JSON"),
    "MLP kept": (
        lambda f: weights(f, {"embedding.weight": FLAT, "transform.0.bias": FLAT[0].clone()}),
        "still holds the MLP",
    ),
    "another tensor beside": (
        lambda f: weights(f, {KEY: FLAT, "lm_head": FLAT.clone()}),
        "lm_head",
    ),
    "no tensor at all": (lambda f: weights(f, {}), "it has none"),
    "not finite": (lambda f: weights(f, {KEY: FLAT * torch.nan}), "not finite"),
    "not floats": (lambda f: weights(f, {KEY: FLAT.long()}), "not torch.int64"),
    "one dimension": (lambda f: weights(f, {KEY: FLAT[0]}), r"its tensor is \[16\]"),
    "offset for ours only": (lambda f: edit(f, peft_type="FOREWORD_PREFIX"), "position offsets"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path, damage):
    change, message = DAMAGE[damage]
    made(SMALL).save(tmp_path)
    change(tmp_path)
    with pytest.raises(PrefixError, match=message) as caught:
        Prefix.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_place_without_a_prefix_is_named(tmp_path):
    with pytest.raises(PrefixError, match=r"there is no directory .*nowhere"):
        Prefix.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(PrefixError, match="is a file: give the directory"):
        Prefix.load(tmp_path / "file")


def test_a_prefix_that_nano_does_not_have_is_named():
    with pytest.raises(PrefixError, match="nano has no prefix 'nobody'"):
        Prefix.load("nano:nobody")
    with pytest.raises(PrefixError, match=re.escape("'../nano'")):
        Prefix.load("nano:../nano")


def test_built_in_prefixes_are_found_by_name(tmp_path, monkeypatch):
    from foreword import models

    made(SMALL).save(tmp_path / "nano" / "prefixes" / "somebody")
    monkeypatch.setattr(models, "__file__", str(tmp_path / "__init__.py"))
    assert Prefix.load("nano:somebody") == made(SMALL)
    shutil.rmtree(tmp_path / "nano")
    with pytest.raises(PrefixError, match="none in this build"):
        Prefix.load("nano:somebody")
