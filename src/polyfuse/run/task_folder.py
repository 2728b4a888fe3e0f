"""The folder of a run of task models: what `polyfuse pretrain` and `polyfuse finetune` leave, read again.

``model/`` (``save_pretrained``), ``words.json`` (the tokenizer), ``answers.json``, and of fine-tuning ``task.json``,
``config.yaml``, ``metrics.jsonl``, ``metrics.json``, ``predictions.parquet``, ``checkpoints/``, ``versions.json``.
Text, JSON, Parquet and safetensors only: a foreign folder runs no code when it is read.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyfuse.errors import UserError
from polyfuse.files import read_json
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.words import WordTokenizer
from polyfuse.yaml_text import parse_yaml

CONFIG = "config.yaml"
MODEL, WORDS, ANSWERS, TASK = "model", "words.json", "answers.json", "task.json"
RUNS = Path("runs")


@dataclass(frozen=True)
class TaskRun:
    """A model and what it needs to read a picture and a text.

    Attributes:
        folder: Where it lives.
        model: In evaluation mode.
        words: Its tokenizer.
        answers: By column of the answer head.
        task: What it was fine-tuned for; "" = a pre-training run.
        shift: Mean and deviation that the value head's unit stands for.
        hide: A modality that it never had.
    """

    folder: Path
    model: TaskModel
    words: WordTokenizer
    answers: tuple[str, ...] = ()
    task: str = ""
    shift: tuple[float, float] = (0.0, 1.0)
    hide: str | None = None


def check_command(folder: Path, command: str) -> None:
    """Refuse to resume the run of another command.

    Raises:
        UserError: With the command that made the run.
    """
    file = folder / CONFIG
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"), f"'{file}'")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{file}': {error}") from None
    marks = {"pretrain": "objectives", "finetune": "task", "train": "calibrate"}
    found = next((name for name, key in marks.items() if isinstance(values, dict) and key in values), command)
    if found != command:
        raise UserError(
            f"'{folder}' is a run of polyfuse {found}; use polyfuse {found} --resume {shlex.quote(str(folder))}"
        )


def read_task_run(folder: Path) -> TaskRun:
    """Read a run folder.

    Raises:
        UserError: If it is none, is not finished, or its parts do not belong together.
    """
    if not (folder / MODEL / "config.json").is_file() or not (folder / WORDS).is_file():
        raise UserError(
            f"'{folder}' is no finished run of polyfuse pretrain or finetune: it has no {MODEL}/ with {WORDS} beside it"
        )
    try:
        model = TaskModel.from_pretrained(folder / MODEL)
        words = WordTokenizer.read(folder / WORDS)
    except Exception as error:  # a damaged file, whichever reader found it
        what = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"'{folder}' cannot be read ({what}); the run is damaged") from None
    if len(words) > model.config["vocab_size"]:
        raise UserError(f"'{folder}': {WORDS} has {len(words)} pieces, the model {model.config['vocab_size']}")
    found = read_json(folder / ANSWERS) if (folder / ANSWERS).is_file() else []
    if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
        raise UserError(f"'{folder / ANSWERS}' must hold a list of answers; the run is damaged")
    if found and "answer" in model.heads and len(found) != model.head_config["answer"]["num_answers"]:
        raise UserError(f"'{folder / ANSWERS}' has {len(found)} answers, the model another number; the run is damaged")
    facts = read_json(folder / TASK) if (folder / TASK).is_file() else {}
    try:
        mean, deviation = (float(value) for value in facts.get("shift", (0.0, 1.0)))
        hide = facts.get("hide")
        return TaskRun(folder, model, words, tuple(found), str(facts.get("task", "")), (mean, deviation), hide)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"'{folder / TASK}' does not hold what polyfuse writes there ({error})") from None


def newest_run(tasks: Sequence[str], parent: Path = RUNS) -> Path:
    """The fine-tuning run of one of these tasks that was finished last.

    Raises:
        UserError: If there is none.
    """
    found = []
    for path in parent.glob(f"*/{TASK}"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(facts, dict) and facts.get("task") in tasks and (path.parent / MODEL).is_dir():
                found.append((path.stat().st_mtime, str(path.parent)))
        except (OSError, ValueError):
            continue
    if not found:
        wanted = " or ".join(tasks)
        raise UserError(
            f"no finished run for {wanted} in '{parent}'; make one with polyfuse finetune, or name it: --run"
        )
    return Path(max(found)[1])
