"""MM-IMDb: poster and plot of films, with their genres.

Source: Arevalo et al. 2017, "Gated multimodal units", https://arxiv.org/abs/1702.01992. Either the raw archive
(``split.json`` and per film ``dataset/<id>.json`` and ``dataset/<id>.jpeg``; opened film by film), or the features
in ``multimodal_imdb.hdf5`` (read in blocks; needs h5py). What the HDF5 file holds besides its arrays is as
``make_dataset.py`` of johnarevalo/gmu-mmimdb writes it: ids, names of the genres, and the split.

A film has several plots. The paper's text, and that of MMBT (``scripts/mmimdb.py``), is the longest one. A row for each
plot counts a film several times (https://github.com/YiLunLee/missing_aware_prompts/issues/27).
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.problems import Problems
from polyfuse.datasets.annotations import Pictures, clean_text, read_document
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Row, needed
from polyfuse.errors import UserError

PARTS = (("train", TRAIN), ("dev", VALIDATION), ("test", TEST))
#: The 23 genres of the paper; other genres of a film are not among its labels.
GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror", "Documentary", "Mystery",
    "Sci-Fi", "Fantasy", "Family", "Biography", "War", "History", "Music", "Animation", "Musical", "Western", "Sport",
    "Short", "Film-Noir",
)  # fmt: skip
#: First rows of dev and test in the HDF5 file, which holds the parts one after the other; also MultiBench's numbers.
STARTS = (15_552, 18_160)
MAX_FILM_BYTES = 1 << 20
_ROWS_AT_ONCE = 512


def read(folder: Path, problems: Problems, *, all_genres: bool = False, all_plots: bool = False) -> Iterator[Row]:
    """A row per film: its longest plot, poster and genres.

    Args:
        folder: Holds ``split.json`` and ``dataset/``.
        problems: Filled on the way.
        all_genres: Keep the genres outside of the paper's 23.
        all_plots: Every plot of a film, in the file's order; as ``TaskData`` that is a row per plot.

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
            if not all_plots and len(texts) > 1:
                texts = (max(texts, key=len),)
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


def read_features(folder: Path, problems: Problems, *, starts: tuple[int, int] | None = None) -> Iterator[Row]:
    """A row per film with ``features``: ``text`` (300,) word2vec of the plot, ``image`` (4096,) VGG of the poster.

    Args:
        folder: Holds ``multimodal_imdb.hdf5``.
        problems: Filled on the way.
        starts: First rows of dev and test; None = as the file says, else ``STARTS``.

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
            names = _names(file["genres"])
            if starts is None:
                starts = _starts(file) or STARTS
            rows = len(file["genres"])
            for start in range(0, rows, _ROWS_AT_ONCE):
                block = slice(start, start + _ROWS_AT_ONCE)
                ids = file["imdb_ids"][block] if "imdb_ids" in file else range(rows)[block]
                yield from _block(start, starts, names, ids, file["features"][block], file["vgg_features"][block],
                                  file["genres"][block], problems)  # fmt: skip
    except OSError as error:
        raise UserError(f"'{path}' cannot be read as HDF5 ({error}); it is damaged, download it again") from None


def _names(genres: Any) -> tuple[str, ...]:
    """Name of every column: a JSON list in an attribute; numbered where there is none."""
    if genres.shape[1:] != (len(GENRES),):
        raise UserError(f"'genres' must have {len(GENRES)} columns, got shape {genres.shape}")
    try:
        names = json.loads(genres.attrs["target_names"])
    except (KeyError, ValueError, TypeError):
        names = None
    if isinstance(names, list) and len({name for name in names if isinstance(name, str)}) == len(GENRES):
        return tuple(names)
    return tuple(f"genre{column:02d}" for column in range(len(GENRES)))


def _starts(file: Any) -> tuple[int, int] | None:
    """First rows of dev and test, of the table of the split that the package fuel writes; None if there is none."""
    try:
        first = {entry["split"]: int(entry["start"]) for entry in file.attrs["split"] if entry["source"] == b"genres"}
        return (first[b"dev"], first[b"test"]) if first[b"train"] == 0 <= first[b"dev"] <= first[b"test"] else None
    except (KeyError, ValueError, TypeError, IndexError):
        return None


def _block(
    start: int,
    starts: tuple[int, int],
    names: tuple[str, ...],
    ids: Any,
    words: np.ndarray,
    pictures: np.ndarray,
    genres: np.ndarray,
    problems: Problems,
) -> Iterator[Row]:
    for place in range(len(genres)):
        number = start + place
        features = {"text": np.asarray(words[place], np.float32), "image": np.asarray(pictures[place], np.float32)}
        for name in [name for name, values in features.items() if not np.isfinite(values).all()]:
            problems.add(name, "not finite", number)
            del features[name]
        labels = tuple(names[column] for column in np.flatnonzero(genres[place]))
        part = TRAIN if number < starts[0] else VALIDATION if number < starts[1] else TEST
        key = ids[place].decode("ascii", "replace") if isinstance(ids[place], bytes) else str(ids[place])
        yield Row(key, part, labels=labels, group=key, features=features)
