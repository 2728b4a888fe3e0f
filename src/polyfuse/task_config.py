"""The configuration of a pre-training run: sources of rows, a model, objectives with weights, the loop.

Read from YAML and overridden by dotted keys, as every config.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from polyfuse.config import Float, Int, _Frozen
from polyfuse.config_values import config_of, read_values
from polyfuse.data.schema import nearest


class SourceConfig(_Frozen):
    """One source of rows."""

    source: str = Field(description="its name: scene_captions, scene_questions, emoji, table, ...")
    args: dict[str, Any] = Field(default_factory=dict, description="its arguments, such as {train: 4000, side: 32}")
    objectives: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="objectives that train on it; default: all whose needs it meets",
    )


class WordsConfig(_Frozen):
    """The tokenizer, learned from the training texts of all sources."""

    vocab_size: Int = Field(default=4000, ge=8, description="most pieces; few texts give fewer")


class TaskModelConfig(_Frozen):
    """The model. Size of pictures, width of regions and number of words come from the data."""

    backbone: str = Field(
        default="multimodal", description="multimodal, uniter, vilbert, visual_bert; clip, mobileclip, mmbert, mmbt"
    )
    backbone_options: dict[str, Any] = Field(
        default_factory=dict, description="its arguments: {num_layers: 4, num_heads: 4, dropout: 0.1, fusion: early}"
    )
    dim: Int = Field(default=128, ge=1, description="width of the states")
    max_length: Int = Field(default=32, ge=3, description="most tokens of a text, marks included")
    inputs: Literal["pixels", "regions"] = Field(default="pixels", description="what of a picture is read")
    patch: Int = Field(default=8, ge=1, description="pixels of a patch")
    stem: Literal["conv", "patches"] = Field(default="conv", description="from pixels to patches")
    embed_dim: Int = Field(default=64, ge=1, description="width of the embeddings for retrieval")


class LoopConfig(_Frozen):
    """The loop."""

    steps: Int = Field(default=2000, ge=1, description="optimiser steps")
    batch_size: Int = Field(default=64, ge=1, description="rows of a step and objective, over all processes and passes")
    lr: Float = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: Float = Field(default=0.05, ge=0, description="decay of weight matrices")
    warmup: Float = Field(default=0.05, ge=0, lt=1, description="share of the steps that warm up, before the cosine")
    clip: Float | None = Field(default=1.0, gt=0, description="largest norm of the gradient; null: no clipping")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true", description="arithmetic of the model"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes a GPU where there is one")
    seed: Int = Field(default=0, ge=0, description="seed of the weights and of every draw")
    evaluations: Int = Field(default=5, ge=1, description="evaluations on held-out rows, evenly spread over the run")
    mixing: Literal["sum", "sample"] = Field(
        default="sum",
        description="sum: every step trains every objective, weighted; sample: one of them, drawn by weight (UNITER)",
    )
    layer_decay: Float = Field(
        default=1.0, gt=0, le=1, description="factor of the learning rate per layer away from the heads"
    )
    patience: Int | None = Field(
        default=None, ge=1, description="evaluations without a lower held-out loss before training stops; null: never"
    )
    checkpoint_seconds: Float = Field(default=20.0, gt=0, description="longest time between two checkpoints")
    checkpoint_steps: Int | None = Field(default=None, ge=1, description="also a checkpoint every so many steps")
    accumulate: Int = Field(default=1, ge=1, description="passes a step is cut into, to save memory; the same result")
    activation_checkpointing: bool = Field(
        default=False,
        description="layers compute again in the backward pass instead of keeping; the same result",
    )
    shard_parameters: bool = Field(
        default=False, description="every process holds a part of the parameters (several processes only)"
    )
    threads: Int | None = Field(default=1, ge=1, description="threads of PyTorch; null: as PyTorch finds them")


class HeldOutConfig(_Frozen):
    """What is looked at on validation rows."""

    rows: Int = Field(default=1000, ge=1, description="most rows per source")
    retrieval: bool = Field(
        default=True, description="also recall of pictures by texts and back, where there is a contrastive objective"
    )


class PretrainConfig(_Frozen):
    """Everything that decides a pre-training run."""

    data: tuple[SourceConfig, ...] = Field(min_length=1, description="sources of rows; one alone needs no list")
    objectives: dict[str, Float] = Field(min_length=1, description="{name: weight}, such as {contrast: 1}")
    words: WordsConfig = Field(default_factory=WordsConfig, description="the tokenizer")
    model: TaskModelConfig = Field(default_factory=TaskModelConfig, description="stem and backbone")
    train: LoopConfig = Field(default_factory=LoopConfig, description="the loop")
    held_out: HeldOutConfig = Field(default_factory=HeldOutConfig, description="validation")

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @field_validator("objectives")
    @classmethod
    def _positive(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if weight <= 0:
                raise ValueError(f"the weight of objective '{name}' must be above 0, got {weight}")
        return weights

    @model_validator(mode="after")
    def _objectives_are_listed(self) -> "PretrainConfig":
        for number, source in enumerate(self.data):
            for name in source.objectives or ():
                if name not in self.objectives:
                    known = ", ".join(self.objectives)
                    hint = nearest(name, self.objectives) or ";"
                    raise ValueError(f"data.{number}.objectives names '{name}', objectives do not{hint} known: {known}")
        return self


def load_pretrain_config(path: Path | str, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read a YAML file.

    Args:
        path: The file.
        overrides: ``"train.lr=1e-3"``, ``"objectives.contrast=2"``, ``"data.args.train=500"``, ``"data.1.args..."``.

    Raises:
        UserError: If the file is missing, is not YAML, or breaks a rule: the sentence names the key, the rule, the
            value and the nearest known key.
    """
    return make_pretrain_config(read_values(path), overrides)


def make_pretrain_config(values: Any, overrides: Sequence[str] = ()) -> PretrainConfig:
    """A config from plain values, with overrides.

    Raises:
        UserError: As ``load_pretrain_config``.

    Example:
        >>> values = {"data": {"source": "emoji"}, "objectives": {"contrast": 1}}
        >>> make_pretrain_config(values, ["train.lr=1e-2"]).train.lr
        0.01
        >>> make_pretrain_config(values, ["train.step=9"])
        Traceback (most recent call last):
        polyfuse.errors.UserError: unknown key 'train.step' (value 9); did you mean 'steps'?
    """
    return config_of(PretrainConfig, values, overrides, "'data', 'objectives', 'model', 'train'")
