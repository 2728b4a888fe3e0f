"""Wisconsin breast cancer: mean, standard error and worst value of ten measurements of cell nuclei, as three views.

Source: Street, Wolberg and Mangasarian 1993, "Nuclear feature extraction for breast tumor diagnosis", as scikit-learn
ships it.
"""

from polyfuse.datasets.assemble import assemble, split_rows
from polyfuse.datasets.base import DataSet, DataSetSource
from polyfuse.errors import require

VIEWS = ("mean", "error", "worst")


def load(split: int = 0) -> DataSet:
    """569 tumours, malignant or benign."""
    table = require("sklearn.datasets", extra="workbench").load_breast_cancer()
    columns = {view: [c for c, name in enumerate(table.feature_names) if view in name.split()] for view in VIEWS}
    ids = [f"breast_cancer/{row}" for row in range(len(table.target))]
    return assemble(
        "breast_cancer",
        ids=ids,
        labels=table.target,
        classes=[str(name) for name in table.target_names],
        features={view: table.data[:, columns[view]] for view in VIEWS},
        part=split_rows(ids, table.target.tolist(), split),
        notes=(
            "Source: Street, Wolberg and Mangasarian 1993; UCI Machine Learning Repository.",
            "Three views of the same measurements: redundant, and near the ceiling.",
        ),
    )


SOURCE = DataSetSource(
    "Tumours by mean, standard error and worst value of ten measurements: 569 rows, 2 classes, 3 modalities",
    "BSD-3-Clause, as scikit-learn states it",
    load,
)
