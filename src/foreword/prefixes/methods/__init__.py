"""Methods of making prefixes, one file each."""

from foreword.prefixes.methods._batch import Batch, Example
from foreword.prefixes.methods._comparative import ComparativePrefix
from foreword.prefixes.methods._control import ControlPrefixes
from foreword.prefixes.methods._gating import PromptGating
from foreword.prefixes.methods._manifold import Manifold
from foreword.prefixes.methods._method import Loss, Method
from foreword.prefixes.methods._ntk import NTKAttention
from foreword.prefixes.methods._ntk_distil import distil
from foreword.prefixes.methods._prefix_tuning import PrefixTuning
from foreword.prefixes.methods._private import PrivateText
from foreword.prefixes.methods._registry import METHODS, make_method
from foreword.prefixes.methods._robust import RobustPrefix

__all__ = [
    "METHODS",
    "Batch",
    "ComparativePrefix",
    "ControlPrefixes",
    "Example",
    "Loss",
    "Manifold",
    "Method",
    "NTKAttention",
    "PrefixTuning",
    "PrivateText",
    "PromptGating",
    "RobustPrefix",
    "distil",
    "make_method",
]
