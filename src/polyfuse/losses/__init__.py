"""Losses: the likelihood of each task, rewards for spread-out fusion weights, and consistency between subsets."""

from polyfuse.losses.consistency import (
    CEC,
    confidence_hinge,
    distillation,
    divergence,
    instance_coefficient,
    martingale_consistency,
    mean_monotone,
    proxy_loss,
)
from polyfuse.losses.entropy import EntropyRegularizer, entropy_bonus, unimodal_disagreement
from polyfuse.losses.task import TASKS, TaskLoss, task_loss

__all__ = [
    "CEC",
    "TASKS",
    "EntropyRegularizer",
    "TaskLoss",
    "confidence_hinge",
    "distillation",
    "divergence",
    "entropy_bonus",
    "instance_coefficient",
    "martingale_consistency",
    "mean_monotone",
    "proxy_loss",
    "task_loss",
    "unimodal_disagreement",
]
