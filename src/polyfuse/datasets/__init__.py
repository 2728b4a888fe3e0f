"""Data sets of the bench, each in a file of its own: ``load_dataset("mfeat")`` fetches, checks, splits and encodes."""

from polyfuse.datasets import (
    av_digits,
    av_mnist,
    breast_cancer,
    coco_clip,
    emoji,
    generators,
    htad,
    mfeat,
    miniacc,
    tabler,
    tuxpaint,
    watch,
)
from polyfuse.datasets.base import DataSet, DataSetSource
from polyfuse.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "emoji": emoji.SOURCE,
        **av_digits.SOURCES,
        "htad": htad.SOURCE,
        **mfeat.SOURCES,
        "watch": watch.SOURCE,
        **miniacc.SOURCES,
        "breast_cancer": breast_cancer.SOURCE,
        "tuxpaint": tuxpaint.SOURCE,
        "tabler": tabler.SOURCE,
        "av_mnist": av_mnist.SOURCE,
        "coco_clip": coco_clip.SOURCE,
        **generators.SOURCES,
    },
)


def load_dataset(name: str, split: int = 0) -> DataSet:
    """A data set, fetched on first use.

    Args:
        name: An entry of ``DATASETS``.
        split: Number of the random split; 0 is the standard one.

    Raises:
        UserError: If the name is unknown or its files cannot be fetched.
    """
    from polyfuse.errors import UserError

    if name not in DATASETS:
        try:
            DATASETS[name]
        except KeyError as error:
            raise UserError(str(error.args[0])) from None
    source: DataSetSource = DATASETS[name]
    return source.load(split)


__all__ = ["DATASETS", "DataSet", "DataSetSource", "load_dataset"]
