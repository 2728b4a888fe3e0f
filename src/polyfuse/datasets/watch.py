"""Seven shoulder exercises, felt by the accelerometer and the gyroscope of a watch; people are held out.

Source: Burns et al. 2018, "Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
smartwatch", https://arxiv.org/abs/1802.01489, as the package seglearn carries it: 140 recordings of 10 people, both
arms, 50 Hz.

Shapes: N windows, T = 150 samples (3 s), 6 channels (acceleration x, y, z, rotation x, y, z).
"""

from dataclasses import dataclass

import numpy as np

from polyfuse.data.fetch import fetch
from polyfuse.data.pickled import read_pickled_npy
from polyfuse.datasets.assemble import assemble, damaged, split_rows
from polyfuse.datasets.base import DataSet, DataSetSource

LENGTH = 150
STEP = 75
CHANNELS = {"accelerometer": slice(0, 3), "gyroscope": slice(3, 6)}
BINS = 10


@dataclass(frozen=True)
class WatchWindows:
    """Windows of 3 s, half overlapping, recording by recording, in order of time.

    Attributes:
        values: ``(N, 150, 6)`` float32: acceleration x, y, z (g), rotation x, y, z (rad/s), as recorded.
        activity: ``(N,)`` int64, the exercise as a number of ``activities``.
        subject: ``(N,)`` int64, the person, 1 to 10.
        recording: ``(N,)`` int64, 0 to 139: windows of one recording follow each other.
        activities: Names of the exercises, as the authors abbreviate them.
    """

    values: np.ndarray
    activity: np.ndarray
    subject: np.ndarray
    recording: np.ndarray
    activities: tuple[str, ...]


def load_watch_windows() -> WatchWindows:
    """The raw windows, fetched on first use.

    Raises:
        UserError: If the file cannot be fetched or read.
    """
    path = fetch("watch") / "watch_dataset.npy"
    data = read_pickled_npy(path)
    try:
        recordings, activity, subject = data["X"], data["y"], data["subject"]
        activities = tuple(data["y_labels"])
        starts = [(r, s) for r, x in enumerate(recordings) for s in range(0, len(x) - LENGTH + 1, STEP)]
        values = np.stack([recordings[r][s : s + LENGTH] for r, s in starts]).astype(np.float32)
        recording = np.array([r for r, _ in starts])
        if values.shape[1:] != (LENGTH, 6) or not np.isfinite(values).all():
            raise damaged(path, f"windows must be finite and (N, {LENGTH}, 6), got {values.shape}")
        return WatchWindows(
            values, activity[recording].astype(np.int64), subject[recording].astype(np.int64), recording, activities
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None


def window_features(values: np.ndarray) -> np.ndarray:
    """Statistics and spectrum of one sensor.

    Args:
        values: ``(N, T, 3)``.

    Returns:
        ``(N, 4 * (8 + BINS))``: for x, y, z and their length: mean, standard deviation, least, quartiles, largest, mean
        absolute step, and the log of the spectrum's first ``BINS`` magnitudes above zero (1/3 Hz apart).
    """
    x = np.concatenate([values, np.linalg.norm(values, axis=2, keepdims=True)], axis=2).astype(np.float64)
    mean = x.mean(axis=1)
    spectrum = np.abs(np.fft.rfft(x - mean[:, None], axis=1))[:, 1 : BINS + 1]
    parts = [
        mean,
        x.std(axis=1),
        *np.quantile(x, (0.0, 0.25, 0.5, 0.75, 1.0), axis=1),
        np.abs(np.diff(x, axis=1)).mean(axis=1),
        *np.log(spectrum + 1e-3).transpose(1, 0, 2),
    ]
    return np.concatenate(parts, axis=1)


def load(split: int = 0) -> DataSet:
    """Statistics of 3,046 windows; six people train, two validate, two test."""
    windows = load_watch_windows()
    people = [f"person {s}" for s in range(1, 11)]
    part_of = dict(zip(people, split_rows(people, [0] * len(people), split), strict=True))
    groups = [f"person {s}" for s in windows.subject]
    index = np.arange(len(groups)) - np.searchsorted(windows.recording, windows.recording)
    return assemble(
        "watch",
        ids=[f"watch/{r}/{i}" for r, i in zip(windows.recording, index, strict=True)],
        labels=windows.activity,
        classes=windows.activities,
        features={name: window_features(windows.values[:, :, part]) for name, part in CHANNELS.items()},
        part=np.array([part_of[group] for group in groups]),
        groups=groups,
        notes=(
            "Source: Burns et al. 2018, arXiv 1802.01489.",
            "Ten people, two of them in the test: intervals over test people say little, repeat splits.",
            "Windows overlap by half within a recording.",
        ),
    )


SOURCE = DataSetSource(
    "Shoulder exercises from a watch's accelerometer and gyroscope: 3,046 windows, 7 classes, people held out",
    "BSD-3-Clause, as the package seglearn states it",
    load,
    fetch=("watch",),
    resplit=True,
)
