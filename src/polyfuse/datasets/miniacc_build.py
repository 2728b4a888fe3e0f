"""The shipped miniACC file, made again from the R file it came from: ``polyfuse data fetch miniacc --rebuild``.

The R file is an S4 object that was saved with ``save()``. PyPI ``rdata`` parses it into a tree of R values; no R code
is run, and no class of it is built. Needed for this check only: the shipped file is read with numpy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.errors import UserError

SHIPPED = Path(__file__).parents[1] / "data" / "assets" / "miniacc" / "miniacc.npz"
ASSAYS = {
    "RNASeq2GeneNorm": "rna",
    "gistict": "cn",
    "RPPAArray": "rppa",
    "Mutations": "mut",
    "miRNASeqGene": "mirna",
}
COLUMNS = ("years_to_birth", "pathologic_stage", "gender", "vital_status", "MethyLevel")


def rebuild(say: Callable[[str], None] | None = None) -> list[str]:
    """Convert the fetched R file and compare it with the shipped arrays.

    Returns:
        One line per difference; empty if there is none.

    Raises:
        UserError: If ``rdata`` is missing, or the fetch fails.
    """
    from polyfuse.data.fetch import fetch

    made = convert(fetch("miniacc", say=say) / "miniACC.RData")
    with np.load(SHIPPED, allow_pickle=False) as shipped:
        lines = [f"'{name}' is in one of the files only" for name in sorted(set(made) ^ set(shipped.files))]
        for name in sorted(set(made) & set(shipped.files)):
            old, new = shipped[name], made[name]
            same = old.dtype == new.dtype and np.array_equal(old, new, equal_nan=old.dtype.kind == "f")
            lines += (
                [] if same else [f"'{name}' differs: shipped {old.dtype} {old.shape}, made {new.dtype} {new.shape}"]
            )
    return lines


def convert(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the shipped file, from ``miniACC.RData``.

    Returns:
        ``patients`` (92,); per clinical column of ``COLUMNS`` its values (92,), text or float32 with NaN; per assay
        ``rna`` ... its values (92, D) float32, NaN rows where the patient lacks it, ``rna_features`` (D,), and
        ``rna_present`` (92,) bool.
    """
    import importlib

    try:
        rdata = importlib.import_module("rdata")
    except ModuleNotFoundError:
        raise UserError("making the miniACC file again needs the package 'rdata': pip install rdata") from None
    slots = _slots(_pairs(rdata.parser.parse_file(path).object)["miniACC"])
    clinical = _slots(slots["colData"])
    patients = _texts(clinical["rownames"])
    out: dict[str, np.ndarray] = {"patients": np.array(patients)}
    columns = dict(zip(_names(clinical["listData"]), clinical["listData"].value, strict=True))
    for name in COLUMNS:
        out[name] = _column(columns[name])
    links = _slots(slots["sampleMap"])["listData"].value
    levels = _texts(_slots(links[0])["levels"])
    assay_of = [levels[code - 1] for code in links[0].value]
    owner = dict(zip(zip(assay_of, _texts(links[2]), strict=True), _texts(links[1]), strict=True))
    experiments = _slots(slots["ExperimentList"])["listData"]
    for name, experiment in zip(_names(experiments), experiments.value, strict=True):
        features, samples, values = _assay(experiment)
        table = np.full((len(patients), len(features)), np.nan, dtype=np.float32)
        present = np.zeros(len(patients), dtype=bool)
        for sample, column in zip(samples, values.T, strict=True):
            row = patients.index(owner[name, sample])
            table[row], present[row] = column, True
        short = ASSAYS[name]
        out |= {short: table, f"{short}_features": np.array(features), f"{short}_present": present}
    return out


def _assay(experiment: Any) -> tuple[list[str], list[str], np.ndarray]:
    """Names of features, names of samples, and values ``(features, samples)``."""
    slots = _slots(experiment)
    if "dim" in slots:  # a plain matrix
        features, samples = (_texts(part) for part in slots["dimnames"].value)
        matrix = experiment
    else:
        features, samples = _texts(slots["NAMES"]), _texts(_slots(slots["colData"])["rownames"])
        environment = _slots(slots["assays"])[".xData"].value
        found: dict[str, Any] = {}
        for chain in environment.hash_table.value:
            found |= _pairs(chain)
        (matrix,) = _slots(found[".->data"])["listData"].value
    size = (len(features), len(samples))
    values = _numbers(matrix)
    if tuple(_slots(matrix)["dim"].value) != size:
        raise UserError(f"miniACC.RData: an assay must be {size}, got {tuple(_slots(matrix)['dim'].value)}")
    return features, samples, values.reshape(size, order="F")


def _column(vector: Any) -> np.ndarray:
    """Text (empty where missing) or float32 (NaN where missing)."""
    if vector.info.type.name == "STR":
        return np.array(_texts(vector))
    return _numbers(vector).astype(np.float32)


def _numbers(vector: Any) -> np.ndarray:
    values = np.ma.filled(np.ma.asarray(vector.value).astype(np.float64), np.nan)
    return np.where(np.isnan(values), np.nan, values)  # R marks NA by a NaN of its own, which a cast warns of


def _texts(vector: Any) -> list[str]:
    return ["" if item.value is None else item.value.decode() for item in vector.value]


def _names(vector: Any) -> list[str]:
    return _texts(_slots(vector)["names"])


def _slots(value: Any) -> dict[str, Any]:
    """The attributes of an R value: for an S4 object, its slots."""
    return _pairs(value.attributes)


def _pairs(value: Any) -> dict[str, Any]:
    """An R pair list, by tag."""
    out = {}
    while value is not None and value.info.type.name == "LIST":
        tag = value.tag
        while tag.info.type.name == "REF":
            tag = tag.referenced_object
        out[tag.value.value.decode()] = value.value[0]
        value = value.value[1]
    return out
