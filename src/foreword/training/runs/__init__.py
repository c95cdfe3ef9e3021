"""Runs of GRPO and Prefix-RFT with a directory: settings, data and rewards in, a model out.

What `foreword train grpo` and `foreword train prefix-rft` do. A program of one's own is better
served by the trainers in `foreword.training`.
"""

from __future__ import annotations

from foreword.training.runs._records import Prompts, read_prompts
from foreword.training.runs._rewards import Reward, find_reward
from foreword.training.runs._run import RewardRun, reward_run
from foreword.training.runs._settings import RunSettings, near
from foreword.training.runs._watch import RunProgress

__all__ = [
    "Prompts",
    "Reward",
    "RewardRun",
    "RunProgress",
    "RunSettings",
    "find_reward",
    "near",
    "read_prompts",
    "reward_run",
]
