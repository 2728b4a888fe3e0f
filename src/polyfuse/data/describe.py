"""What is in a batch, counted."""

from collections import Counter

import torch

from polyfuse.data.batch import Batch
from polyfuse.data.spec import TargetSpec


def class_counts(batch: Batch, target: TargetSpec) -> dict[str, int]:
    """Rows of every class, or with every label."""
    if batch.target is None or target.task == "regression":
        return {}
    if target.task == "multilabel":
        counts = batch.target.nan_to_num().sum(dim=0).long()
    else:
        counts = torch.bincount(batch.target[batch.target >= 0], minlength=len(target.classes))
    return dict(zip(target.classes, counts.tolist(), strict=True))


def patterns(batch: Batch) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Rows by set of present modalities, most frequent first."""
    counts = Counter(map(tuple, batch.present.tolist()))
    return tuple(
        (tuple(name for name, here in zip(batch.modalities, row, strict=True) if here), count)
        for row, count in counts.most_common()
    )
