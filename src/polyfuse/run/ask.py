"""`polyfuse ask`, `caption` and `ground`: a fine-tuned run answers about pictures of yours, one or many.

A picture that cannot be read is named, and so is a row of a table that lacks what is needed; the others are answered.

Shapes: N rows, S pixels.
"""

import mimetypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.data.problems import Broken
from polyfuse.errors import UserError
from polyfuse.run.items import Item, Unread, in_order, sorted_out
from polyfuse.run.source import Say, quiet
from polyfuse.run.task_folder import TaskRun, newest_run, read_task_run
from polyfuse.tasks.batch import Collator, TaskBatch, TaskData
from polyfuse.tasks.judge import decoder_of

ASKED = ("vqa", "classification", "entailment", "sentiment", "regression")
_QUESTIONS = ("vqa", "entailment")  # of the others, a picture alone is a whole row
_AT_ONCE = 64


@dataclass(frozen=True)
class Replies:
    """What came out.

    Attributes:
        run: The run that answered.
        task: What it was fine-tuned for.
        rows: One mapping per item that could be answered, in order: ``image``, ``text`` and what was said.
        unreadable: The others, with the reason.
        lines: A row as lines for the terminal.
    """

    run: Path
    task: str
    rows: list[dict[str, Any]]
    unreadable: list[Unread] = field(default_factory=list)
    lines: Callable[[dict[str, Any]], list[str]] = lambda row: [str(row)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "run": str(self.run),
            "task": self.task,
            "rows": self.rows,
            "unreadable": [
                {"image": one.image, "reason": one.reason, **({} if one.row is None else {"row": one.row})}
                for one in self.unreadable
            ],
        }

    def text(self) -> str:
        """A block per row, then what could not be read."""
        found = [line for row in self.rows for line in self.lines(row)]
        if self.unreadable:
            found += ["", f"not readable: {len(self.unreadable)}"]
            for one in self.unreadable:
                place = [] if one.row is None else [f"row {one.row}"]
                found.append("  " + ": ".join([*place, *([one.image] if one.image else []), one.reason]))
        return "\n".join(found)


def ask(items: Sequence[Item], *, run: Path | None = None, top: int = 5, say: Say = quiet) -> Replies:
    """The likeliest answers to questions about pictures, or the number that a run for values says.

    Args:
        items: Pictures and questions.
        run: A run folder; None = the newest of a task that answers.
        top: Answers shown.
        say: Told which run answers.

    A row of a table without a picture is answered from its text alone; one without a question is named, where the task
    needs one.

    Raises:
        UserError: If there is no such run, it reads no pictures, or a question of the command line is empty.
    """
    found = _open(run, ASKED, ("answer", "value"), say)
    items, lacking = sorted_out(
        items, "question" if found.task in _QUESTIONS and found.hide != "text" else None, hide=found.hide
    )
    valued = "value" in found.model.heads
    head, name = ("value", "value") if valued else ("answer", "answer_logits")
    mean, deviation = found.shift

    def read(batch: TaskBatch) -> Tensor:
        out: Tensor = found.model(batch, tasks=(head,)).info[name]
        return out * deviation + mean if valued else out.softmax(dim=1)

    kept, unreadable, said = _run(found, items, lambda batch: list(read(batch)))
    rows: list[dict[str, Any]] = []
    for item, out in zip(kept, said, strict=True):
        row: dict[str, Any] = {**_place(item), "question": item.text}
        if valued:
            rows.append({**row, "value": float(out)})
            continue
        shares, order = out.sort(descending=True, stable=True)
        best = zip(shares[:top].tolist(), order[:top].tolist(), strict=True)
        answers = [{"answer": found.answers[place], "probability": share} for share, place in best]
        rows.append(
            {**row, "answer": answers[0]["answer"], "probability": answers[0]["probability"], "answers": answers}
        )
    return Replies(found.folder, found.task, rows, in_order(lacking, unreadable), _answer_lines)


def _answer_lines(row: dict[str, Any]) -> list[str]:
    image = row["image"] or (f"row {row['row']}, no picture" if "row" in row else "no picture")
    head = f"{image}: {row['question']}" if row["question"] else image
    if "value" in row:
        return [head, f"  {row['value']:.4g}"]
    return [head, *(f"  {100 * one['probability']:5.1f} %  {one['answer']}" for one in row["answers"])]


def caption(
    images: Sequence[str | Item],
    *,
    run: Path | None = None,
    beams: int = 1,
    length: int | None = None,
    say: Say = quiet,
) -> Replies:
    """A sentence for every picture.

    Args:
        images: Their paths, or items without text.
        run: A run folder; None = the newest fine-tuned for captioning.
        beams: Of beam search; 1 = greedy.
        length: Most tokens; None = as many as the model has places.
        say: Told which run answers.

    Raises:
        UserError: If there is no such run, it reads no pictures, or numbers are out of range.
    """
    found = _open(run, ("captioning",), ("caption",), say)
    decoder = decoder_of(found.model)
    if beams < 1 or (length is not None and not 1 <= length <= decoder.max_length):
        raise UserError(f"beams must be 1 or more and length 1 to {decoder.max_length}, got {beams} and {length}")
    options: dict[str, Any] = {"method": "beam", "num_beams": beams} if beams > 1 else {"method": "greedy"}

    def read(batch: TaskBatch) -> list[str]:
        context, mask = found.model.context(batch)
        out = decoder.generate(context, mask, max_length=length, **options)
        return [found.words.decode(ids[:n]) for ids, n in zip(out.ids, out.lengths.tolist(), strict=True)]

    items = [image if isinstance(image, Item) else Item(image) for image in images]
    items, lacking = sorted_out(items, None, picture=True)
    kept, unreadable, said = _run(found, items, read)
    rows = [{**_place(item), "caption": tidy(text)} for item, text in zip(kept, said, strict=True)]
    return Replies(
        found.folder,
        found.task,
        rows,
        in_order(lacking, unreadable),
        lambda row: [f"{row['image']}: {row['caption']}"],
    )


def ground(items: Sequence[Item], *, run: Path | None = None, out: Path | None = None, say: Say = quiet) -> Replies:
    """Where what a phrase means stands in its picture, drawn where ``out`` is given.

    Args:
        items: Pictures and phrases.
        run: A run folder; None = the newest fine-tuned for grounding.
        out: A ``.png`` for one item, else a folder; a file that exists is not written over.
        say: Told which run answers.

    Returns:
        Rows with ``box`` as shares (x0, y0, x1, y1), ``pixels`` of the picture, and ``drawn``, the file.

    Raises:
        UserError: If there is no such run, it reads no pictures, a phrase of the command line is empty, or ``out`` is
            not to be written.
    """
    items, lacking = sorted_out(items, "phrase", picture=True)
    files = _files(items, out)
    found = _open(run, ("grounding",), ("box",), say)
    kept, unreadable, boxes = _run(found, items, lambda batch: list(found.model(batch, tasks=("box",)).info["box"]))
    places = {id(item): file for item, file in zip(items, files, strict=True)}
    rows: list[dict[str, Any]] = []
    for item, box in zip(kept, boxes, strict=True):
        picture = _whole(item.image)
        height, width = picture.shape[:2]
        shares = [float(value) for value in box]
        pixels = [round(value * size) for value, size in zip(shares, (width, height) * 2, strict=True)]
        row: dict[str, Any] = {**_place(item), "phrase": item.text, "box": shares, "pixels": pixels}
        file = places[id(item)]
        if file is not None:
            from polyfuse.run.draw import draw_box

            draw_box(picture, shares, item.text, file)
            row["drawn"] = str(file)
        rows.append(row)
    return Replies(found.folder, found.task, rows, in_order(lacking, unreadable), _box_lines)


def _box_lines(row: dict[str, Any]) -> list[str]:
    x0, y0, x1, y1 = row["pixels"]
    drawn = f", drawn in {row['drawn']}" if "drawn" in row else ""
    return [f"{row['image']}: {row['phrase']}: pixels {x0}, {y0} to {x1}, {y1}{drawn}"]


def _files(items: Sequence[Item], out: Path | None) -> list[Path | None]:
    """Where each item is drawn; nothing is made yet."""
    if out is None:
        return [None] * len(items)
    if out.suffix.lower() != ".png" and not out.is_dir() and mimetypes.guess_type(out.name) != (None, None):
        raise UserError(
            f"--out draws a .png, or several in a folder; got '{out}', which looks like another kind of file"
        )
    if out.suffix.lower() == ".png":
        if len(items) != 1:
            raise UserError(f"--out names one file, but there are {len(items)} pictures; name a folder")
        files = [out]
    else:
        files = [
            out / f"{number if item.row is None else item.row:03d}-{Path(item.image).stem}.png"
            for number, item in enumerate(items, start=1)
        ]
    for file in files:
        if file.exists():
            raise UserError(f"'{file}' exists; nothing is written over, choose another --out")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder '{file.parent}': {error.strerror}") from None
    return list(files)


def tidy(text: str) -> str:
    """Marks stand at the word before them.

    Example:
        >>> tidy("a red star , and a ring .")
        'a red star, and a ring.'
    """
    for mark in (",", ".", "?", "!", ";", ":"):
        text = text.replace(f" {mark}", mark)
    return text


def _open(run: Path | None, tasks: Sequence[str], heads: Sequence[str], say: Say) -> TaskRun:
    """The run that answers, with one of the heads, reading pixels."""
    folder = newest_run(tasks) if run is None else run
    found = read_task_run(folder)
    if run is None:
        say(f"run: {folder}")
    if not any(head in found.model.heads for head in heads):
        have = ", ".join(found.model.heads) or "no head"
        raise UserError(
            f"'{folder}' cannot do this: it has {have}; fine-tune it for {' or '.join(tasks)}, or name another"
        )
    if found.model.config.get("region_dim") is not None:
        raise UserError(f"'{folder}' reads the regions of a detector, not pictures; name a run that reads pixels")
    if "answer" in heads and "answer" in found.model.heads and not found.answers:
        raise UserError(f"'{folder}' has no answers.json; the run is damaged")
    return found


def _place(item: Item) -> dict[str, Any]:
    """Which picture, and of a table which row."""
    return {"image": item.image} if item.row is None else {"row": item.row, "image": item.image}


def _run(
    found: TaskRun, items: Sequence[Item], read: Callable[[TaskBatch], list[Any]]
) -> tuple[list[Item], list[Unread], list[Any]]:
    """Read the pictures, put them through the model in batches; what was kept, what was not, what came out."""
    side = int(found.model.config["side"])
    pixels: dict[str, np.ndarray | str] = {}
    for item in items:
        if item.image and item.image not in pixels:
            pixels[item.image] = _small(item.image, side)
    kept = [item for item in items if not isinstance(pixels.get(item.image), str)]
    unreadable = [
        Unread(item.image, reason, item.row) for item in items if isinstance(reason := pixels.get(item.image), str)
    ]
    said: list[Any] = []
    with torch.no_grad():
        for batch in _batches(found, kept, pixels):
            said += read(batch)
    return kept, unreadable, said


def _batches(found: TaskRun, items: list[Item], pixels: dict[str, Any]) -> Iterator[TaskBatch]:
    side = int(found.model.config["side"])
    for start in range(0, len(items), _AT_ONCE):
        some = items[start : start + _AT_ONCE]
        count = len(some)
        data = TaskData(
            name="asked",
            images=np.stack(
                [pixels[item.image] if item.image else np.zeros((side, side, 3), np.uint8) for item in some]
            ),
            image_of=np.array([place if item.image else -1 for place, item in enumerate(some)]),
            texts=[item.text for item in some],
            part=np.zeros(count, np.int8),
            ids=np.arange(count),
        )
        batch = Collator(data, found.words, max_length=int(found.model.config["max_length"]))(np.arange(count))
        yield batch if found.hide is None else batch.without(found.hide)


def _small(image: str, side: int) -> np.ndarray | str:
    """The picture as the model reads it, or why not."""
    from polyfuse.data.codecs_image import strict_pil
    from polyfuse.tasks.sources_table import squeezed

    try:
        with strict_pil():
            return squeezed(_file(image), side)
    except Broken as broken:
        return f"{broken.kind}{f' ({broken.detail})' if broken.detail else ''}"


def _whole(image: str) -> np.ndarray:
    """The picture in its own size; it was readable before."""
    from polyfuse.data.codecs_image import read_image, strict_pil

    with strict_pil():
        return read_image(_file(image))


def _file(image: str) -> str:
    """A regular file with something in it.

    Raises:
        Broken: If it is none.
    """
    from polyfuse.data.codecs import Reading, find_file

    return find_file(str(Path(image).absolute()), Reading(allow_outside=True))
