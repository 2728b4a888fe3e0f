"""The studies that ``polyfuse study NAME`` can run."""

from polyfuse.errors import UserError
from polyfuse.registry import Registry
from polyfuse.studies.aecf import AECF
from polyfuse.studies.bench import Study
from polyfuse.studies.choice import CHOICE
from polyfuse.studies.imbalance import IMBALANCE

STUDIES = Registry("study", {"aecf": AECF, "choice": CHOICE, "imbalance": IMBALANCE})


def study_named(name: str) -> Study:
    """An entry of ``STUDIES``.

    Raises:
        UserError: For an unknown name.
    """
    try:
        study: Study = STUDIES[name]
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    return study
