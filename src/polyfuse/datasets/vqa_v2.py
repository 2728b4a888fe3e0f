"""VQA v2: questions about COCO pictures, ten people's answers each.

Source: Goyal et al. 2017, "Making the V in VQA matter", https://arxiv.org/abs/1612.00837. Both JSON files of a part are
parsed whole (0.4 GB for the training answers). The test questions have no published answers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyfuse.data.problems import Problems
from polyfuse.datasets.annotations import Pictures, clean_text, locate, read_document, records
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Row, needed

PEOPLE = 10
PARTS = (("train2014", TRAIN), ("val2014", VALIDATION), ("test2015", TEST))
QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANSWERS = "v2_mscoco_{}_annotations.json"


def read(folder: Path, problems: Problems) -> Iterator[Row]:
    """A row per question: its ten answers as given, the majority's in ``labels``, the type of answer in ``kind``.

    Raises:
        UserError: If no file of questions is there, or one is no such JSON.
    """
    files = {split: locate(folder, QUESTIONS.format(split)) for split, _ in PARTS}
    if not any(files.values()):
        needed("vqa_v2", folder, *(QUESTIONS.format(split) for split in files))
    for split, part in PARTS:
        path = files[split]
        if path is not None:
            yield from _part(folder, split, part, path, problems)


def _part(folder: Path, split: str, part: int, path: Path, problems: Problems) -> Iterator[Row]:
    pictures = Pictures(folder, (split, f"images/{split}", "images", ""), problems)
    answered = _answers(locate(folder, ANSWERS.format(split)), problems)
    if not answered and part != TEST:
        problems.add("answer", f"no {ANSWERS.format(split)}")
    seen: set[int] = set()
    document = read_document(path, "questions")
    for number, entry in records(document, "questions", problems, question_id=int, image_id=int, question=str):
        key, text = entry["question_id"], clean_text(entry["question"])
        if key in seen or not text:
            problems.add("questions", "comes twice" if key in seen else "empty question", number, str(key))
            continue
        seen.add(key)
        answers, majority, kind = answered.pop(key, ((), "", ""))
        if not answers and part != TEST:
            problems.add("answer", "not answered", number, str(key))
        elif answers and len(answers) != PEOPLE:
            problems.add("answer", f"not {PEOPLE} answers", number, f"{key}: {len(answers)}")
        image = pictures.find(f"COCO_{split}_{entry['image_id']:012d}.jpg", number)
        labels = (majority,) if majority else ()
        yield Row(str(key), part, image, str(entry["image_id"]), (text,), answers, labels, group=str(key), kind=kind)
    if answered:
        problems.add("answer", "unknown question", None, times=len(answered))


def _answers(path: Path | None, problems: Problems) -> dict[int, tuple[tuple[str, ...], str, str]]:
    """By question: the answers, the majority's, the type of answer."""
    if path is None:
        return {}
    found: dict[int, tuple[tuple[str, ...], str, str]] = {}
    document: dict[str, Any] = read_document(path, "annotations")
    for _, entry in records(document, "annotations", problems, question_id=int, answers=list):
        # An empty answer is one of the ten: without it the others would count more than the challenge says.
        given = [a["answer"] for a in entry["answers"] if isinstance(a, dict) and isinstance(a.get("answer"), str)]
        found[entry["question_id"]] = (
            tuple(clean_text(text) for text in given),
            clean_text(entry.get("multiple_choice_answer")),
            clean_text(entry.get("answer_type")),
        )
    return found
