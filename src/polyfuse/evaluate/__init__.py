"""Metrics, all-subset sweeps, baselines and intervals: predictions in, plain records out."""

from polyfuse.evaluate.baselines import embedding_batch, gradient_boosting, presence_only
from polyfuse.evaluate.corruptions import corruption_records, flagged_difference
from polyfuse.evaluate.intervals import paired_difference, paired_statistic
from polyfuse.evaluate.metrics import HIGHER_IS_BETTER, PRIMARY, score
from polyfuse.evaluate.records import evaluate_model, own_record, records, reliability_records
from polyfuse.evaluate.subsets import all_subsets, drop_weights, subsets_of
from polyfuse.evaluate.sweep import Sweep, sweep
from polyfuse.evaluate.table import drop_curve, regret, row_means, shapley, summary, violation_rate, worst_subset

__all__ = [
    "HIGHER_IS_BETTER",
    "PRIMARY",
    "Sweep",
    "all_subsets",
    "corruption_records",
    "drop_curve",
    "drop_weights",
    "embedding_batch",
    "evaluate_model",
    "flagged_difference",
    "gradient_boosting",
    "own_record",
    "paired_difference",
    "paired_statistic",
    "presence_only",
    "records",
    "regret",
    "reliability_records",
    "row_means",
    "score",
    "shapley",
    "subsets_of",
    "summary",
    "sweep",
    "violation_rate",
    "worst_subset",
]
