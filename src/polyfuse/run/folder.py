"""A run folder: everything that training decided, enough to answer a table again on another machine.

``config.yaml`` (resolved), ``encoder.json`` (tokenizers, scales, vocabularies: fitted on training rows),
``metrics.jsonl``, ``checkpoints/``, ``calibration.json``, ``problems.json``, ``report.html`` with its numbers as JSON
and CSV, ``versions.json``.
Text, JSON and safetensors only: a foreign run folder runs no code when it is loaded.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from polyfuse.calibrate import Calibration
from polyfuse.config import RunConfig, load_config
from polyfuse.data.encode import Prepared, TableEncoder
from polyfuse.errors import UserError
from polyfuse.files import read_json
from polyfuse.models.fusion_model import FusionModel
from polyfuse.run.answers import Answer, answer_batch
from polyfuse.train.build import build_model
from polyfuse.train.checkpoint import BEST, LAST, load_model, read_checkpoint, read_state

CONFIG, ENCODER, CALIBRATION = "config.yaml", "encoder.json", "calibration.json"
Part = TypeVar("Part")
PROBLEMS, VERSIONS, SUMMARY, PRIOR = "problems.json", "versions.json", "summary.json", "prior.json"


@dataclass
class Run:
    """A trained, calibrated model and what it needs to read a table.

    Attributes:
        folder: Where it lives.
        config: The resolved settings.
        encoder: Turns cells into inputs, as fitted on the training rows.
        model: In eval mode, on the CPU.
        calibration: None when calibration was switched off.
        prior: Logits for rows without any input, where there is no calibration; None in runs of earlier versions.
    """

    folder: Path
    config: RunConfig
    encoder: TableEncoder
    model: FusionModel
    calibration: Calibration | None
    prior: tuple[float, ...] | None = None

    def predict(self, rows: Sequence[Mapping[str, Any]], *, folder: Path | str | None = None) -> list[Answer]:
        """Answer rows given as dicts of cells, as a server gets them; a missing key is a missing input.

        Args:
            rows: ``{column: cell}``; unknown columns are ignored.
            folder: Where relative file paths start; None refuses file paths.

        Raises:
            ValueError: If ``rows`` is empty.
            TypeError: If ``rows`` is one dict, or holds what is none.
        """
        from polyfuse.data.table import Chunk

        if not rows:
            raise ValueError("rows must hold at least one row, got none")
        if isinstance(rows, Mapping):
            raise TypeError("rows must be a list of dicts, got one dict: write [row]")
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                raise TypeError(f"rows must be dicts of cells, got {type(row).__name__} as row {number}")
        encoded = self.encoder.encode(Chunk.from_records(rows, folder=folder))
        return answer_batch(self.model, encoded.batch, self.encoder.target, self.calibration, self.prior)


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
    calibration = load_calibration(folder, encoder) if config.calibrate.enabled else None
    prior = None
    if calibration is None and (folder / PRIOR).is_file():
        prior = _rebuilt(folder / PRIOR, lambda value: tuple(float(v) for v in value))
    return Run(folder, config, encoder, model.eval(), calibration, prior)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from training into a folder, until the block or this process ends, however it ends.

    Raises:
        UserError: If another process trains into it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is training into '{folder}'; wait for it or stop it") from None
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def emptied_on_mistake(folder: Path, *also: type[BaseException]) -> Iterator[None]:
    """Empty a new folder again, and remove it, when an exception ends the block before a checkpoint is in it.

    The mended command may then name the same folder. An interrupt leaves a run to resume, unless it is in ``also``.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (Exception, *also)) and not (folder / LAST).exists():
            for child in folder.iterdir():
                shutil.rmtree(child) if child.is_dir() else child.unlink()
            with contextlib.suppress(OSError):  # it may be the folder we stand in
                folder.rmdir()
        raise


def check_unchanged(folder: Path, prepared: Prepared) -> None:
    """Refuse a table that is not as it was when a run began to train on it.

    With other rows the split is another one: rows that the model has learnt would be judged as test rows. With other
    cells the inputs are scaled otherwise than the model has seen them.

    Args:
        folder: Of the run; one without a checkpoint has not begun.
        prepared: Its table as it is now.

    Raises:
        UserError: If the training rows are others than then, or their cells or files fit other encoders.
    """
    if not (folder / LAST).is_file():
        return
    train, config = prepared.train, prepared.encoder.config
    now = {"training rows": len(train), "checksum of row keys": int(train.keys.sum())}
    then = now | dict(read_state(folder / LAST).get("fingerprint", {}))
    reason = ""
    if then["training rows"] != len(train):
        reason = f"{then['training rows']:,} training rows then, {len(train):,} now"
    elif then["checksum of row keys"] != now["checksum of row keys"]:
        reason = "other training rows"
    elif _fitted(load_encoder(folder)) != _fitted(prepared.encoder):
        reason = "its cells or files fit other encoders"
    if reason:
        raise UserError(
            f"table '{config.table}' has changed since '{folder}' was trained on it ({reason}); put it back, or train "
            "a new run"
        )


def _fitted(encoder: TableEncoder) -> str:
    """What was fitted on training rows, as JSON; settings, such as the table's place, may change."""
    told = encoder.to_dict()
    return json.dumps([told["codecs"], told["target"]])


def load_encoder(folder: Path) -> TableEncoder:
    """The table encoder of a run.

    Raises:
        UserError: If it is missing or damaged.
    """
    return _rebuilt(folder / ENCODER, TableEncoder.from_dict)


def load_calibration(folder: Path, encoder: TableEncoder) -> Calibration:
    """The calibration of a run that has one: without its file the run is not finished.

    Raises:
        UserError: If it is missing, damaged or of another run.
    """
    calibration = _rebuilt(folder / CALIBRATION, lambda value: Calibration.from_dict(value, encoder.modalities))
    outputs = 2 if encoder.target.task == "regression" else encoder.target.outputs
    if (calibration.task, len(calibration.prior)) != (encoder.target.task, outputs):
        raise UserError(f"'{folder / CALIBRATION}' belongs to another run; polyfuse train --resume makes it again")
    return calibration


def _rebuilt(path: Path, build: Callable[[Any], Part]) -> Part:
    value = read_json(path)
    try:
        return build(value)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"'{path}' does not hold what polyfuse writes there ({what}); the run is damaged") from None
