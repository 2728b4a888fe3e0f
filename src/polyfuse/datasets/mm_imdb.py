"""MM-IMDb: poster and plot of films, with their genres.

Source: Arevalo et al. 2017, "Gated multimodal units", https://arxiv.org/abs/1702.01992. Either the raw archive
(``split.json`` and per film ``dataset/<id>.json`` and ``dataset/<id>.jpeg``; opened film by film), or the features
in ``multimodal_imdb.hdf5`` (read in blocks; needs h5py).
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.problems import Problems
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Pictures, Row, clean_text, needed, read_document
from polyfuse.errors import UserError

PARTS = (("train", TRAIN), ("dev", VALIDATION), ("test", TEST))
#: The 23 genres of the paper; other genres of a film are not among its labels.
GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery",
    "Sci-Fi", "Fantasy", "Family", "Biography", "War", "History", "Music", "Animation", "Musical", "Western", "Sport",
    "Short", "Film-Noir",
)  # fmt: skip
#: First rows of dev and test in the hdf5 file, which holds the parts one after the other.
STARTS = (15_552, 18_160)
MAX_FILM_BYTES = 1 << 20
_ROWS_AT_ONCE = 512


def read(folder: Path, problems: Problems, *, all_genres: bool = False) -> Iterator[Row]:
    """A row per film: its plots (the first is the long one), poster and genres.

    Args:
        folder: Holds ``split.json`` and ``dataset/``.
        problems: Filled on the way.
        all_genres: Keep the genres outside of the paper's 23.

    Raises:
        UserError: If ``split.json`` is missing or no such JSON.
    """
    path = needed("mm_imdb", folder, "split.json")
    split = read_document(path, *(name for name, _ in PARTS))
    pictures = Pictures(path.parent, ("dataset", ""), problems)
    seen: set[str] = set()
    number = -1
    for name, part in PARTS:
        for key in split[name]:
            number += 1
            if not isinstance(key, str) or not key.isalnum() or key in seen:
                problems.add("row", "comes twice" if key in seen else "no film", number, f"{name}: {key!r:.40}")
                continue
            seen.add(key)
            film = _film(path.parent / "dataset" / f"{key}.json", number, problems)
            if film is None:
                continue
            plots = film.get("plot")
            texts = tuple(
                text for plot in (plots if isinstance(plots, list) else [plots]) if (text := clean_text(plot))
            )
            genres = film.get("genres")
            labels = tuple(clean_text(genre) for genre in (genres if isinstance(genres, list) else ()))
            labels = tuple(label for label in labels if label in GENRES or (all_genres and label))
            if not texts:
                problems.add("text", "no plot", number, key)
            if not labels:
                problems.add("label", "none of the genres", number, key)
            yield Row(key, part, pictures.find(f"{key}.jpeg", number), key, texts, labels=labels, group=key)


def _film(path: Path, number: int, problems: Problems) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MAX_FILM_BYTES:
            problems.add("film", "too large", number, path.name)
            return None
        film = json.loads(path.read_bytes())
    except FileNotFoundError:
        problems.add("film", "missing file", number, path.name)
    except (OSError, ValueError, RecursionError) as error:
        problems.add("film", "unreadable", number, f"{path.name}: {str(error)[:80]}")
    else:
        if isinstance(film, dict):
            return film
        problems.add("film", "not an object", number, path.name)
    return None


def read_features(folder: Path, problems: Problems, *, starts: tuple[int, int] = STARTS) -> Iterator[Row]:
    """A row per film with ``features``: ``text`` (300,) word2vec of the plot, ``image`` (4096,) VGG of the poster.

    Args:
        folder: Holds ``multimodal_imdb.hdf5``.
        problems: Filled on the way.
        starts: First rows of dev and test.

    Raises:
        UserError: If the file or h5py is missing, or the file lacks an array.
    """
    path = needed("mm_imdb_features", folder, "multimodal_imdb.hdf5")
    try:
        h5py = importlib.import_module("h5py")
    except ModuleNotFoundError:
        raise UserError(f"'{path}' is HDF5; reading it needs the package 'h5py': pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            lacking = [name for name in ("features", "vgg_features", "genres") if name not in file]
            if lacking:
                raise UserError(f"'{path}' must hold '{lacking[0]}', its arrays: {', '.join(file)}")
            rows = len(file["genres"])
            for start in range(0, rows, _ROWS_AT_ONCE):
                block = slice(start, start + _ROWS_AT_ONCE)
                yield from _block(start, starts, file["features"][block], file["vgg_features"][block],
                                  file["genres"][block], problems)  # fmt: skip
    except OSError as error:
        raise UserError(f"'{path}' cannot be read as HDF5 ({error}); it is damaged, download it again") from None


def _block(
    start: int,
    starts: tuple[int, int],
    words: np.ndarray,
    pictures: np.ndarray,
    genres: np.ndarray,
    problems: Problems,
) -> Iterator[Row]:
    if genres.shape[1:] != (len(GENRES),):
        raise UserError(f"'genres' must have {len(GENRES)} columns, got shape {genres.shape}")
    for place in range(len(genres)):
        number = start + place
        features = {"text": np.asarray(words[place], np.float32), "image": np.asarray(pictures[place], np.float32)}
        for name in [name for name, values in features.items() if not np.isfinite(values).all()]:
            problems.add(name, "not finite", number)
            del features[name]
        # The columns are in the order of the file; which genre each is, it does not say.
        labels = tuple(f"genre{column:02d}" for column in np.flatnonzero(genres[place]))
        part = TRAIN if number < starts[0] else VALIDATION if number < starts[1] else TEST
        yield Row(str(number), part, labels=labels, group=str(number), features=features)
