"""Chest X-rays of Indiana University (Open-i) with their reports.

Source: Demner-Fushman et al. 2016, "Preparing a collection of radiology examinations for distribution and retrieval".
Tables ``indiana_reports.csv`` (uid, MeSH, Problems, image, indication, comparison, findings, impression; kept in
memory, 4,000 reports) and ``indiana_projections.csv`` (uid, filename, projection; streamed).

There is no published split: reports are divided 70 / 10 / 20 by a hash of their uid, pictures of one report together.
"""

from collections.abc import Iterator
from pathlib import Path

from polyfuse.data.problems import Problems
from polyfuse.data.split import split_by_ratio
from polyfuse.datasets.published import Pictures, Row, needed, table_rows

RATIOS = (0.7, 0.1, 0.2)
PLACES = ("images/images_normalized", "images_normalized", "images", "")
SECTIONS = ("findings", "impression")


def read(folder: Path, problems: Problems, *, split: int = 0) -> Iterator[Row]:
    """A row per picture: findings and impression as one text, MeSH problems as labels, the projection as ``kind``.

    Args:
        folder: Holds the tables and the pictures.
        problems: Filled on the way.
        split: Another number divides the reports otherwise.

    Raises:
        UserError: If a table is missing or lacks a column.
    """
    reports: dict[str, tuple[str, tuple[str, ...]]] = {}
    path = needed("iu_xray", folder, "indiana_reports.csv")
    for number, cells in table_rows(path, ("uid", "Problems", *SECTIONS), problems):
        if not cells["uid"] or cells["uid"] in reports:
            problems.add("reports", "comes twice" if cells["uid"] else "no uid", number, cells["uid"])
            continue
        text = " ".join(cells[section] for section in SECTIONS if cells[section])
        if not text:
            problems.add("text", "no findings and no impression", number, f"report {cells['uid']}")
        labels = tuple(label.strip() for label in cells["Problems"].split(";") if label.strip())
        reports[cells["uid"]] = text, labels
    parts = dict(zip(reports, split_by_ratio(list(reports), ratios=RATIOS, seed=split).tolist(), strict=True))
    pictures = Pictures(folder, PLACES, problems)
    seen: set[str] = set()
    path = needed("iu_xray", folder, "indiana_projections.csv")
    for number, cells in table_rows(path, ("uid", "filename", "projection"), problems):
        uid, file = cells["uid"], cells["filename"]
        if uid not in reports or not file or file in seen:
            kind = "comes twice" if file in seen else "unknown report" if file else "no filename"
            problems.add("projections", kind, number, f"report {uid} {file}")
            continue
        seen.add(file)
        text, labels = reports[uid]
        texts = (text,) if text else ()
        image = pictures.find(file, number)
        yield Row(file, parts[uid], image, file, texts, labels=labels, group=uid, kind=cells["projection"])
