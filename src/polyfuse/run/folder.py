"""A run folder: everything that training decided, enough to answer a table again on another machine.

``config.yaml`` (resolved), ``encoder.json`` (tokenizers, scales, vocabularies: fitted on training rows),
``metrics.jsonl``, ``checkpoints/``, ``calibration.json``, ``problems.json``, ``report.html`` with its numbers as JSON
and CSV, ``versions.json``.
Text, JSON and safetensors only: a foreign run folder runs no code when it is loaded.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from polyfuse.calibrate import Calibration
from polyfuse.config import RunConfig, load_config
from polyfuse.data.encode import TableEncoder
from polyfuse.errors import UserError
from polyfuse.models.fusion_model import FusionModel
from polyfuse.run.answers import Answer, answer_batch
from polyfuse.train.build import build_model
from polyfuse.train.checkpoint import BEST, load_model, read_checkpoint

CONFIG, ENCODER, CALIBRATION = "config.yaml", "encoder.json", "calibration.json"
PROBLEMS, VERSIONS, SUMMARY = "problems.json", "versions.json", "summary.json"


@dataclass
class Run:
    """A trained, calibrated model and what it needs to read a table.

    Attributes:
        folder: Where it lives.
        config: The resolved settings.
        encoder: Turns cells into inputs, as fitted on the training rows.
        model: In eval mode, on the CPU.
        calibration: None when calibration was switched off.
    """

    folder: Path
    config: RunConfig
    encoder: TableEncoder
    model: FusionModel
    calibration: Calibration | None

    def predict(self, rows: Sequence[Mapping[str, Any]], *, folder: Path | str | None = None) -> list[Answer]:
        """Answer rows given as dicts of cells, as a server gets them; a missing key is a missing input.

        Args:
            rows: ``{column: cell}``; unknown columns are ignored.
            folder: Where relative file paths start; None refuses file paths.

        Raises:
            ValueError: If ``rows`` is empty.
        """
        from polyfuse.data.table import Chunk

        if not rows:
            raise ValueError("rows must hold at least one row, got none")
        encoded = self.encoder.encode(Chunk.from_records(rows, folder=folder))
        return answer_batch(self.model, encoded.batch, self.encoder.target, self.calibration)


def load(folder: Path | str) -> Run:
    """Load a run folder.

    Raises:
        UserError: If the folder is not a finished run, or its parts do not belong together.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"'{folder}' is no run folder (it has no {CONFIG}); give the folder that `polyfuse train` made")
    config = load_config(folder / CONFIG)
    encoder = load_encoder(folder)
    model = build_model(encoder.specs, encoder.target, config.model, seed=config.train.seed)
    load_model(model, read_checkpoint(folder / BEST))
    calibration = None
    if (folder / CALIBRATION).is_file():
        calibration = Calibration.from_dict(read_json(folder / CALIBRATION))
    return Run(folder, config, encoder, model.eval(), calibration)


def load_encoder(folder: Path) -> TableEncoder:
    """The table encoder of a run."""
    return TableEncoder.from_dict(read_json(folder / ENCODER))


def new_folder(name: str, out: Path | None, parent: Path = Path("runs")) -> Path:
    """Make the folder of a new run: ``out``, or the first free ``runs/name-N``. Never an old one.

    Raises:
        UserError: If ``out`` exists and is not empty, or cannot be made.
    """
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"'{out}' exists and is not empty; a run is never overwritten, choose another --out")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder '{out}': {error.strerror}") from None
        return out
    number = 1
    while True:
        folder = parent / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot make the folder '{folder}': {error.strerror}; name another with --out") from None


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{path}' is missing: the run is not finished; polyfuse train --resume finishes it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({error}); the run folder is damaged") from None


def versions() -> dict[str, str]:
    """What computed the run."""
    names = ("polyfuse", "torch", "numpy", "pyarrow", "pillow", "tokenizers", "scikit-learn", "lightning-fabric")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Processor, cores and threads in a line."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
