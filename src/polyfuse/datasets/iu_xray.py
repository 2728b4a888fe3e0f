"""Chest X-rays of Indiana University (Open-i) with their reports.

Source: Demner-Fushman et al. 2016, "Preparing a collection of radiology examinations for distribution and retrieval".
Tables ``indiana_reports.csv`` (uid, MeSH, Problems, image, indication, comparison, findings, impression; kept in
memory, 4,000 reports) and ``indiana_projections.csv`` (uid, filename, projection; streamed), as Kaggle has them. Their
authors publish no split: reports are divided 70 / 10 / 20 by a hash of their uid, pictures of one report together.

Or ``annotation.json`` of R2Gen (Chen et al. 2020, https://arxiv.org/abs/2010.16056; ``modules/datasets.py`` of
cuhksz-nlp/R2Gen): findings alone, two pictures a report, 2,069 / 296 / 590 reports; the split that papers about writing
reports score on. Its MIMIC-CXR file has the same format.
"""

from collections.abc import Iterator
from pathlib import Path

from polyfuse.data.problems import Problems
from polyfuse.data.split import split_by_ratio
from polyfuse.datasets.annotations import Pictures, clean_text, locate, read_document, records, shown, table_rows
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Row, needed

RATIOS = (0.7, 0.1, 0.2)
PLACES = ("images/images_normalized", "images_normalized", "images", "")
SECTIONS = ("findings", "impression")
ANNOTATION = "annotation.json"
PARTS = (("train", TRAIN), ("val", VALIDATION), ("test", TEST))


def read(folder: Path, problems: Problems, *, split: int = 0) -> Iterator[Row]:
    """A row per picture: findings and impression as one text, MeSH problems as labels, the projection as ``kind``.

    ``annotation.json``, where it is there, is read in place of the tables; it has no labels and no projections.

    Args:
        folder: Holds the tables, or ``annotation.json``, and the pictures.
        problems: Filled on the way.
        split: Another number divides the reports of the tables otherwise.

    Raises:
        UserError: If a table is missing or lacks a column, or the JSON is none.
    """
    annotation = locate(folder, ANNOTATION)
    if annotation is not None:
        yield from _annotated(annotation, Pictures(folder, PLACES, problems), problems)
        return
    reports: dict[str, tuple[str, tuple[str, ...]]] = {}
    path = needed("iu_xray", folder, "indiana_reports.csv", ANNOTATION)
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


def _annotated(path: Path, pictures: Pictures, problems: Problems) -> Iterator[Row]:
    document = read_document(path, *(name for name, _ in PARTS))
    seen: set[str] = set()
    for name, part in PARTS:
        for number, report in records(document, name, problems, id=str, report=str, image_path=list):
            text = clean_text(report["report"])
            if not text:
                problems.add("text", "no report", number, f"{name}: {report['id'][:40]}")
            for file in report["image_path"]:
                if not isinstance(file, str) or file in seen:
                    kind = "comes twice" if isinstance(file, str) else "no file name"
                    problems.add("row", kind, number, f"{name}: {shown(file)}")
                    continue
                seen.add(file)
                image = pictures.find(file, number)
                yield Row(file, part, image, file, (text,) if text else (), group=report["id"])
