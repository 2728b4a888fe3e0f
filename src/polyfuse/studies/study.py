"""What a study of fusions is: data sets, arms, and how much of them each scale does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from polyfuse.config import CalibrateConfig, EvaluateConfig
from polyfuse.datasets import DataSet, load_dataset
from polyfuse.studies.arms import Plan
from polyfuse.studies.jobs import Load
from polyfuse.studies.tables import Questions

RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Size:
    """How much of a study is done.

    Attributes:
        steps: Of every training.
        tries: Settings tried per arm.
        seeds: Per arm.
        oracles: Seeds of the models per subset, and again as many of the reseeded ones; 0 = none. With more than 15
            subsets it is one.
        bootstrap: Resamples of an interval.
        datasets: Those of this scale; empty = all of the study.
        skip: Arms that this scale leaves out.
    """

    steps: int
    tries: int = 1
    seeds: int = 5
    oracles: int = 0
    bootstrap: int = 1000
    datasets: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """What a study compares, on what.

    Attributes:
        name: Its registry key.
        title: Of its page.
        datasets: Entries of ``DATASETS``, with a variant where wanted: ``mfeat``, ``mfeat | missing 0.7``.
        arms: From a data set (its variant applied) and the size to the plans; one has kind ``reference``. It must be a
            function of its arguments.
        scales: ``smoke``, ``small`` and ``full``.
        encode: Train an encoder per modality, also of vectors.
        evaluate: Subsets, rates, corruptions.
        calibrate: Levels.
        questions: What its page answers beside the tables.
        load: Loads a data set by name and split; a function that worker processes can import.
    """

    name: str
    title: str
    datasets: tuple[str, ...]
    arms: Callable[[DataSet, Size], list[Plan]]
    scales: Mapping[str, Size]
    encode: bool = True
    evaluate: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(drop_rates=RATES))
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    questions: Questions = field(default_factory=Questions)
    load: Load = load_dataset
