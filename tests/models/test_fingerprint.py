"""What tells one model from another."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch

import foreword.models
from foreword.models import load_model, wrap_model

SHAPE = "llama-1to1-d80-untied"


def test_a_fingerprint_is_of_the_model_not_of_its_place_or_number_format(tmp_path):
    nano = Path(foreword.models.__file__).parent / "nano"
    shutil.copytree(nano, tmp_path / "moved")
    here = load_model("nano").fingerprint
    moved = load_model(tmp_path / "moved", dtype="fp32", decoder="transformers").fingerprint
    assert here == moved
    assert load_model("nano", dtype="bf16").fingerprint == here


def test_any_change_of_weights_or_shape_shows(plain_model):
    def changed(edit) -> str:
        model = copy.deepcopy(plain_model(SHAPE))
        with torch.no_grad():
            edit(model)
        return wrap_model(model, name=SHAPE).fingerprint

    def swap(model):
        one, two = (layer.mlp.up_proj for layer in model.model.layers)
        one.weight, two.weight = two.weight, one.weight

    found = [
        changed(lambda model: None),
        changed(lambda model: model.model.layers[1].mlp.down_proj.weight.mul_(1.001)),
        changed(lambda model: model.model.norm.weight[-1].add_(1)),
        changed(lambda model: model.lm_head.weight[0, 0].add_(1)),
        changed(lambda model: setattr(model.config, "rms_norm_eps", 1e-3)),
        changed(swap),
    ]
    assert len(set(found)) == 6
    assert changed(lambda model: None) == found[0]
    assert len(found[0]) == 64
