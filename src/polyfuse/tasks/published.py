"""Rows of published data sets as ``TaskData``: pictures decoded to one size and held in memory.

What the rows hold decides what comes out: answers of several people become votes, one box a row becomes ``boxes``,
classes become answers (one each) or votes (several), captions of a picture become a row each.

Shapes: N rows, P pictures, S pixels, R regions, F features.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyfuse.data.problems import Broken, Problems
from polyfuse.datasets.published import Row
from polyfuse.datasets.regions import PictureRegions
from polyfuse.tasks.batch import Regions, TaskData

MAX_PIXELS = 50_000_000


def _image_id(row: Row) -> str:
    return row.image_id


def to_task_data(
    rows: Iterable[Row],
    *,
    side: int | None,
    regions: Iterable[PictureRegions] | None = None,
    region_id: Callable[[Row], str] = _image_id,
    most_regions: int = 36,
    name: str | None = None,
    limit: int | None = None,
    max_pixels: int = MAX_PIXELS,
    problems: Problems | None = None,
) -> TaskData:
    """Read rows, open their pictures, and put both in memory: about 3 S S bytes a picture, 4 F a region.

    A picture is squeezed to S x S, not cropped: boxes are shares of its width and height and stay right. A picture
    that is missing or cannot be decoded, or has no regions where they are wanted, leaves its rows without one
    (``image_of`` is -1), and is counted.

    Args:
        rows: What ``read_published`` gives, or any other rows.
        side: Pixels S; None = no pixels, for models of regions.
        regions: What a detector found, from ``read_tsv`` or ``read_npz``; other pictures' are passed over.
        region_id: The picture's name in the regions.
        most_regions: Regions R kept per picture, the first of the file: by confidence where a file has as many for
            every picture, as those of 36 do.
        name: Of the result; default that of the data set.
        limit: Most rows read; None = all.
        max_pixels: Pictures with more are not decoded.
        problems: Where pictures are counted; default a new count. What the reader counted is added to it, and the
            result's notes say what is in it.

    Raises:
        ValueError: If there is no row, some rows with a text have one box and others not, or regions differ in kind.

    Example:
        >>> rows = [Row("9", 0, texts=("A dog.", "Dog runs.")), Row("8", 2, texts=("A cat.",))]
        >>> data = to_task_data(rows, side=8, name="pets")
        >>> data.texts, data.ids.tolist(), data.image_of.tolist()
        (['A dog.', 'Dog runs.', 'A cat.'], [0, 0, 1], [-1, -1, -1])
    """
    counted = problems if problems is not None else Problems()
    read = list(itertools.islice(rows, limit))
    found = getattr(rows, "problems", None)  # whole only now
    if isinstance(found, Problems) and found is not counted:
        counted.update(found)
    name = name or str(getattr(rows, "name", "published"))
    if not read:
        raise ValueError(f"'{name}' must have rows, got none: {'; '.join(counted.lines()) or 'nothing was read'}")
    named = None if regions is None else _named(regions, {region_id(row) for row in read}, most_regions)
    pictures = _Pictures(side, max_pixels, named, region_id, counted)
    image_of = [pictures.number(place, row) for place, row in enumerate(read)]
    pictures.named = named = None  # what is used is in pictures.regions
    spread = [place for place, row in enumerate(read) for _ in row.texts or ("",)]
    groups: dict[str, int] = {}
    ids = [groups.setdefault(row.group or f"\0{row.id}", len(groups)) for row in read]
    kinds = [row.kind for row in read]
    answers, votes = _answers(read)
    boxes = _boxes(name, read)
    return TaskData(
        name=name,
        images=np.stack(pictures.pixels) if pictures.pixels else None,
        image_of=np.array(image_of, dtype=np.int64)[spread],
        texts=[text for row in read for text in row.texts or ("",)],
        part=np.array([row.part for row in read], dtype=np.int8)[spread],
        ids=np.array(ids, dtype=np.int64)[spread],
        answers=None if answers is None else [answers[place] for place in spread],
        votes=None if votes is None else [votes[place] for place in spread],
        boxes=None if boxes is None else boxes[spread],
        references=[read[place].texts for place in spread] if any(len(row.texts) > 1 for row in read) else None,
        regions=_stacked(pictures.regions) if pictures.regions else None,
        kinds=[kinds[place] for place in spread] if any(kinds) else None,
        notes=tuple(counted.lines()),
    )


def _named(regions: Iterable[PictureRegions], wanted: set[str], most: int) -> dict[str, PictureRegions]:
    return {one.image_id: _first(one, most) for one in regions if one.image_id in wanted}


def _first(one: PictureRegions, most: int) -> PictureRegions:
    """Copies, so that nothing holds the rest."""
    if len(one.features) <= most:
        return one
    classes = None if one.classes is None else one.classes[:most].copy()
    return PictureRegions(one.image_id, one.features[:most].copy(), one.boxes[:most].copy(), classes)


@dataclass
class _Pictures:
    """Numbers the pictures in the order of their first use, and holds what each number stands for."""

    side: int | None
    max_pixels: int
    named: dict[str, PictureRegions] | None
    region_id: Callable[[Row], str]
    problems: Problems

    def __post_init__(self) -> None:
        self.pixels: list[np.ndarray] = []
        self.regions: list[PictureRegions] = []
        self.numbers: dict[Path | str, int] = {}
        self.count = 0

    def number(self, place: int, row: Row) -> int:
        """The number of a row's picture, -1 for none."""
        named = self.named is not None and self.region_id(row)
        if row.image is None and (self.side is not None or not named):
            return -1  # the reader has counted it
        key = row.image if isinstance(row.image, Path) else row.image_id or row.id
        if key not in self.numbers:
            self.numbers[key] = self._new(place, row)
        return self.numbers[key]

    def _new(self, place: int, row: Row) -> int:
        regions = None
        if self.named is not None:
            regions = self.named.get(self.region_id(row))
            if regions is None:
                self.problems.add("regions", "none for the picture", place, self.region_id(row))
                return -1
        if self.side is not None:
            pixels = self._decoded(place, row, self.side)
            if pixels is None:
                return -1
            self.pixels.append(pixels)
        elif regions is None:
            return -1
        if regions is not None:
            self.regions.append(regions)
        self.count += 1
        return self.count - 1

    def _decoded(self, place: int, row: Row, side: int) -> np.ndarray | None:
        from PIL import Image

        from polyfuse.data.codecs_image import read_image, strict_pil

        def squeezed(image: Image.Image) -> np.ndarray:
            return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))

        source = row.image if isinstance(row.image, bytes) else str(row.image)
        try:
            with strict_pil():
                return read_image(source, self.max_pixels, then=squeezed, draft=2 * side)
        except Broken as broken:
            self.problems.add("picture", broken.kind, place, f"{row.image_id or row.id}, {broken.detail}")
            return None


def _answers(rows: list[Row]) -> tuple[list[str] | None, list[dict[str, float]] | None]:
    """Right answer and votes of every row; of people first, else of classes."""
    if any(row.answers for row in rows):
        from polyfuse.evaluate.vqa import soft_targets

        votes = [soft_targets(row.answers) if row.answers else {} for row in rows]
        # The majority; a tie goes to the first in the alphabet.
        return [min(v, key=lambda a: (-v[a], a)) if v else "" for v in votes], votes
    if all(len(row.boxes) == 1 for row in rows) or not any(row.labels for row in rows):
        return None, None  # the kind of a phrase's thing is no answer
    if all(len(row.labels) <= 1 and not row.boxes for row in rows):
        return ["".join(row.labels) for row in rows], None
    return None, [dict.fromkeys(row.labels, 1.0) for row in rows]


def _boxes(name: str, rows: list[Row]) -> np.ndarray | None:
    """``(N, 4)`` where every row is a phrase with one box; None where boxes only say what is in the picture."""
    count = {len(row.boxes) for row in rows}
    if not any(row.texts for row in rows) or count == {0}:
        return None
    if count != {1}:
        raise ValueError(f"rows of '{name}' with a text must have one box each, or none, got {sorted(count)}")
    return np.array([row.boxes[0] for row in rows], dtype=np.float32)


def _stacked(found: list[PictureRegions]) -> Regions:
    """Regions of P pictures, padded to the most any has; ``found`` is emptied on the way, so they are held once."""
    widths = {(one.features.shape[1], None if one.classes is None else one.classes.shape[1]) for one in found}
    if len(widths) > 1:
        raise ValueError(f"regions must have one width of features and of classes, got {sorted(map(str, widths))}")
    ((width, classes),) = widths
    shape = (len(found), max(len(one.features) for one in found))
    out = Regions(
        np.zeros((*shape, width), np.float32),
        np.zeros((*shape, 4), np.float32),
        np.zeros(shape, bool),
        None if classes is None else np.zeros((*shape, classes), np.float32),
    )
    while found:
        one, place = found.pop(), len(found)
        kept = len(one.features)
        out.features[place, :kept], out.boxes[place, :kept], out.mask[place, :kept] = one.features, one.boxes, True
        if out.classes is not None and one.classes is not None:
            out.classes[place, :kept] = one.classes
    return out
