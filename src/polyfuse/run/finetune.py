"""`polyfuse finetune`: a checkpoint and a config in, a run folder with a model, its figures and what it said out."""

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polyfuse.config_values import to_yaml
from polyfuse.data.augment_pairs import ImageAugmentation
from polyfuse.errors import UserError
from polyfuse.files import check_new, new_folder, write_json, write_text
from polyfuse.finetune_config import FinetuneConfig, load_finetune_config
from polyfuse.layers.lora import add_lora, lora_layers, merge_lora
from polyfuse.report.context import versions
from polyfuse.report.plain import plain
from polyfuse.run.columns import aligned
from polyfuse.run.folder import CONFIG, VERSIONS, alone, emptied_on_mistake
from polyfuse.run.source import Say, quiet
from polyfuse.run.task_folder import ANSWERS, MODEL, TASK, WORDS, check_command, read_task_run
from polyfuse.tasks.batch import TRAIN, TaskData
from polyfuse.tasks.judge import Judgement
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.sources import load_source, source_arguments
from polyfuse.tasks.words import WordTokenizer
from polyfuse.train.finetune import FineTune, FineTuned, fine_tune, labelled_rows
from polyfuse.train.freeze import trainable_count
from polyfuse.train.task_augment import TaskAugmentation
from polyfuse.train.task_devices import task_fabric
from polyfuse.train.task_loop import LoopSettings

METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"
SCRATCH = "none"


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning run came to.

    Attributes:
        folder: The run folder.
        config: Its settings.
        rows: Training rows.
        result: Curves, answers and judgements.
    """

    folder: Path
    config: FinetuneConfig
    rows: int
    result: FineTuned

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        fit = self.result.fit
        return plain(
            {
                "run": str(self.folder),
                "task": self.config.task,
                "source": self.config.data.source,
                "checkpoint": self.config.checkpoint,
                "training_rows": self.rows,
                "steps": fit.steps,
                "best_step": fit.best_step,
                "best": fit.best_metric,
                "stopped_early": fit.stopped_early,
                "seconds": round(fit.seconds, 1),
                "parts": {part: found.to_dict() for part, found in self.result.judgements.items()},
            }
        )

    def text(self) -> str:
        """Figures by part, the first part by kind, and the curve of the validation."""
        fit, judged = self.result.fit, self.result.judgements
        ended = f"best after {fit.best_step}{', stopped early' if fit.stopped_early else ''}"
        head = f"{self.config.task} on {self.config.data.source}, {self.rows:,} rows"
        lines = [
            f"{head}: {fit.steps} steps in {fit.seconds:.0f} s, {ended}",
            "",
            *curve_table(fit.history),
            "",
            *figure_table(judged),
        ]
        for part, found in judged.items():
            if len(found.by_kind) > 1:
                lines += ["", f"by kind ({part})", *kind_table(found)]
        return "\n".join([*lines, "", f"run: {self.folder}"])


def finetune_run(
    checkpoint: str,
    config: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    resume: bool = False,
    say: Say = quiet,
    progress: bool = True,
) -> Finetuned | None:
    """Fine-tune, judge, write.

    Args:
        checkpoint: A run folder of `polyfuse pretrain` or `polyfuse finetune`, or "none" for a new model; with
            ``resume`` the interrupted run itself.
        config: YAML; needed unless ``resume``.
        overrides: ``key=value`` settings.
        out: The run folder; None = ``runs/NAME-N``, after the config's name.
        resume: Carry on with an interrupted run; it ends with the same parameters as an uninterrupted one (to
            rounding where frozen parts are cached).
        say: Told what happens, line by line.
        progress: Show the progress bar on stderr.

    Returns:
        None on every process but the first of a distributed run.

    Raises:
        UserError: For a mistake in what was given.
        KeyboardInterrupt: On Ctrl-C; the run can be resumed.
    """
    if resume:
        source = Path(checkpoint)
        if config is not None or overrides or out is not None:
            raise UserError("--resume carries on with the run's own settings; leave out CONFIG, KEY=VALUE and --out")
        if not (source / CONFIG).is_file():
            raise UserError(f"'{source}' is not a run folder: it has no {CONFIG}; --resume takes a run folder")
        check_command(source, "finetune")
        settings = load_finetune_config(source / CONFIG)
    else:
        if config is None:
            raise UserError("a config is missing: polyfuse finetune CHECKPOINT CONFIG, such as none vqa.yaml")
        check_new(out)
        source = config
        settings = load_finetune_config(config, [*overrides, f"checkpoint={checkpoint}"])
    fabric = task_fabric(settings.train)
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
                write_text(folder / CONFIG, to_yaml(settings))
                write_json(folder / VERSIONS, versions())
            if not first:
                fabric.barrier()  # until the first process has written the tokenizer
            known_words = WordTokenizer.read(folder / WORDS) if (folder / WORDS).is_file() else None
            model, words, known, data = build(settings, say, known_words)
            if first:
                words.write(folder / WORDS)
                if fabric is not None:
                    fabric.barrier()
            if settings.checkpoint != SCRATCH and not resume:
                for line in _without_effect(settings, model):
                    say(f"warning: {line}")
            result = fine_tune(
                model,
                data,
                words,
                options_of(settings),
                answers=known,
                augment=_augmentation(settings),
                adapt=None if settings.lora is None else lambda model: _adapt(model, settings, say),
                parts=None if first else (),  # the first process judges
                run_dir=folder,
                resume=True,  # a fresh folder has nothing to resume from
                fabric=fabric,
                progress=progress and first,
                say=say,
            )
    except KeyboardInterrupt:
        say(f"interrupted; carry on with: polyfuse finetune --resume {shlex.quote(str(folder))}")
        raise
    if not first:
        return None
    write(folder, model, settings, result)
    return Finetuned(folder, settings, len(labelled_rows(data, settings.data.labels, settings.train.seed)), result)


def build(
    config: FinetuneConfig, say: Say = quiet, words: WordTokenizer | None = None
) -> tuple[TaskModel, WordTokenizer, tuple[str, ...] | None, TaskData]:
    """Model, words, the answers that its head knows (None = no head), and rows that fit it.

    ``words``: those a new model had before; None = learned from the training texts.

    Raises:
        UserError: If the checkpoint is none, or does not fit the rows.
    """
    start = None if config.checkpoint == SCRATCH else read_task_run(Path(config.checkpoint))
    args = dict(config.data.args)
    side = None if start is None or "region_dim" not in start.model.config else start.model.config["side"]
    if side is not None and "side" in source_arguments(config.data.source):
        args.setdefault("side", side)
    data = load_source(config.data.source, **args)
    counts = ", ".join(f"{len(data.rows(part))} {part}" for part in ("train", "validation", "test", *data.extra_parts))
    say(f"{data.name}: {counts} rows")
    for note in data.notes:
        say(f"  {note}")
    if start is None:
        return *_new(config, data, say, words), None, data
    _check_fit(start.model, data, config.checkpoint)
    say(f"checkpoint {config.checkpoint}: heads {', '.join(start.model.heads) or 'none'}")
    return start.model, start.words, start.answers if "answer" in start.model.heads else None, data


def _without_effect(config: FinetuneConfig, model: TaskModel) -> list[str]:
    """Settings of a new model that the checkpoint's do not follow."""
    own = {**model.config, "inputs": "pixels" if model.config.get("region_dim") is None else "regions"}
    given = config.model.model_dump(include=config.model.model_fields_set)
    options = given.pop("backbone_options", {})
    theirs = own.get("backbone_options") or {}
    pairs = [(f"model.{name}", value, own.get(name)) for name, value in given.items()]
    if given.get("backbone", own["backbone"]) == own["backbone"]:
        pairs += [(f"model.backbone_options.{k}", value, theirs.get(k, "its default")) for k, value in options.items()]
    return [
        f"{key}={value} has no effect: it is of a new model, checkpoint '{config.checkpoint}' has {there}"
        for key, value, there in pairs
        if value != there
    ]


def _new(
    config: FinetuneConfig, data: TaskData, say: Say, words: WordTokenizer | None
) -> tuple[TaskModel, WordTokenizer]:
    if words is None:
        words = WordTokenizer.train([data.texts[row] for row in data.rows(TRAIN)], config.words.vocab_size)
    shape = config.model
    inputs: dict[str, Any] = {"region_dim": None}
    if shape.inputs == "regions":
        if data.regions is None:
            raise UserError(f"model.inputs is regions, '{data.name}' has none; scenes have: data.args.regions=true")
        inputs["region_dim"] = data.regions.features.shape[2]
    elif data.images is None:
        raise UserError(f"model.inputs is pixels, '{data.name}' has none; set model.inputs=regions")
    else:
        inputs["side"] = data.images.shape[1]
    sizes = shape.model_dump(exclude={"inputs"})
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            model = TaskModel(vocab_size=len(words), **sizes, **inputs)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"the model cannot be built: {error.args[0]}") from None
    say(f"new model: {trainable_count(model):,} parameters, {len(words)} word pieces")
    return model, words


def _check_fit(model: TaskModel, data: TaskData, name: str) -> None:
    width = model.config.get("region_dim")
    if width is not None:
        have = None if data.regions is None else data.regions.features.shape[2]
        if have != width:
            raise UserError(f"checkpoint '{name}' reads regions of width {width}, '{data.name}' has {have}")
        return
    side = None if data.images is None else data.images.shape[1]
    if side != model.config["side"]:
        raise UserError(
            f"checkpoint '{name}' reads pictures of {model.config['side']} pixels, '{data.name}' has {side}; set "
            f"data.args.side={model.config['side']}"
        )


def options_of(config: FinetuneConfig) -> FineTune:
    """The plain options of the loop's caller."""
    train = config.train.model_dump(exclude={"best_by", "validation_rows", "device"})
    return FineTune(
        task=config.task,
        loop=LoopSettings(**train),
        labels=config.data.labels,
        freeze=config.freeze,
        unfreeze=config.unfreeze,
        hide=config.hide,
        drop={str(name): share for name, share in config.drop.items()},
        cache=config.cache,
        objective=config.objective,
        head=config.head,
        new_head=config.new_head,
        best_by=config.train.best_by,
        answers=config.answers,
        validation_rows=config.train.validation_rows,
        beams=config.beams,
    )


def _augmentation(config: FinetuneConfig) -> TaskAugmentation | None:
    chosen = config.augment
    if not chosen.active():
        return None
    pictures = chosen.crop is not None or any((chosen.flip, chosen.colour, chosen.erase))
    images = ImageAugmentation(chosen.crop, chosen.flip, (chosen.colour,) * 3, chosen.erase) if pictures else None
    return TaskAugmentation(images, chosen.words, chosen.noise, config.train.seed)


def _adapt(model: TaskModel, config: FinetuneConfig, say: Say) -> None:
    assert config.lora is not None  # noqa: S101 - called only then
    options = config.lora
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        names = add_lora(
            model, options.layers, rank=options.rank, alpha=options.alpha, dropout=options.dropout, train=("heads",)
        )
    say(f"adapters of rank {options.rank} on {len(names)} layers; {trainable_count(model):,} parameters train")


def write(folder: Path, model: TaskModel, config: FinetuneConfig, result: FineTuned) -> None:
    """Model, answers, figures and predictions; ``task.json`` last, it says that the run is finished."""
    if lora_layers(model):
        merge_lora(model)
    model.save_pretrained(folder / MODEL)
    if result.answers:
        write_json(folder / ANSWERS, list(result.answers))
    write_json(folder / METRICS, plain({part: found.to_dict() for part, found in result.judgements.items()}))
    write_predictions(folder / PREDICTIONS, result.judgements)
    facts = {"task": config.task, "source": config.data.source, "hide": config.hide, "shift": list(result.shift)}
    write_json(folder / TASK, facts)


def write_predictions(path: Path, judged: dict[str, Judgement]) -> None:
    """What was said about every row of every part, with the part's name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for part, found in judged.items():
        count = len(next(iter(found.predictions.values()), []))
        tables.append(pa.table({"part": [part] * count, **found.predictions}))
    if tables:
        pq.write_table(pa.concat_tables(tables, promote_options="permissive"), path)


def figure_table(judged: dict[str, Judgement]) -> list[str]:
    """A line per figure, a column per part."""
    names = list(dict.fromkeys(name for found in judged.values() for name in found.figures))
    head = ["", *judged]
    body = [[_title(n), *(number(found.figures.get(n)) for found in judged.values())] for n in names]
    return aligned([head, *body])


def kind_table(found: Judgement) -> list[str]:
    """A line per kind of row."""
    columns = [name for name in found.by_kind[0] if name != "kind"]
    body = [[str(line["kind"]), *(number(line[name]) for name in columns)] for line in found.by_kind]
    return aligned([["kind", *map(_title, columns)], *body])


def curve_table(history: Sequence[dict[str, Any]]) -> list[str]:
    """The steps at which the validation was judged: where training falls on and validation rises, it over-fits."""
    names = list(dict.fromkeys(name for record in history for name in record["validation"]))
    head = ["step", "training loss", *(f"validation {_title(name)}" for name in names)]
    body = [
        [str(r["step"]), number(r["train_loss"]), *(number(r["validation"].get(name)) for name in names)]
        for r in history
    ]
    return aligned([head, *body])


def _title(name: str) -> str:
    return name.replace("_", " ")


def number(value: Any) -> str:
    """A figure, short."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) >= 100 else f"{value:.3f}"
