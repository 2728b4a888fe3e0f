"""Metrics, all-subset sweeps, baselines and intervals: predictions in, plain records out."""

from polyfuse.evaluate.baselines import embedding_batch, gradient_boosting, presence_only
from polyfuse.evaluate.captions import DocumentFrequencies, bleu, caption_scores, cider_d, rouge_l
from polyfuse.evaluate.corruptions import corruption_records, flagged_difference
from polyfuse.evaluate.fluency import NGramModel, copied_share, distinct_n, fluency_scores
from polyfuse.evaluate.grounding import grounding_table, iou, pointing_game
from polyfuse.evaluate.intervals import paired_difference, paired_statistic
from polyfuse.evaluate.metrics import HIGHER_IS_BETTER, PRIMARY, score
from polyfuse.evaluate.records import evaluate_model, own_record, records, reliability_records
from polyfuse.evaluate.retrieval import Recall, first_right_ranks, ranks_of_scores, recall, retrieval_scores
from polyfuse.evaluate.subsets import all_subsets, drop_weights, subsets_of
from polyfuse.evaluate.sweep import Sweep, sweep
from polyfuse.evaluate.table import drop_curve, regret, row_means, shapley, summary, violation_rate, worst_subset
from polyfuse.evaluate.vqa import normalise_answer, soft_targets, vqa_accuracy, vqa_table

__all__ = [
    "HIGHER_IS_BETTER",
    "PRIMARY",
    "DocumentFrequencies",
    "NGramModel",
    "Recall",
    "Sweep",
    "all_subsets",
    "bleu",
    "caption_scores",
    "cider_d",
    "copied_share",
    "corruption_records",
    "distinct_n",
    "drop_curve",
    "drop_weights",
    "embedding_batch",
    "evaluate_model",
    "first_right_ranks",
    "flagged_difference",
    "fluency_scores",
    "gradient_boosting",
    "grounding_table",
    "iou",
    "normalise_answer",
    "own_record",
    "paired_difference",
    "paired_statistic",
    "pointing_game",
    "presence_only",
    "ranks_of_scores",
    "recall",
    "records",
    "regret",
    "reliability_records",
    "retrieval_scores",
    "rouge_l",
    "row_means",
    "score",
    "shapley",
    "soft_targets",
    "subsets_of",
    "summary",
    "sweep",
    "violation_rate",
    "vqa_accuracy",
    "vqa_table",
    "worst_subset",
]
