"""The studies that ``polyfuse study NAME`` can run."""

from collections.abc import Sequence
from typing import Any

from polyfuse.errors import UserError
from polyfuse.registry import Registry
from polyfuse.studies.aecf import AECF
from polyfuse.studies.attention import ATTENTION
from polyfuse.studies.bench import run_study
from polyfuse.studies.choice import CHOICE
from polyfuse.studies.finetune import FINETUNE
from polyfuse.studies.fusion_vqa import FUSION_VQA
from polyfuse.studies.imbalance import IMBALANCE
from polyfuse.studies.results import StudyResult
from polyfuse.studies.selfsup import SELFSUP
from polyfuse.studies.study import Study
from polyfuse.studies.task_bench import run_task_study
from polyfuse.studies.task_jobs import TaskStudy

STUDIES = Registry("study", {"aecf": AECF, "choice": CHOICE, "imbalance": IMBALANCE})
"""Many arms on many data sets (``bench.py``)."""

TASK_STUDIES = Registry(
    "study", {"selfsup": SELFSUP, "finetune": FINETUNE, "fusion-vqa": FUSION_VQA, "attention": ATTENTION}
)
"""Jobs of any kind (``task_bench.py``)."""


def every_study() -> dict[str, Study | TaskStudy]:
    """Both kinds by name."""
    return {**STUDIES, **TASK_STUDIES}


def study_named(name: str) -> Study | TaskStudy:
    """A study of either kind.

    Raises:
        UserError: For an unknown name.
    """
    try:
        study: Study | TaskStudy = Registry("study", every_study())[name]
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    return study


def run_named(name: str, *, datasets: Sequence[str] = (), **options: Any) -> StudyResult:
    """Run a study of either kind.

    Args:
        name: Of the study.
        datasets: Some of its data sets.
        **options: Of ``run_study`` and ``run_task_study``.

    Raises:
        UserError: For an unknown name, or what the study's kind does not know.
    """
    study = study_named(name)
    if isinstance(study, Study):
        return run_study(study, datasets=datasets, **options)
    if datasets:
        raise UserError(f"--datasets: study {name} chooses its own; --only takes some of its arms")
    return run_task_study(study, **options)
