"""HTAD: seven activities at home, heard by a phone and felt by a watch; features as published.

Source: Garcia-Ceja et al., "HTAD: A Home-Tasks Activities Dataset with Wrist-Accelerometer and Audio Features", 2021,
https://doi.org/10.1007/978-3-030-67835-7_17. Its terms allow research and education with a citation, so the table is
fetched by whoever uses it and is not in this package.
"""

import numpy as np

from polyfuse.data.fetch import fetch
from polyfuse.datasets.assemble import assemble, damaged, numbers, read_csv, split_rows
from polyfuse.datasets.base import DataSet, DataSetSource

VIEWS = {"audio": "v1_", "accelerometer": "v2_"}


def load(split: int = 0) -> DataSet:
    """36 MFCC statistics of the sound and 16 statistics of the acceleration of 1,386 moments."""
    path = fetch("htad") / "htad.csv"
    header, rows = read_csv(path, columns=53)
    if header[0] != "class":
        raise damaged(path, f"the first column must be 'class', got '{header[0]}'")
    classes = sorted({row[0] for row in rows})
    values = numbers(path, [row[1:] for row in rows])
    ids = [f"htad/{row}" for row in range(len(rows))]
    labels = np.array([classes.index(row[0]) for row in rows])
    return assemble(
        "htad",
        ids=ids,
        labels=labels,
        classes=classes,
        features={
            view: values[:, [c for c, title in enumerate(header[1:]) if title.startswith(prefix)]]
            for view, prefix in VIEWS.items()
        },
        part=split_rows(ids, labels.tolist(), split),
        notes=(
            "Cite Garcia-Ceja et al. 2021, doi 10.1007/978-3-030-67835-7_17, wherever results are reported.",
            "The table names no person and no recording: moments of one recording may be in different splits.",
        ),
    )


SOURCE = DataSetSource(
    "Home activities from sound and a wrist accelerometer: 1,386 rows, 7 classes, 2 modalities",
    "research and education, with citation; commercial use by permission",
    load,
    fetch=("htad",),
)
