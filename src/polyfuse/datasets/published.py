"""Published data sets in the files they are published in, read row by row from the user's own copy.

``read_published("flickr30k", folder)`` gives rows one after the other: no picture is opened, a row holds the path of
its picture. Annotation files in JSON are read whole, tables and text files are streamed. Nothing is downloaded here;
``polyfuse data prepare`` does that, and then the folder need not be named.

What a row lacks, or has broken, is counted and named in ``problems``: a missing picture leaves the row without
picture, a broken line is no row. Whether a picture decodes is seen by whoever opens it.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.cache import cache_dir
from polyfuse.data.prepare import RECORD
from polyfuse.data.problems import Problems
from polyfuse.datasets.annotations import Box, locate
from polyfuse.errors import UserError
from polyfuse.registry import Registry

TRAIN, VALIDATION, TEST = 0, 1, 2
PART_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """One row of a published data set.

    Attributes:
        id: Its name in the published files.
        part: 0 train, 1 validation, 2 test.
        image: Its picture: a path, or what the file holds; None = there is none, or it is missing.
        image_id: Rows of one picture share it; "" = no picture was named.
        texts: Captions of the picture, or the one question, phrase, plot, post or report.
        answers: What people answered to the question, as they wrote it.
        labels: Classes of the row, or of the boxes, one each, where there are boxes.
        boxes: ``(x0, y0, x1, y1)`` as shares of width and height, y down.
        group: Rows of one group say the same of the same thing; default the picture, else the row.
        kind: Kind of question or row, for tables.
        features: Arrays that come with the row, by name.
    """

    id: str
    part: int
    image: Path | bytes | None = None
    image_id: str = ""
    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    group: str = ""
    kind: str = ""
    features: Mapping[str, np.ndarray] = field(default_factory=dict)


Reader = Callable[..., Iterator[Row]]


@dataclass(frozen=True)
class PublishedSource:
    """Where a data set comes from and who reads it.

    Attributes:
        about: One line.
        reader: ``module:function`` below ``polyfuse.datasets``.
        home: Where its owners give it out.
        licence: What they say about use.
        files: What must lie in the folder.
    """

    about: str
    reader: str
    home: str
    licence: str
    files: tuple[str, ...]

    def load(self) -> Reader:
        """The reader: ``(folder, problems, **options) -> iterator of rows``."""
        module, _, name = self.reader.partition(":")
        reader: Reader = getattr(importlib.import_module(f"polyfuse.datasets.{module}"), name)
        return reader


_COCO = ("https://cocodataset.org", "annotations CC-BY-4.0; pictures: Flickr terms of use, each its own licence")
_REFER = ("https://github.com/lichengunc/refer", "not stated by its authors; pictures as COCO")
_REFS = ("{name}/refs({by}).p", "{name}/instances.json", "train2014/")
PUBLISHED = Registry(
    "published data set",
    {
        "coco_captions": PublishedSource(
            "COCO, five captions a picture, a row per picture",
            "coco:read_captions",
            *_COCO,
            ("annotations/captions_{train,val}{2014,2017}.json", "{train,val}{2014,2017}/"),
        ),
        "coco_karpathy": PublishedSource(
            "COCO in the split by Karpathy, a row per picture",
            "karpathy:read_coco",
            *_COCO,
            ("dataset_coco.json", "train2014/", "val2014/"),
        ),
        "coco_instances": PublishedSource(
            "COCO, boxes of 80 kinds of things, a row per picture",
            "coco:read_instances",
            *_COCO,
            ("annotations/instances_{train,val}{2014,2017}.json", "{train,val}{2014,2017}/"),
        ),
        "flickr30k": PublishedSource(
            "Flickr30k, five captions a picture, a row per picture",
            "flickr30k:read",
            "https://shannon.cs.illinois.edu/DenotationGraph/",
            "non-commercial research and education; pictures: Flickr terms of use",
            (
                "dataset_flickr30k.json or flickr_annotations_30k.csv",
                "or results_20130124.token or results.csv (+ {train,val,test}.txt)",
                "flickr30k-images/",
            ),
        ),
        "vqa_v2": PublishedSource(
            "VQA v2, ten answers a question, a row per question",
            "vqa_v2:read",
            "https://visualqa.org/download.html",
            "annotations CC-BY-4.0; pictures as COCO",
            (
                "v2_OpenEnded_mscoco_{train2014,val2014,test2015}_questions.json",
                "v2_mscoco_{train2014,val2014}_annotations.json",
                "{train2014,val2014,test2015}/",
            ),
        ),
        **{
            name: PublishedSource(
                f"{title}, a box for every phrase, a row per phrase",
                f"refcoco:read_{name}",
                *_REFER,
                tuple(file.format(name=folder, by="|".join(by)) for file in _REFS),
            )
            for name, title, folder, by in (
                ("refcoco", "RefCOCO", "refcoco", ("unc", "google")),
                ("refcoco_plus", "RefCOCO+", "refcoco+", ("unc",)),
                ("refcocog", "RefCOCOg", "refcocog", ("umd", "google")),
            )
        },
        "mm_imdb": PublishedSource(
            "MM-IMDb, poster and plot of films, 23 genres, a row per film",
            "mm_imdb:read",
            "http://lisi1.unal.edu.co/mmimdb/ or, by its author, https://archive.org/download/mmimdb",
            "not stated by its authors; plots and posters: IMDb's and their owners'",
            ("split.json", "dataset/<id>.json", "dataset/<id>.jpeg"),
        ),
        "mm_imdb_features": PublishedSource(
            "MM-IMDb as features: word2vec of the plot, VGG of the poster, a row per film",
            "mm_imdb:read_features",
            "http://lisi1.unal.edu.co/mmimdb/ or, by its author, https://archive.org/download/mmimdb",
            "not stated by its authors; plots and posters: IMDb's and their owners'",
            ("multimodal_imdb.hdf5 (needs pip install h5py)",),
        ),
        "hateful_memes": PublishedSource(
            "Hateful Memes, picture and words, two classes, a row per meme",
            "hateful_memes:read",
            "https://hatefulmemeschallenge.com",
            "Meta's own licence: research only, no redistribution",
            ("{train,dev,dev_seen,dev_unseen,test,test_seen,test_unseen}.jsonl", "img/"),
        ),
        "roco": PublishedSource(
            "ROCO and ROCOv2, radiology pictures with captions, a row per picture",
            "roco:read",
            "https://github.com/razorx89/roco-dataset",
            "per picture, as its article in PubMed Central; ROCOv2: CC-BY, CC-BY-NC and CC0 pictures",
            (
                "{train,validation,test}/radiology/captions.txt or {train,valid,test}_captions.csv",
                "{train,validation,test}/radiology/images/ or {train,valid,test}/",
            ),
        ),
        "iu_xray": PublishedSource(
            "Chest X-rays of Indiana University (Open-i) with reports, a row per picture",
            "iu_xray:read",
            "https://openi.nlm.nih.gov; tables: https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university",
            "Open-i: CC-BY-NC-ND-4.0",
            (
                "indiana_reports.csv and indiana_projections.csv, or annotation.json",
                "images/images_normalized/ or images/",
            ),
        ),
    },
)


@dataclass
class PublishedRows:
    """Rows of a published data set, as often as one asks for them.

    Attributes:
        name: Of ``PUBLISHED``.
        folder: Where the files lie.
        options: For the reader.
        problems: What was missing or broken, of the iteration that was started last.
    """

    name: str
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)

    def __iter__(self) -> Iterator[Row]:
        self.problems = Problems()
        source: PublishedSource = PUBLISHED[self.name]
        return source.load()(self.folder, self.problems, **self.options)


def read_published(name: str, folder: Path | str | None = None, **options: Any) -> PublishedRows:
    """The rows of a published data set.

    Args:
        name: One of ``PUBLISHED``.
        folder: Where its files lie, as published; None = where ``polyfuse data prepare`` has put or found them.
        **options: Of the reader, such as ``year=2017``.

    Raises:
        UserError: If the name is unknown or the folder is not there. A file that is missing is named on iterating.
    """
    try:
        source: PublishedSource = PUBLISHED[name]
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    where = prepared_folder(name) if folder is None else Path(folder).expanduser()
    if where is None:
        raise UserError(
            f"data set '{name}' is not prepared; get it from {source.home} and run: "
            f"polyfuse data prepare {name} --source DIR|URL"
        )
    if not where.is_dir():
        raise UserError(f"data set '{name}' must be read from a folder, got '{where}', which is none")
    return PublishedRows(name, where, options)


def prepared_home(name: str) -> Path:
    """Where ``polyfuse data prepare`` keeps the files of a data set and its record."""
    return cache_dir() / "published" / name


def prepared_folder(name: str) -> Path | None:
    """Where the prepared files of a data set lie; None = it is not prepared.

    Raises:
        UserError: If the record is damaged.
    """
    home = prepared_home(name)
    try:
        record = json.loads((home / RECORD).read_text(encoding="utf-8"))
        return home / record["folder"]  # an absolute folder, the user's own, stays as it is
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{home / RECORD}' is damaged ({error}); delete '{home}' and prepare '{name}' again") from None


def needed(name: str, folder: Path, *names: str) -> Path:
    """As ``locate``, for a file that must be there.

    Raises:
        UserError: If none of them is.
    """
    path = locate(folder, *names)
    if path is None:
        source: PublishedSource = PUBLISHED[name]
        raise UserError(
            f"data set '{name}' must have {' or '.join(repr(n) for n in names)} in '{folder}' or one folder below, "
            f"found none; get it from {source.home}"
        )
    return path
