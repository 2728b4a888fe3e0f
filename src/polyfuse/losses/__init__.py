"""Losses: of each task, of fusion weights, of consistency, and the objectives of pre-training.

Those are contrast, matching, masked modelling, transport, grounding and captioning: ``docs/objectives.md``.
"""

from polyfuse.losses.captioning import CaptioningLoss, captioning_loss
from polyfuse.losses.chunked import chunked_info_nce, chunked_siglip
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
from polyfuse.losses.contrastive import cosine_pair_loss, hard_hinge, info_nce, siglip_loss
from polyfuse.losses.contrastive_modules import CosinePairLoss, HardHinge, InfoNCELoss, SigLIPLoss
from polyfuse.losses.distributed import GatherWithGradient, distributed_info_nce, distributed_siglip
from polyfuse.losses.entropy import EntropyRegularizer, entropy_bonus, unimodal_disagreement
from polyfuse.losses.grounding import (
    BoxLoss,
    RegionPhraseLoss,
    box_area,
    box_iou,
    box_loss,
    centers_to_corners,
    generalized_iou,
    grad_cam,
    region_phrase_loss,
    region_targets,
)
from polyfuse.losses.masked import (
    MaskedLanguageLoss,
    MaskedPatches,
    MaskedRegionClass,
    MaskedRegionKL,
    MaskedRegionRegression,
    masked_language_loss,
    masked_patches,
    masked_region_class,
    masked_region_kl,
    masked_region_regression,
)
from polyfuse.losses.masking import (
    MaskedRegions,
    MaskedTokens,
    choose,
    choose_patches,
    mask_regions,
    mask_tokens,
    patches,
)
from polyfuse.losses.matching import MatchingLoss, MatchingPairs, hard_pairs, matching_loss, random_pairs
from polyfuse.losses.momentum import ITCLoss, Keys, MomentumQueue, MomentumTeacher, itc_loss
from polyfuse.losses.scale import LearnableScale
from polyfuse.losses.task import TASKS, TaskLoss, task_loss
from polyfuse.losses.transport import (
    WordRegionAlignment,
    transport_plan,
    word_region_alignment,
    word_region_distance,
)

__all__ = [
    "CEC",
    "TASKS",
    "BoxLoss",
    "CaptioningLoss",
    "CosinePairLoss",
    "EntropyRegularizer",
    "GatherWithGradient",
    "HardHinge",
    "ITCLoss",
    "InfoNCELoss",
    "Keys",
    "LearnableScale",
    "MaskedLanguageLoss",
    "MaskedPatches",
    "MaskedRegionClass",
    "MaskedRegionKL",
    "MaskedRegionRegression",
    "MaskedRegions",
    "MaskedTokens",
    "MatchingLoss",
    "MatchingPairs",
    "MomentumQueue",
    "MomentumTeacher",
    "RegionPhraseLoss",
    "SigLIPLoss",
    "TaskLoss",
    "WordRegionAlignment",
    "box_area",
    "box_iou",
    "box_loss",
    "captioning_loss",
    "centers_to_corners",
    "choose",
    "choose_patches",
    "chunked_info_nce",
    "chunked_siglip",
    "confidence_hinge",
    "cosine_pair_loss",
    "distillation",
    "distributed_info_nce",
    "distributed_siglip",
    "divergence",
    "entropy_bonus",
    "generalized_iou",
    "grad_cam",
    "hard_hinge",
    "hard_pairs",
    "info_nce",
    "instance_coefficient",
    "itc_loss",
    "martingale_consistency",
    "mask_regions",
    "mask_tokens",
    "masked_language_loss",
    "masked_patches",
    "masked_region_class",
    "masked_region_kl",
    "masked_region_regression",
    "matching_loss",
    "mean_monotone",
    "patches",
    "proxy_loss",
    "random_pairs",
    "region_phrase_loss",
    "region_targets",
    "siglip_loss",
    "task_loss",
    "transport_plan",
    "unimodal_disagreement",
    "word_region_alignment",
    "word_region_distance",
]
