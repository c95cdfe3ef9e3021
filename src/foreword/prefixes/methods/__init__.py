"""Methods of making prefixes, one file each."""

from foreword.prefixes.methods._batch import Batch, Example
from foreword.prefixes.methods._method import Loss, Method
from foreword.prefixes.methods._prefix_tuning import PrefixTuning

__all__ = ["Batch", "Example", "Loss", "Method", "PrefixTuning"]
