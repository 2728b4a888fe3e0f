"""AV-MNIST, from the user's own copy: degraded handwritten digits and noisy spectrograms of spoken ones.

Source: Vielzeuf, Lechervy, Pateux and Jurie 2018, "CentralNet", https://arxiv.org/abs/1808.07275; files and split of
MultiBench (Liang et al. 2021, https://arxiv.org/abs/2107.07502): 55,000 / 5,000 / 10,000.
Differs: a bench input is a vector, so an image is its 28 x 28 pixels and a spectrogram of 112 x 112 is averaged over
blocks of 4 x 4.

Shapes: N rows.
"""

import numpy as np

from polyfuse.data.spec import TargetSpec
from polyfuse.datasets.base import DataSet, DataSetSource
from polyfuse.datasets.own_files import checked, folder_of, from_parts, read_array
from polyfuse.errors import UserError

NAME = "av_mnist"
PIXELS = 784
BANDS = 112
BLOCK = 4
VALIDATION = 12  # the last twelfth of the training rows: 5,000 of 60,000
HELP = (
    "get avmnist.tar.gz as https://github.com/pliang279/MultiBench describes and lay out image/train_data.npy, "
    "audio/train_data.npy, train_labels.npy, image/test_data.npy, audio/test_data.npy and test_labels.npy, there or in "
    "avmnist/"
)
_ROWS_AT_ONCE = 1024


def load(split: int = 0) -> DataSet:
    """70,000 rows, 10 classes; the published split, whatever ``split`` says.

    Raises:
        UserError: If a file is absent or not what it should be.
    """
    train_inputs, train_labels = _read("train")
    test_inputs, test_labels = _read("test")
    cut = len(train_labels) - len(train_labels) // VALIDATION
    return from_parts(
        NAME,
        {
            "train": {modality: values[:cut] for modality, values in train_inputs.items()},
            "validation": {modality: values[cut:] for modality, values in train_inputs.items()},
            "test": test_inputs,
        },
        {"train": train_labels[:cut], "validation": train_labels[cut:], "test": test_labels},
        TargetSpec("classification", tuple("0123456789")),
        (
            "Pairs are made by class: image and sound are independent given the digit.",
            "Spectrograms are averaged over blocks of 4 x 4 cells.",
        ),
    )


def _read(part: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    unpacked = "avmnist/" if (folder_of(NAME) / "avmnist").is_dir() else ""
    files = [unpacked + file for file in (f"image/{part}_data.npy", f"audio/{part}_data.npy", f"{part}_labels.npy")]
    image, audio, labels = (read_array(NAME, file, HELP) for file in files)
    checked(NAME, files[2], labels, (None,))
    checked(NAME, files[0], image, (len(labels), PIXELS))
    checked(NAME, files[1], audio, (len(labels), BANDS, BANDS))
    if not np.isin(labels, np.arange(10)).all():
        raise UserError(f"data set '{NAME}': '{files[2]}' must hold digits 0 to 9, got up to {labels.max()}")
    small = np.empty((len(audio), (BANDS // BLOCK) ** 2), dtype=np.float32)
    for start in range(0, len(audio), _ROWS_AT_ONCE):
        block = np.asarray(audio[start : start + _ROWS_AT_ONCE], dtype=np.float32)
        cells = block.reshape(len(block), BANDS // BLOCK, BLOCK, BANDS // BLOCK, BLOCK).mean(axis=(2, 4))
        small[start : start + len(block)] = cells.reshape(len(block), -1)
    return {"image": np.asarray(image, dtype=np.float32), "audio": small}, np.asarray(labels)


SOURCE = DataSetSource(
    "AV-MNIST from your own files (image and spectrogram): 70,000 rows, 10 classes, 2 modalities",
    "the user's files; MNIST and FSDD parts: CC-BY-SA",
    load,
)
