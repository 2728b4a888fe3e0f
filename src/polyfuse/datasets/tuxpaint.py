"""Tux Paint's stamps: picture, English caption, French spoken description; ten kinds of things, split by caption.

A stamp is taken if it lies in one of the ten largest folders, is not a letter of an alphabet, and has a caption and a
French recording. Picture: on white, padded to 128 x 128, EfficientNet-Lite0, 128 principal components. Caption:
WordLlama. Speech: the first four seconds at 16 kHz; of 40 log-mel bands, centred on the clip's mean, the mean, the
deviation, and the deviation of the change over two frames.

Shapes: N rows, T frames, F mel bands.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polyfuse.data.corrupt_raw import AUDIO_KINDS, corrupt_audio, corrupt_texts
from polyfuse.data.keyed import key_of
from polyfuse.data.problems import Broken
from polyfuse.datasets.assemble import damaged, split_rows
from polyfuse.datasets.base import DataSet, DataSetSource
from polyfuse.datasets.encoded import (
    LEVELS,
    FeatureTable,
    broken_pictures,
    fetched_network,
    mark_of,
    picture_features,
    reduced,
    remember,
    render,
)
from polyfuse.encoders.audio import LogMel

CLASSES = (
    "animals", "clothes", "food", "household", "people", "plants", "seasonal", "symbols", "town", "vehicles",
)  # fmt: skip
SIDE = 128
WIDTH = 128
RATE = 16_000
SECONDS = 4
WEIGHTS = ("efficientnet_lite0", "wordllama")
NOTES = (
    "748 stamps, partly photographs, partly drawings; 38 drawings without a size of their own cannot be rendered.",
    "The recordings say the noun in French; they tell little about the kind of thing and can do harm in a plain sum.",
    "Captions never cross splits.",
    "Broken before encoding: pictures by blur, fog, rain, JPEG and a grey square; captions by swapped letters.",
    "Recordings broken before encoding: by another stamp's recording, clipping and gaps.",
)


def load(split: int = 0) -> DataSet:
    """748 rows, 10 classes.

    Raises:
        UserError: If the stamps or weights cannot be fetched, or a library is missing.
    """
    from polyfuse.data.fetch import fetch

    mark = mark_of((__file__,), ("tuxpaint", *WEIGHTS), split)
    return remember("tuxpaint", mark, lambda: encode(fetch("tuxpaint"), split)).data_set("tuxpaint", NOTES)


def stamps(folder: Path) -> list[Path]:
    """Pictures of the stamps that are taken, sorted by path."""
    found = []
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).parts
        if path.suffix not in (".png", ".svg") or place[0] not in CLASSES or "alphabets" in place:
            continue
        if path.with_suffix(".txt").is_file() and path.with_name(f"{path.stem}_desc_fr.ogg").is_file():
            found.append(path)
    return found


def encode(folder: Path, split: int) -> FeatureTable:
    """The table of the stamps below ``folder``.

    Raises:
        UserError: If a picture, caption or recording is damaged.
    """
    ids, captions, pictures, waves = [], [], [], []
    for path in stamps(folder):
        picture = render(path, SIDE)
        if picture is None:
            continue  # a drawing without a size
        ids.append(str(path.relative_to(folder)))
        captions.append(_caption(path.with_suffix(".txt")))
        pictures.append(picture)
        waves.append(_recording(path.with_name(f"{path.stem}_desc_fr.ogg")))
    labels = np.array([CLASSES.index(row_id.partition("/")[0]) for row_id in ids])
    part = split_rows(ids, labels.tolist(), split, groups=captions)
    train, test = np.flatnonzero(part == 0), torch.from_numpy(np.flatnonzero(part == 2))
    keys = key_of(ids)

    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    network, words = fetched_network("efficientnet_lite0"), fetched_network("wordllama")
    seen = picture_features(network, pixels, SIDE)
    project = reduced(seen[train], WIDTH)
    clips = pad(waves)
    broken = {
        ("image", title): project(picture_features(network, pictures, SIDE))
        for title, pictures in broken_pictures(pixels[test], keys[test])
    }
    for level in LEVELS:
        typed = corrupt_texts([captions[row] for row in test.tolist()], level, keys[test])
        broken["caption", f"typos {level}"] = words(typed)
        own = {name: part[test] for name, part in clips.items()}
        for kind in AUDIO_KINDS:
            worse = corrupt_audio(own, kind, level, keys[test])
            broken["speech", f"{kind} {level}"] = speech_features(worse)
    features = {"image": project(seen), "caption": words(captions), "speech": speech_features(clips)}
    return FeatureTable(ids, captions, list(CLASSES), labels, part, features, broken)


def _caption(path: Path) -> str:
    """The first line: English."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or not lines[0].strip():
        raise damaged(path, "no English caption in its first line")
    return lines[0].strip()


def _recording(path: Path) -> np.ndarray:
    from polyfuse.data.codecs_audio import decode_audio

    try:
        return decode_audio(str(path), RATE, SECONDS * RATE)
    except Broken as error:
        raise damaged(path, str(error)) from None


def pad(waves: list[np.ndarray]) -> dict[str, Tensor]:
    """``wave (N, samples)`` int16 with zeros behind, ``length (N,)``."""
    length = torch.tensor([len(wave) for wave in waves])
    out = torch.zeros(len(waves), int(length.max()), dtype=torch.int16)
    for row, wave in enumerate(waves):
        out[row, : len(wave)] = torch.from_numpy(wave)
    return {"wave": out, "length": length}


def speech_features(clips: Mapping[str, Tensor]) -> np.ndarray:
    """Log-mel statistics over time, ``(N, 3 * F)`` float32."""
    logmel: Callable[[Tensor], Tensor] = LogMel(RATE)
    rows = []
    for wave, length in zip(clips["wave"], clips["length"].tolist(), strict=True):
        x_TF = logmel(wave[None, :length].float() / 32768.0)[0]
        x_TF = x_TF - x_TF.mean()
        change = x_TF[2:] - x_TF[:-2] if len(x_TF) > 2 else torch.zeros_like(x_TF)
        rows.append(torch.cat([x_TF.mean(0), x_TF.std(0, correction=0), change.std(0, correction=0)]))
    return torch.stack(rows).numpy()


SOURCE = DataSetSource(
    "Stamps by picture, English caption and French recording, split by caption: 748 rows, 10 classes, 3 modalities",
    "GPL-2.0",
    load,
    fetch=("tuxpaint", *WEIGHTS),
    resplit=True,
)
