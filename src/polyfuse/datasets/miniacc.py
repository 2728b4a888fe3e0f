"""miniACC: 92 patients with adrenocortical carcinoma, five assays and clinical data; half of them lack an assay.

Source: Zheng et al. 2016, "Comprehensive Pan-Genomic Characterization of Adrenocortical Carcinoma" (PMID 27165744), as
the Bioconductor package MultiAssayExperiment carries it (Artistic-2.0). The file ships with polyfuse;
``data/assets/miniacc/README.md`` says how it was made.

Inputs: gene expression (rna), copy number (cn), protein (rppa), mutations (mut), micro-RNA (mirna), and of the 30
clinical columns age, stage and sex. Days to death and to the last visit tell the outcome, and the cluster columns
(mRNA_K4, COC, OncoSign, C1A.C1B ...) are computed from the assays and the outcome's own paper: none is an input.
"""

from functools import partial

import numpy as np

from polyfuse.datasets.assemble import assemble, damaged, split_rows
from polyfuse.datasets.base import DataSet, DataSetSource
from polyfuse.datasets.miniacc_build import SHIPPED

ASSAYS = ("rna", "cn", "rppa", "mut", "mirna")
STAGES = ("stage i", "stage ii", "stage iii", "stage iv")
TARGETS = {
    "vital_status": ("0.0", "1.0"),
    "MethyLevel": ("CIMP-low", "CIMP-intermediate", "CIMP-high"),
}
CLASSES = {"vital_status": ("alive", "dead"), "MethyLevel": ("low", "intermediate", "high")}


def load(name: str, target: str, split: int = 0) -> DataSet:
    """Patients whose target is known; assays that a patient lacks are absent.

    Args:
        name: Registry key.
        target: ``vital_status``, or ``MethyLevel``: the methylation class, methylation not being an input.
        split: Number of the split.
    """
    try:
        with np.load(SHIPPED, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise damaged(SHIPPED, str(error)) from None
    answers = [str(value) for value in data[target]]
    rows = np.array([row for row, answer in enumerate(answers) if answer in TARGETS[target]])
    labels = np.array([TARGETS[target].index(answers[row]) for row in rows])
    stage = np.array([STAGES.index(s) + 1.0 if s in STAGES else np.nan for s in data["pathologic_stage"]])
    features = {
        "rna": np.log2(1.0 + data["rna"]),
        "cn": data["cn"],
        "rppa": data["rppa"],
        "mut": data["mut"],
        # counts: per million of the patient's own, so that the depth of sequencing drops out
        "mirna": np.log2(1.0 + 1e6 * data["mirna"] / data["mirna"].sum(axis=1, keepdims=True)),
        "clinical": np.stack([data["years_to_birth"], stage, data["gender"] == "male"], axis=1),
    }
    here = np.stack([*(data[f"{assay}_present"] for assay in ASSAYS), np.ones(len(answers), dtype=bool)], axis=1)
    ids = [f"miniacc/{data['patients'][row]}" for row in rows]
    return assemble(
        name,
        ids=ids,
        labels=labels,
        classes=CLASSES[target],
        features={modality: values[rows] for modality, values in features.items()},
        part=split_rows(ids, labels.tolist(), split),
        present=here[rows],
        notes=(
            "Source: Zheng et al. 2016, Cancer Cell, PMID 27165744; TCGA.",
            f"{len(rows)} patients: one split says nothing, repeat splits and report intervals.",
            "Clinical inputs are age, stage and sex; columns that tell the outcome or the assays are left out.",
        ),
    )


SOURCES = {
    "miniacc": DataSetSource(
        "92 tumour patients, five assays and clinical data, naturally missing; target: alive or dead",
        "Artistic-2.0",
        partial(load, "miniacc", "vital_status"),
        resplit=True,
    ),
    "miniacc_cimp": DataSetSource(
        "The same patients; target: methylation class (low, intermediate, high), 79 patients",
        "Artistic-2.0",
        partial(load, "miniacc_cimp", "MethyLevel"),
        resplit=True,
    ),
}
