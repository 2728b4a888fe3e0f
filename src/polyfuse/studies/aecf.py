"""The study of fusions: what AECF's ingredients buy, early, late and hybrid, and whether the default recipe holds."""

from polyfuse.datasets import DataSet
from polyfuse.studies.arms import Plan
from polyfuse.studies.arms_aecf import (
    DEFAULT,
    REFERENCE,
    aecf_arms,
    control_arms,
    default_arms,
    fusion_arms,
    recipe_arms,
)
from polyfuse.studies.study import Size, Study
from polyfuse.studies.tables import Questions

DATASETS = (
    "emoji",
    "av_digits_degraded",
    "htad",
    "mfeat_hard",
    "mfeat",
    "watch",
    "miniacc",
    "tuxpaint",
    "tabler",
    "breast_cancer",
    "av_digits",
    "mixed",
    "collapsed",
    "mixed5",
    "mixed8",
    "redundancy",
    "unique",
    "synergy",
    "longtail",
    "mfeat | missing 0.7",
    "htad | missing 0.7",
    "emoji | mnar",
    "htad | mnar",
    "av_digits_degraded | weak audio",
)
SMALL = (
    "emoji",
    "av_digits_degraded",
    "htad",
    "mfeat",
    "watch",
    "miniacc",
    "tuxpaint",
    "tabler",
    "mixed",
    "collapsed",
    "htad | missing 0.7",
)
#: Arms that only the full scale has: costly, or telling little beside their neighbours.
LEFT_OUT = (
    "late_plain",
    "late_sum",
    "low_rank_plain",
    "bottleneck_plain",
    "bottleneck",
    "tensor",
    "experts",
    "embracenet_plain",
    "gate_plain",
    "concat_stratified",
    "pool_ramp",
    "aecf_dominance",
    "aecf_instance",
    "monotone",
    "hinge",
    "proxy",
    "ogm_ge",
)
_CLASSES_ONLY = ("hinge", "aecf_full", "aecf_instance", "gate_full")


def arms(data: DataSet, size: Size) -> list[Plan]:
    """All arms; those with the confidence hinge only where there are classes."""
    plans = [
        *control_arms(data, size),
        *fusion_arms(data, size),
        *aecf_arms(data, size),
        *recipe_arms(data, size),
        *default_arms(data, size),
    ]
    if data.target.task == "classification":
        return plans
    return [plan for plan in plans if plan.name not in _CLASSES_ONLY]


INGREDIENTS = (
    ("modality dropout, on concat", REFERENCE, "concat_plain"),
    ("modality dropout, on the attention pool", "pool", "pool_plain"),
    ("missing tokens", REFERENCE, "concat_zeros"),
    ("slots in place of the pool", REFERENCE, "pool"),
    ("entropy-driven masking, more, in place of dropout", "aecf_entropy", "pool"),
    ("entropy-driven masking, less, in place of dropout", "aecf_inverse", "pool"),
    ("the same at a matched rate: more", "aecf_entropy_matched", "pool"),
    ("the same at a matched rate: less", "aecf_inverse_matched", "pool"),
    ("dominance-driven masking, matched rate", "aecf_dominance", "pool"),
    ("a linear ramp of the dropout", "pool_ramp", "pool"),
    ("the entropy bonus", "pool_ramp_bonus", "pool_ramp"),
    ("a ramp and the entropy bonus", "pool_ramp_bonus", "pool"),
    ("the confidence hinge", "aecf_full", "pool_ramp_bonus"),
    ("a coefficient per row from random passes", "aecf_instance", "aecf_full"),
    ("all of AECF, on the pool", "aecf_full", "pool"),
    ("all of AECF, on a gate", "gate_full", "gate"),
    ("the package as published, against a masked pool", "aecf_reference", "pool_plain"),
    ("a full pass", "full_pass", REFERENCE),
    ("the hinge beyond its full pass", "hinge", "full_pass"),
    ("CEC as martingale consistency, beyond a full pass", "consistency", "full_pass"),
    ("distillation beyond sandwich passes", "distillation", "sandwich"),
    ("unflagged corruption", "corruption", REFERENCE),
    ("unimodal heads", "unimodal", REFERENCE),
    ("proxy tokens beyond a full pass", "proxy", "full_pass"),
    ("subset GroupDRO", "dro", REFERENCE),
    ("stratified dropout", "concat_stratified", REFERENCE),
    ("slots, in the default recipe", DEFAULT, "default_concat"),
    ("sandwich passes and distillation, in the default recipe", DEFAULT, "default_one_pass"),
    ("corruption, in the default recipe", DEFAULT, "default_clean"),
)

AECF = Study(
    "aecf",
    "Fusions when inputs go missing: what each ingredient buys",
    DATASETS,
    arms,
    {
        "smoke": Size(steps=40, seeds=2, oracles=1, bootstrap=200, datasets=("mixed",)),
        "small": Size(steps=300, tries=2, seeds=5, oracles=3, datasets=SMALL, skip=LEFT_OUT),
        "full": Size(steps=800, tries=3, seeds=10, oracles=5, bootstrap=2000),
    },
    questions=Questions(
        question="What do AECF's ingredients buy over random modality dropout? Does the default recipe earn its place?",
        default=DEFAULT,
        ingredients=INGREDIENTS,
        families={"early": REFERENCE, "late": "late", "hybrid": "hybrid"},
        protocol=(
            "Encoders (one hidden layer on frozen features) and fusion are trained together.",
            "Every arm has the same rows, encoders, head, steps, batches and optimiser.",
            "Each arm chose one of two pairs of learning rate and encoder dropout on validation rows, first seed.",
            "Every non-empty subset of the inputs of every test row is scored; test rows are looked at once.",
            "Intervals are paired by row and seed and resample groups of rows and seeds.",
            "Their p-values are Holm-corrected over the arms of a data set.",
            "Broken inputs are not flagged; noise and swaps are what corruption training uses, the rest is held out.",
        ),
    ),
)
