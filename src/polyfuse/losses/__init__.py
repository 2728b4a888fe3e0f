"""Losses: the negative log-likelihood of each task, and a reward for spread-out fusion weights."""

from polyfuse.losses.entropy import EntropyRegularizer, entropy_bonus, unimodal_disagreement
from polyfuse.losses.task import TASKS, TaskLoss, task_loss

__all__ = ["TASKS", "EntropyRegularizer", "TaskLoss", "entropy_bonus", "task_loss", "unimodal_disagreement"]
