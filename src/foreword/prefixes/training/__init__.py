"""Training prefixes: one loop for all methods."""

from foreword.prefixes.training._config import TrainConfig
from foreword.prefixes.training._data import Data, read_examples, split, truncate
from foreword.prefixes.training._errors import TrainingError
from foreword.prefixes.training._guard import room
from foreword.prefixes.training._loop import evaluate, train
from foreword.prefixes.training._progress import TrainProgress, TrainResult
from foreword.prefixes.training._run import TrainRun, read_card, train_run
from foreword.prefixes.training._saved import load_method, save_method

__all__ = [
    "Data",
    "TrainConfig",
    "TrainProgress",
    "TrainResult",
    "TrainRun",
    "TrainingError",
    "evaluate",
    "load_method",
    "read_card",
    "read_examples",
    "room",
    "save_method",
    "split",
    "train",
    "train_run",
    "truncate",
]
