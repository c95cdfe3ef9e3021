"""Loading a model and running it on packed rows."""

from foreword.models._bridge import KeyValueStore, PackedModel, PackedStep
from foreword.models._loader import NANO, LoadedModel, ModelShape, load_model, wrap_model
from foreword.models._support import TESTED_TYPES, unsupported_features
from foreword.models._tokenizer import Tokenizer

__all__ = [
    "NANO",
    "TESTED_TYPES",
    "KeyValueStore",
    "LoadedModel",
    "ModelShape",
    "PackedModel",
    "PackedStep",
    "Tokenizer",
    "load_model",
    "unsupported_features",
    "wrap_model",
]
