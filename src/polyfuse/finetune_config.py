"""The configuration of a fine-tuning run: a task, its rows, what of a model trains, and how long.

Read from YAML and overridden by dotted keys, as every config.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from polyfuse.config import Float, Int, _Frozen
from polyfuse.config_values import config_of, read_values
from polyfuse.task_config import LoopConfig, TaskModelConfig, WordsConfig

TaskName = Literal[
    "classification", "vqa", "entailment", "captioning", "retrieval", "grounding", "sentiment", "regression"
]


class RowsConfig(_Frozen):
    """The rows."""

    source: str = Field(description="its name: scene_questions, easy_vqa, emoji, table, ...")
    args: dict[str, Any] = Field(default_factory=dict, description="its arguments, such as {train: 4000}")
    labels: Float = Field(default=1.0, gt=0, le=1, description="share of the training pictures whose rows are used")


class LoraConfig(_Frozen):
    """Low-rank adapters: the model rests but for them and the head; they are folded in at the end."""

    rank: Int = Field(default=8, ge=1, description="rank of every adapter")
    alpha: Float = Field(default=16.0, gt=0, description="its scale is alpha / rank")
    dropout: Float = Field(default=0.0, ge=0, lt=1, description="on its input")
    layers: tuple[str, ...] = Field(
        default=("backbone.*",), min_length=1, description="patterns of linear layers that take one"
    )


class AugmentConfig(_Frozen):
    """What training changes at random; 0 or null leaves a part out."""

    crop: Float | None = Field(
        default=None, gt=0, le=1, description="smallest share of the picture that a window shows; boxes stay in it"
    )
    flip: Float = Field(
        default=0.0, ge=0, le=1, description="share of the pictures mirrored, where the text names no side"
    )
    colour: Float = Field(default=0.0, ge=0, lt=1, description="strength in brightness, contrast and saturation")
    erase: Float = Field(default=0.0, ge=0, le=1, description="share of the pictures that lose a square")
    words: Float = Field(default=0.0, ge=0, lt=1, description="share of the words left out")
    noise: Float = Field(default=0.0, ge=0, description="spread of noise on region features")

    def active(self) -> bool:
        """Whether anything changes."""
        return self.crop is not None or any((self.flip, self.colour, self.erase, self.words, self.noise))


class FinetuneLoop(LoopConfig):
    """The loop."""

    steps: Int = Field(default=1500, ge=1, description="optimiser steps")
    lr: Float = Field(default=5e-4, gt=0, description="peak learning rate of AdamW")
    evaluations: Int = Field(default=10, ge=1, description="evaluations on validation rows, evenly spread over the run")
    patience: Int | None = Field(
        default=4, ge=1, description="evaluations without a better figure before training stops; null: never"
    )
    best_by: str | None = Field(
        default=None, description="the validation figure that decides; default: the task's own; loss is always there"
    )
    validation_rows: Int | None = Field(default=1000, ge=1, description="most validation rows looked at; null: all")


class FinetuneConfig(_Frozen):
    """Everything that decides a fine-tuning run."""

    task: TaskName = Field(description="what is learned")
    data: RowsConfig = Field(description="the rows")
    checkpoint: str = Field(default="none", description="run folder to start from; none: a new model")
    freeze: tuple[str, ...] = Field(default=(), description="patterns of parameters that rest: [stem, 'backbone.*']")
    unfreeze: dict[int, tuple[str, ...]] = Field(
        default_factory=dict, description="{step: patterns}: what they match rests until then"
    )
    lora: LoraConfig | None = Field(default=None, description="low-rank adapters; {} takes the defaults")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="random changes in training")
    hide: Literal["image", "text"] | None = Field(default=None, description="a modality that the model never gets")
    drop: dict[Literal["image", "text"], Float] = Field(
        default_factory=dict, description="{modality: share} of the training rows that lose it, for vqa and values"
    )
    cache: bool | None = Field(
        default=None, description="compute what is frozen once; default: where rows and frozen parts stay as they are"
    )
    objective: str | None = Field(default=None, description="of retrieval: contrast (default) or siglip")
    head: dict[str, Any] = Field(default_factory=dict, description="arguments of the head, such as {num_layers: 3}")
    new_head: bool = Field(default=False, description="begin with a new head though the checkpoint has one")
    answers: Int = Field(default=3129, ge=2, description="most answers that can be given")
    beams: Int = Field(default=1, ge=1, description="captions at the end by beam search of so many; 1: greedy")
    words: WordsConfig = Field(default_factory=WordsConfig, description="of a new model: the tokenizer")
    model: TaskModelConfig = Field(default_factory=TaskModelConfig, description="of a new model: stem and backbone")
    train: FinetuneLoop = Field(default_factory=FinetuneLoop, description="the loop")

    @field_validator("lora", mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value

    @model_validator(mode="after")
    def _parts_fit(self) -> "FinetuneConfig":
        if self.lora is not None and (self.freeze or self.unfreeze):
            raise ValueError("lora rests the whole model already: leave out freeze and unfreeze")
        if sum(self.drop.values()) > 1:
            raise ValueError(f"drop must add up to 1 at most, got {self.drop}")
        return self


def load_finetune_config(path: Path | str, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read a YAML file.

    Args:
        path: The file.
        overrides: ``"train.lr=1e-3"``, ``"freeze=[stem]"``, ``"data.args.train=500"``.

    Raises:
        UserError: If the file is missing, is not YAML, or breaks a rule.
    """
    return make_finetune_config(read_values(path), overrides)


def make_finetune_config(values: Any, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """A config from plain values, with overrides.

    Raises:
        UserError: As ``load_finetune_config``.

    Example:
        >>> values = {"task": "vqa", "data": {"source": "easy_vqa"}, "freeze": ["stem"]}
        >>> make_finetune_config(values, ["train.patience=2"]).train.patience
        2
        >>> make_finetune_config(values, ["frezze=[stem]"])
        Traceback (most recent call last):
        polyfuse.errors.UserError: unknown key 'frezze' (value '[stem]'); did you mean 'freeze'?
    """
    return config_of(FinetuneConfig, values, overrides, "'task', 'data', 'train'")
