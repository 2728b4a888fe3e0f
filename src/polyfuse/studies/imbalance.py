"""The study of modality imbalance: one input scarce, weak or badly labelled; which technique mends what.

``before`` is joint training: early fusion with nothing hidden. Every technique is added to it alone, and the most
plausible ones to modality dropout as well, since dropout is itself a technique: it trains each input alone.
"""

from typing import Any

from polyfuse.datasets import DataSet
from polyfuse.studies.arms import Plan
from polyfuse.studies.arms_aecf import make
from polyfuse.studies.floors import linear_floors
from polyfuse.studies.study import Size, Study
from polyfuse.studies.tables import Questions

BEFORE = "joint"


def weak_modality(data: DataSet) -> str:
    """The input that the techniques help: the one the variant's name tells, else the one that says least alone.

    Least is the highest validation loss of a linear discriminant on that input alone.
    """
    _, _, variant = data.name.partition(", ")
    words = variant.split()
    if len(words) > 1 and words[1] in data.specs:
        return words[1]
    floors = linear_floors(data)
    return max(data.specs, key=lambda name: floors.get(name, 0.0))


def arms(data: DataSet, size: Size) -> list[Plan]:
    """Joint training, and every technique."""
    weak = weak_modality(data)

    def arm(name: str, label: str, note: str, dropout: float = 0.0, **recipe: Any) -> Plan:
        return make(data, size, name, label, note, recipe=recipe, modality_dropout=dropout)

    def stronger(method: str) -> dict[str, Any]:
        return {"weak": weak, "weak_method": method, "weak_amount": 1.0}

    return [
        make(
            data,
            size,
            BEFORE,
            "joint training",
            "Early fusion, nothing hidden: before.",
            kind="reference",
            modality_dropout=0.0,
        ),
        arm("dropout", "modality dropout", "Each input is hidden half of the time.", dropout=0.5),
        arm("heads", "unimodal heads", "Every input's own loss, equal weights.", unimodal=1.0),
        arm(
            "weights",
            "heads, weak one x 3",
            "Every input's own loss, the weak one's three times.",
            unimodal=1.0,
            modality_weights={weak: 3.0},
        ),
        arm("ogm_ge", "OGM-GE", "The leading encoder slowed down (arXiv 2203.15332).", balance="ogm_ge"),
        arm(
            "g_blend", "Gradient-Blend", "Losses weighted by how they generalise (arXiv 1905.12681).", balance="g_blend"
        ),
        arm("mmpareto", "MMPareto", "Joint and unimodal gradients reconciled (arXiv 2405.17730).", balance="mmpareto"),
        arm("cml", "CML", "Two passes and the confidence hinge (ICML 2023).", dropout=0.5, passes="full", hinge=0.5),
        arm("oversample", "oversampling", "Rows with the weak input twice as often.", **stronger("oversample")),
        arm(
            "mixup", "feature mixup", "As many rows again, the weak input mixed within its class.", **stronger("mixup")
        ),
        arm(
            "generate",
            "generated inputs",
            "Where the weak input is missing, it is filled in from a Gaussian per class; else joint training.",
            **stronger("generate"),
        ),
        arm("dropout_heads", "dropout + heads", "Both.", dropout=0.5, unimodal=1.0),
        arm("dropout_mmpareto", "dropout + MMPareto", "Both.", dropout=0.5, balance="mmpareto"),
        arm("dropout_generate", "dropout + generated", "Both.", dropout=0.5, **stronger("generate")),
        arm(
            "dropout_distillation",
            "dropout + distillation",
            "Sandwich passes; subsets follow the complete prediction.",
            dropout=0.5,
            passes="sandwich",
            distill=1.0,
        ),
        *(
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
        ),
    ]


SITUATIONS = (
    "av_digits_degraded | scarce audio 0.1",
    "av_digits_degraded | weak audio",
    "av_digits_degraded | mislabelled audio 0.5",
    "htad | scarce accelerometer 0.1",
    "htad | weak accelerometer",
    "emoji | scarce picture 0.1",
    "emoji | mislabelled picture 0.5",
    "mfeat_hard | scarce fou 0.1",
    "mfeat_hard | weak fou",
    "watch | scarce gyroscope 0.1",
    "tuxpaint",
    "tabler",
)

IMBALANCE = Study(
    "imbalance",
    "One input scarce, weak or badly labelled: what helps",
    SITUATIONS,
    arms,
    {
        "smoke": Size(steps=40, seeds=2, bootstrap=200, datasets=("collapsed | scarce a 0.2",)),
        "small": Size(steps=300, tries=2, seeds=5),
        "full": Size(steps=800, tries=3, seeds=10, oracles=3, bootstrap=2000),
    },
    questions=Questions(
        question="When one input is scarce, weak or badly labelled, which technique repairs what, and at what price?",
        imbalance=True,
        protocol=(
            "Before is joint training: concat, encoders and fusion together, nothing hidden, no further loss.",
            "A technique helps the input that the situation names, else the one that says least alone in validation.",
            "Every arm has the same rows, encoders, steps and optimiser; passes per step are printed.",
            "A technique is recommended if it surely gains on the worst subset and surely loses nothing.",
            "Of several tied with the largest gain there, it is the one with the best mean over subsets.",
        ),
        notes=(
            "Generated inputs fill in what is missing; where nothing is (weak, mislabelled), they are joint training.",
        ),
    ),
)
