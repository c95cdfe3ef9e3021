"""Training prefixes: one loop for all methods."""

from foreword.prefixes.training._config import TrainConfig
from foreword.prefixes.training._loop import TrainResult, evaluate, train

__all__ = ["TrainConfig", "TrainResult", "evaluate", "train"]
