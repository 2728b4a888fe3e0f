"""Losses: the likelihood of each task, spread-out fusion weights, consistency between subsets, contrast of pairs."""

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
from polyfuse.losses.contrastive import info_nce
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
    "info_nce",
    "instance_coefficient",
    "martingale_consistency",
    "mean_monotone",
    "proxy_loss",
    "task_loss",
    "unimodal_disagreement",
]
