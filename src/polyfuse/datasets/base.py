"""What a data set of the bench is: split, encoded, with its specs, its groups and what is known about it.

Shapes: N rows, M modalities, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec

Posterior = Callable[[Batch, Tensor], Tensor]


@dataclass(frozen=True)
class DataSet:
    """Rows that a study trains and judges on.

    Attributes:
        name: Its registry key.
        train: Training rows; natural holes stay holes.
        validation: Rows for early stopping, choices and calibration.
        test: Rows to judge on.
        specs: One per modality, in the column order of ``present``.
        target: What is predicted.
        groups: By split name, what each row belongs to (a subject, a concept); None = every row stands for itself.
            No group is in two splits.
        broken: Test inputs of one modality, broken before they were encoded (a blurred picture, a clipped recording):
            ``{(modality, corruption): input}``, rows as in ``test``. Never used in training.
        posterior: Generators only: ``(batch, present (N, M)) -> (N, C)`` exact class probabilities (multilabel: label
            probabilities) given the present inputs.
        notes: Facts a reader of results must know, one sentence each.
    """

    name: str
    train: Batch
    validation: Batch
    test: Batch
    specs: Mapping[str, ModalitySpec]
    target: TargetSpec
    groups: Mapping[str, Sequence[str]] | None = None
    broken: Mapping[tuple[str, str], Tensor | dict[str, Tensor]] = field(default_factory=dict)
    posterior: Posterior | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSetSource:
    """An entry of ``DATASETS``: what it is, and how it is loaded.

    Attributes:
        about: One line for ``polyfuse list datasets``.
        licence: Of the data, as its source states it.
        load: ``load(split) -> DataSet``; ``split`` numbers the random split, 0 is the standard one. Sets with a fixed
            split ignore it.
        fetch: Names of ``FETCHABLE`` that are downloaded when it is first loaded; empty = nothing.
        real: Whether the rows were measured (False: generated).
        resplit: Whether each seed of a study takes a split of its own, because one test part is too small to tell.
    """

    about: str
    licence: str
    load: Callable[[int], DataSet]
    fetch: tuple[str, ...] = ()
    real: bool = True
    resplit: bool = False
