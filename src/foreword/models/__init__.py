"""Loading a model and running it on packed rows."""

from foreword.models._bridge import KeyValueStore, PackedModel, PackedStep
from foreword.models._fingerprint import fingerprint
from foreword.models._inventory import Inventory, Weights
from foreword.models._lean import LeanModel
from foreword.models._lean_fit import lean_reason
from foreword.models._lean_graph import GraphedModel
from foreword.models._loader import (
    NANO,
    Decoder,
    LoadedModel,
    ModelShape,
    load_model,
    load_transformers,
    wrap_model,
)
from foreword.models._support import TESTED_TYPES, unsupported_features
from foreword.models._tokenizer import Tokenizer

__all__ = [
    "NANO",
    "TESTED_TYPES",
    "Decoder",
    "GraphedModel",
    "Inventory",
    "KeyValueStore",
    "LeanModel",
    "LoadedModel",
    "ModelShape",
    "PackedModel",
    "PackedStep",
    "Tokenizer",
    "Weights",
    "fingerprint",
    "lean_reason",
    "load_model",
    "load_transformers",
    "unsupported_features",
    "wrap_model",
]
