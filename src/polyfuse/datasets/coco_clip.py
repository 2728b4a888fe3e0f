"""COCO with CLIP features in AECF's published protocol, from the user's own files: image and caption, 80 labels.

Protocol: CLIP ViT-B/32 ("openai", 512-d) of the image and of its first caption; 60,000 training and 5,000 validation
rows from train2014, 5,000 test rows from val2014; macro average precision over 80 labels.

Layout, in ``own/coco_clip`` of the cache folder: for each of train, validation and test either
``<part>.safetensors`` with the tensors ``image``, ``caption`` and ``labels``, or ``<part>_image.npy``,
``<part>_caption.npy`` and ``<part>_labels.npy``. Features are floats ``(N, D)``, labels ``(N, 80)`` of 0 and 1;
rows of one part are in one order.
"""

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from polyfuse.data.spec import TargetSpec
from polyfuse.data.split import NAMES
from polyfuse.datasets.base import DataSet, DataSetSource
from polyfuse.datasets.own_files import checked, folder_of, from_parts, read_array
from polyfuse.errors import UserError

NAME = "coco_clip"
MODALITIES = ("image", "caption")
LABELS = 80
HELP = (
    "encode images and first captions of COCO 2014 (https://cocodataset.org) with CLIP ViT-B/32 and save "
    "<part>.safetensors (image, caption, labels) or <part>_image.npy, <part>_caption.npy, <part>_labels.npy for "
    "train (60,000), validation (5,000) and test (5,000)"
)


def load(split: int = 0) -> DataSet:
    """The rows of the files, 80 labels; their split, whatever ``split`` says.

    Raises:
        UserError: If a file is absent or not what it should be.
    """
    inputs, labels = {}, {}
    widths: dict[str, int | None] = dict.fromkeys(MODALITIES)
    for part in NAMES:
        found = _read(part)
        labels[part] = checked(NAME, f"labels of {part}", found["labels"], (None, LABELS))
        if not np.isin(labels[part], (0, 1)).all():
            raise UserError(f"data set '{NAME}': labels of {part} must be 0 or 1, got other values")
        for modality in MODALITIES:
            wanted = (len(labels[part]), widths[modality])
            widths[modality] = checked(NAME, f"{modality} of {part}", found[modality], wanted).shape[1]
        inputs[part] = {modality: found[modality] for modality in MODALITIES}
    return from_parts(
        NAME,
        inputs,
        labels,
        TargetSpec("multilabel", tuple(f"label{number:02d}" for number in range(LABELS))),
        ("Labels are those of the objects in the image; the caption was written for it.",),
    )


def _read(part: str) -> dict[str, np.ndarray]:
    path = folder_of(NAME) / f"{part}.safetensors"
    names = (*MODALITIES, "labels")
    if not path.is_file():
        return {name: read_array(NAME, f"{part}_{name}.npy", HELP) for name in names}
    try:
        found: dict[str, np.ndarray] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}' must be a safetensors file, got an error: {error}") from None
    if set(names) - set(found):
        raise UserError(f"'{path}' must hold the tensors {', '.join(names)}, got {sorted(found)}")
    return found


SOURCE = DataSetSource(
    "COCO with CLIP features from your own files (image and caption): 70,000 rows, 80 labels, 2 modalities",
    "the user's files; COCO annotations: CC-BY-4.0",
    load,
)
