"""The arms of the study of fusions: what each is, where it comes from, and what it is compared with.

Every arm has the same encoders, head, dropout, steps, optimiser and number of tries.
"""

from collections.abc import Mapping
from typing import Any

from polyfuse.config import PLAIN, EncoderConfig, ModelConfig, TrainConfig
from polyfuse.datasets import DataSet
from polyfuse.studies.aecf_reference import AecfReference
from polyfuse.studies.arms import Plan
from polyfuse.studies.floors import linear_floors
from polyfuse.studies.study import Size

REFERENCE, DEFAULT = "reference", "default"
WIDTH, HIDDEN, RATE, CORRUPTION = 64, 128, 0.5, 0.15

#: The default recipe, as chosen on validation rows (docs/lab-notes.md).
DEFAULT_MODEL: Mapping[str, Any] = {"fusion": "slots", "corruption": CORRUPTION}
DEFAULT_RECIPE: Mapping[str, Any] = {"passes": "sandwich", "distill": 1.0}


def settings(data: DataSet, size: Size, **model: Any) -> tuple[ModelConfig, TrainConfig]:
    """Encoders, head and loop that all arms share, with what is special to one."""
    encoders = {name: EncoderConfig(args={"hidden_dim": HIDDEN, "dropout": 0.1}) for name in data.specs}
    shared: dict[str, Any] = {"embed_dim": WIDTH, "hidden": None, "dropout": 0.1, "encoders": encoders}
    special: dict[str, Any] = {"fusion": "concat", "modality_dropout": RATE, "corruption": 0.0, **model}
    loop = TrainConfig(steps=size.steps, batch_size=64, lr=3e-3, evaluations=6, patience=None, threads=1, recipe=PLAIN)
    return ModelConfig(**shared, **special), loop


def make(
    data: DataSet,
    size: Size,
    name: str,
    label: str,
    note: str,
    *,
    kind: str = "arm",
    recipe: Mapping[str, Any] | None = None,
    loop: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    **model: Any,
) -> Plan:
    """One arm. Tries are the same for all: quick as it is, slower with more dropout in the encoders, slower."""
    config, train = settings(data, size, **model)
    train = train.model_copy(update={"recipe": PLAIN.model_copy(update=dict(recipe or {})), **(loop or {})})
    cautious = {"train.lr": 1e-3} | {f"model.encoders.{name_}.args.dropout": 0.5 for name_ in data.specs}
    tries: list[dict[str, Any]] = [{}, cautious, {"train.lr": 1e-3}]
    return Plan(name, label, kind, config, train, tuple(tries[: size.tries]), note=note, **(plan or {}))


def fusion_arms(data: DataSet, size: Size) -> list[Plan]:
    """Early, late, hybrid and every other fusion, with and without modality dropout."""

    def arm(name: str, label: str, note: str, **more: Any) -> Plan:
        return make(data, size, name, label, note, **more)

    bare: dict[str, Any] = {"modality_dropout": 0.0}
    one: dict[str, Any] = {"fusion_args": {"num_layers": 1}}
    return [
        arm(
            REFERENCE,
            "concat + dropout (ref)",
            "Early fusion, modality dropout 0.5, learned missing tokens: the method to beat.",
            kind="reference",
        ),
        arm("concat_plain", "concat, no dropout", "Early fusion, trained on complete rows as they are.", **bare),
        arm(
            "concat_zeros",
            "concat + dropout, zeros",
            "The reference with zeros in empty slots (ModDrop, arXiv 1501.00102).",
            fusion_args={"missing_tokens": False},
        ),
        arm(
            "concat_stratified",
            "concat + stratified dropout",
            "The reference with a number of survivors that is uniform over 1..M.",
            modality_dropout=1.0,
            modality_dropout_schedule="stratified",
        ),
        arm("late_plain", "late, no dropout", "Mean of each input's own logits.", fusion="late", **bare),
        arm("late", "late + dropout", "Mean of each input's own logits.", fusion="late"),
        arm(
            "late_sum",
            "late sum + dropout",
            "Sum of each input's own logits.",
            fusion="late",
            fusion_args={"reduction": "sum"},
        ),
        arm("hybrid", "hybrid + dropout", "Early and late side by side.", fusion="hybrid"),
        arm("gate_plain", "gate, no dropout", "Gated multimodal unit (arXiv 1702.01992).", fusion="gated", **bare),
        arm("gate", "gate + dropout", "Gated multimodal unit (arXiv 1702.01992).", fusion="gated"),
        arm(
            "pool_plain",
            "attention pool, no dropout",
            "One learned query, absent keys masked.",
            fusion="attention_pool",
            **bare,
        ),
        arm("pool", "attention pool + dropout", "One learned query, absent keys masked.", fusion="attention_pool"),
        arm(
            "embracenet_plain",
            "EmbraceNet, no dropout",
            "arXiv 1904.09078, expectation at test.",
            fusion="embracenet",
            **bare,
        ),
        arm("embracenet", "EmbraceNet + dropout", "arXiv 1904.09078, expectation at test.", fusion="embracenet"),
        arm("low_rank", "LMF + dropout", "Low-rank tensor fusion (arXiv 1806.00064).", fusion="low_rank"),
        arm("low_rank_plain", "LMF, no dropout", "Low-rank tensor fusion.", fusion="low_rank", **bare),
        arm("tensor", "TFN + dropout", "Outer product of narrow embeddings (arXiv 1707.07250).", fusion="tensor"),
        arm("bottleneck", "MBT + dropout", "Bottleneck transformer (arXiv 2107.00135).", fusion="bottleneck"),
        arm("bottleneck_plain", "MBT, no dropout", "Bottleneck transformer.", fusion="bottleneck", **bare),
        arm(
            "transformer",
            "transformer + dropout",
            "Self-attention over one token per input.",
            fusion="transformer",
            **one,
        ),
        arm(
            "product",
            "product of experts + dropout",
            "Each input's own logits added, the prior counted once (arXiv 1802.05335).",
            fusion="product_of_experts",
        ),
        arm(
            "experts",
            "mixture of experts + dropout",
            "Experts over slots, routed by the mask (cf. Flex-MoE, arXiv 2410.08245).",
            fusion="mixture_of_experts",
        ),
    ]


def aecf_arms(data: DataSet, size: Size) -> list[Plan]:
    """AECF: as published, as meant, and its ingredients one after the other."""

    def arm(name: str, label: str, note: str, **more: Any) -> Plan:
        return make(data, size, name, label, note, **more)

    def policy(name: str, policy: str, rate: float | None, label: str, note: str) -> Plan:
        args: dict[str, Any] = {"policy": policy, "target_rate": rate}
        if rate is None:
            args["base_mask_prob"] = 0.9
        return arm(name, label, note, fusion="aecf", modality_dropout=None, fusion_args=args)

    # The pool of AECF with its own masking off is the attention pool, and tells its entropy.
    ramp = {"fusion": "aecf", "fusion_args": {"apply_mask": False}, "modality_dropout_ramp": 0.5}
    paper = "arXiv 2505.15417"
    return [
        arm(
            "aecf_reference",
            "aecf 0.1.0 as published",
            "Masks weights that make no output; a control.",
            modality_dropout=0.0,
            plan={"fusion": AecfReference},
        ),
        policy("aecf_entropy", "entropy", None, "AECF, entropy up: more", "p = 0.9 H, the direction of the package."),
        policy(
            "aecf_inverse", "inverse_entropy", None, "AECF, entropy up: less", "p = 0.9 (1 - H), the RFC's direction."
        ),
        policy("aecf_entropy_matched", "entropy", RATE, "AECF, more, matched rate", "The same at mean rate 0.5."),
        policy(
            "aecf_inverse_matched", "inverse_entropy", RATE, "AECF, less, matched rate", "The same at mean rate 0.5."
        ),
        policy("aecf_dominance", "dominance", RATE, "AECF, dominance", "Drops what dominates, at mean rate 0.5."),
        arm("pool_ramp", "pool + dropout ramp", f"A linear ramp of the dropout ({paper}).", **ramp),
        arm(
            "pool_ramp_bonus",
            "pool + ramp + bonus",
            f"And the entropy bonus ({paper}).",
            recipe={"entropy_bonus": 0.05},
            **ramp,
        ),
        arm(
            "aecf_full",
            "pool + ramp + bonus + hinge",
            f"And the confidence hinge: all of AECF ({paper}).",
            recipe={"entropy_bonus": 0.05, "hinge": 0.1},
            **ramp,
        ),
        arm(
            "aecf_instance",
            "the same, lambda(x) from 3 passes",
            f"And a coefficient per row from three random passes ({paper}).",
            recipe={"entropy_bonus": 0.05, "hinge": 0.1, "instance_passes": 3},
            **ramp,
        ),
        arm(
            "gate_full",
            "gate + ramp + bonus + hinge",
            "All of AECF on a gate.",
            fusion="gated",
            modality_dropout_ramp=0.5,
            recipe={"entropy_bonus": 0.05, "hinge": 0.1},
        ),
    ]


def recipe_arms(data: DataSet, size: Size) -> list[Plan]:
    """The reference plus one recipe each."""

    def arm(name: str, label: str, note: str, **recipe: Any) -> Plan:
        return make(data, size, name, f"ref + {label}", note, recipe=recipe)

    return [
        arm("full_pass", "full pass", "Each step also sees the complete rows.", passes="full"),
        arm("hinge", "full pass + hinge", "CML (ICML 2023), per row.", passes="full", hinge=0.5),
        arm("consistency", "full pass + CEC", "Martingale consistency of subsets.", consistency=0.5),
        arm("monotone", "full pass + monotone mean", "More inputs must not cost loss on average.", monotone=0.5),
        arm("sandwich", "sandwich", "Complete, one single input, one random subset.", passes="sandwich"),
        arm(
            "distillation",
            "sandwich + distilling",
            "And subsets follow the complete prediction (MMANet weights).",
            passes="sandwich",
            distill=1.0,
        ),
        make(
            data,
            size,
            "proxy",
            "ref + proxy tokens",
            "Empty slots hold what the others let expect (arXiv 2501.17823).",
            fusion="proxy",
            recipe={"proxy": 0.5},
        ),
        arm("unimodal", "unimodal heads", "Every input's own loss, equal weights.", unimodal=1.0),
        arm("ogm_ge", "OGM-GE", "The leading encoder slowed down (arXiv 2203.15332).", balance="ogm_ge"),
        make(
            data,
            size,
            "dro",
            "ref + subset GroupDRO",
            "Combinations weigh by their regret (arXiv 1911.08731).",
            recipe={"subset_dro": 0.02, "subset_floor": linear_floors(data)},
        ),
        make(
            data,
            size,
            "corruption",
            "ref + corruption",
            "15 % of the inputs replaced by noise or another row's, unflagged.",
            corruption=CORRUPTION,
        ),
    ]


def default_arms(data: DataSet, size: Size) -> list[Plan]:
    """The default recipe, and the same without one of its parts."""

    def arm(name: str, label: str, note: str, recipe: Mapping[str, Any] = DEFAULT_RECIPE, **model: Any) -> Plan:
        return make(data, size, name, label, note, recipe=recipe, **{**DEFAULT_MODEL, **model})

    return [
        arm(DEFAULT, "default recipe", "Slots, sandwich passes with distillation, corruption; chosen in validation."),
        arm("default_concat", "default, concat", "The default recipe without slots.", fusion="concat"),
        arm("default_one_pass", "default, one pass", "Without sandwich passes and distillation.", recipe={}),
        arm("default_clean", "default, no corruption", "Without corruption.", corruption=0.0),
    ]


def control_arms(data: DataSet, size: Size) -> list[Plan]:
    """Single inputs, and the baselines that need no fusion."""
    unimodal = [
        make(
            data,
            size,
            f"only_{name}",
            f"{name} alone",
            "One input, on the rows that have it.",
            kind="unimodal",
            modality_dropout=0.0,
            plan={"uses": (name,)},
        )
        for name in data.specs
    ]
    return [
        *unimodal,
        make(
            data,
            size,
            "presence_only",
            "presence only",
            "Knows which inputs are there, not what they say.",
            kind="baseline",
            plan={"baseline": "presence_only"},
        ),
        make(
            data,
            size,
            "gradient_boosting",
            "gradient boosting",
            "Trees on the raw features, holes as they are.",
            kind="baseline",
            plan={"baseline": "gradient_boosting"},
        ),
    ]
