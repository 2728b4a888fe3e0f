"""`polyfuse pretrain`: a config in, a run folder with a model and the curves of its objectives out.

The folder holds ``config.yaml`` (resolved), ``words.json`` (the tokenizer), ``answers.json`` where answers are learned,
``data.json``, ``metrics.jsonl``, ``checkpoints/``, ``held_out.json``, ``versions.json``, and ``model/``, which
``TaskModel.from_pretrained`` reads. Text, JSON and safetensors only.
"""

import contextlib
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyfuse.config_values import save_config
from polyfuse.errors import UserError
from polyfuse.files import check_new, new_folder, read_json, write_json, write_text
from polyfuse.report.context import versions
from polyfuse.report.plain import plain
from polyfuse.run.columns import aligned
from polyfuse.run.folder import CONFIG, VERSIONS, alone, emptied_on_mistake
from polyfuse.run.pretrain_parts import HeldOut, Parts, build_parts, rows_of
from polyfuse.run.source import Say, quiet
from polyfuse.run.task_folder import check_command
from polyfuse.task_config import PretrainConfig, load_pretrain_config
from polyfuse.tasks.words import WordTokenizer
from polyfuse.train.build import parameter_count
from polyfuse.train.task_devices import task_fabric
from polyfuse.train.task_loop import LoopSettings, TaskFit, fit_tasks

WORDS, ANSWERS, DATA, HELD_OUT, MODEL = "words.json", "answers.json", "data.json", "held_out.json", "model"


@dataclass(frozen=True)
class Pretrained:
    """What a pre-training run came to.

    Attributes:
        folder: The run folder.
        fit: Of the loop.
        weights: Of the tasks.
        untrained: Held-out figures of the model before the first step.
        figures: Held-out figures of the model that was kept.
    """

    folder: Path
    fit: TaskFit
    weights: dict[str, float]
    untrained: dict[str, float]
    figures: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "run": str(self.folder),
            "model": str(self.folder / MODEL),
            "steps": self.fit.steps,
            "best_step": self.fit.best_step,
            "seconds": round(self.fit.seconds, 1),
            "stopped_early": self.fit.stopped_early,
            "untrained": plain(self.untrained),
            "held_out": plain(self.figures),
        }

    def text(self) -> str:
        """One line per objective: its held-out loss before training, at every evaluation, of the model kept."""
        history = self.fit.history
        head = ["objective", "weight", "untrained", *(f"step {record['step']}" for record in history), "kept"]
        rows = [head]
        keys = ["loss", *(f"{name}.loss" for name in self.weights)] if self.figures else []
        for key in keys:
            name = "all" if key == "loss" else key.removesuffix(".loss")
            weight = "" if key == "loss" else f"{self.weights[name]:g}"
            curve = [record["validation"].get(key, math.nan) for record in history]
            values = [self.untrained.get(key, math.nan), *curve, self.figures.get(key, math.nan)]
            rows.append([name, weight, *(f"{value:.4f}" for value in values)])
        lines = aligned(rows)
        others = [key for key in self.figures if not key.endswith("loss")]
        if others:
            shown = [[key, f"{self.untrained.get(key, math.nan):.4f}", f"{self.figures[key]:.4f}"] for key in others]
            lines += ["", *aligned([["figure", "untrained", "kept"], *shown])]
        steps = f"{self.fit.steps} steps in {self.fit.seconds:.0f} s, weights of step {self.fit.best_step}"
        return "\n".join(["held-out loss", *lines, "", f"{steps}; model: {self.folder / MODEL}"])


def pretrain_run(
    source: Path,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    resume: bool = False,
    say: Say = quiet,
    progress: bool = True,
) -> Pretrained | None:
    """Pre-train a model on mixed objectives.

    Args:
        source: A YAML config, or with ``resume`` a run folder.
        overrides: ``key=value`` settings.
        out: The run folder; None = ``runs/NAME-N``, after the config's name.
        resume: Carry on with an interrupted run; it ends with the same parameters as an uninterrupted one.
        say: Told what happens, line by line.
        progress: Show the progress bar on stderr.

    Returns:
        None on every process but the first of a distributed run.

    Raises:
        UserError: For a mistake in what was given.
        KeyboardInterrupt: On Ctrl-C; the run can be resumed.
    """
    if resume:
        config = _config_to_resume(source, overrides, out)
    else:
        check_new(out)
        if source.is_dir():
            raise UserError(f"'{source}' is a folder; give a config, or --resume with a run folder")
        config = load_pretrain_config(source, overrides)
    fabric = task_fabric(config.train)
    first = fabric is None or fabric.global_rank == 0
    if not first:
        say = quiet
    made = str(source if resume else new_folder(source.stem, out)) if first else ""
    folder = Path(made if fabric is None else fabric.broadcast(made))
    try:
        with (
            alone(folder) if first else contextlib.nullcontext(),
            emptied_on_mistake(folder) if first and not resume else contextlib.nullcontext(),
        ):
            if first and not resume:
                save_config(config, folder / CONFIG)
                write_json(folder / VERSIONS, versions())
            if not first:
                fabric.barrier()  # until the first process has written the tokenizer
            parts = _parts(config, folder, first, say)
            if first and fabric is not None:
                fabric.barrier()
            held_out = HeldOut(parts, config)
            untrained = _figures(held_out, parts)
            result = fit_tasks(
                parts.model,
                parts.tasks,
                settings_of(config),
                validate=held_out if parts.held_out else None,
                begun=lambda: say(f"run folder: {folder}"),
                run_dir=folder,
                resume=True,  # a fresh folder has nothing to resume from
                fabric=fabric,
                progress=progress and first,
            )
    except KeyboardInterrupt:
        say(f"interrupted; carry on with: polyfuse pretrain --resume {shlex.quote(str(folder))}")
        raise
    if not first:
        return None
    figures = _figures(held_out, parts)
    parts.model.save_pretrained(folder / MODEL)
    write_json(folder / HELD_OUT, plain({"untrained": untrained, "kept": figures, "step": result.best_step}))
    weights = {name: task.weight for name, task in parts.tasks.items()}
    return Pretrained(folder, result, weights, untrained, figures)


def settings_of(config: PretrainConfig) -> LoopSettings:
    """The loop's settings."""
    return LoopSettings(**config.train.model_dump(exclude={"device"}))


def _parts(config: PretrainConfig, folder: Path, first: bool, say: Say) -> Parts:
    """Load and build; on resuming, rows must be what they were, and the tokenizer is the one that was learned."""
    path, data = folder / WORDS, folder / DATA
    known = path.is_file() and data.is_file()
    parts = build_parts(config, WordTokenizer.read(path) if known else None)
    rows = rows_of(parts.data)
    if known and read_json(data) != json.loads(json.dumps(rows)):
        raise UserError(f"cannot resume '{folder}': its sources have changed since it began; start a new run")
    if first and not known:
        write_text(path, parts.words.to_str())
        write_json(data, rows)
        if parts.answers:
            write_json(folder / ANSWERS, list(parts.answers))
    for source in rows:
        say(f"{source['source']}: {source['training rows']:,} rows, {source['validation rows']:,} for validation")
        for note in source["notes"]:
            say(f"  {note}")
    count = parameter_count(parts.model, trainable=True)
    say(f"{len(parts.words):,} word pieces; {config.model.backbone}: {count:,} parameters")
    say(f"objectives ({config.train.mixing}): {', '.join(f'{n} {t.weight:g}' for n, t in parts.tasks.items())}")
    if not parts.held_out:
        say("no validation rows: the last weights will be kept")
    return parts


def _figures(held_out: HeldOut, parts: Parts) -> dict[str, float]:
    """Of the model as it stands."""
    import torch

    if not parts.held_out:
        return {}
    parts.model.eval()
    with torch.no_grad():
        return held_out(parts.model)


def _config_to_resume(source: Path, overrides: Sequence[str], out: Path | None) -> PretrainConfig:
    if overrides or out is not None:
        raise UserError("--resume carries on with the run's own settings; leave out KEY=VALUE and --out")
    if not (source / CONFIG).is_file():
        raise UserError(f"'{source}' is not a run folder: it has no {CONFIG}; --resume takes a run folder")
    check_command(source, "pretrain")
    return load_pretrain_config(source / CONFIG)
