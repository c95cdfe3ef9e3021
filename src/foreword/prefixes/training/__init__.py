"""Training prefixes: one loop for all methods."""

from foreword.prefixes.training._config import TrainConfig
from foreword.prefixes.training._errors import TrainingError
from foreword.prefixes.training._loop import evaluate, train
from foreword.prefixes.training._progress import TrainProgress, TrainResult

__all__ = ["TrainConfig", "TrainProgress", "TrainResult", "TrainingError", "evaluate", "train"]
