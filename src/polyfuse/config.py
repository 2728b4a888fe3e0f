"""The configuration of a run: a tree of frozen models of simple types, read from YAML, overridden by dotted keys.

The reference page is made from the descriptions here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from polyfuse.config_values import config_of, read_values, to_dict
from polyfuse.data.schema import DataConfig, nearest


def _plain(value: Any) -> Any:
    """A number, a text, true, false, null or a list of them: what a YAML value may be and a constructor may take."""
    if isinstance(value, (list, tuple)) and all(_is_scalar(item) for item in value):
        return list(value)
    if not _is_scalar(value):
        raise ValueError(f"should be a number, a text, true, false, null or a list of them, got {value!r}")
    return value


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_no_bool)]
Argument = Annotated[Any, BeforeValidator(_plain)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderConfig(_Frozen):
    """The encoder of one modality."""

    name: str | None = Field(
        default=None, description="an entry of `polyfuse list encoders`; default: the one of its type"
    )
    embed_dim: Int | None = Field(default=None, ge=1, description="width of this embedding; default: model.embed_dim")
    args: dict[str, Argument] = Field(
        default_factory=dict, description="further arguments of that encoder, such as {num_layers: 4}"
    )
    frozen: bool = Field(default=False, description="leave the encoder's weights as they are")


class ModelConfig(_Frozen):
    """Encoders, fusion and head, and what training takes away from the inputs."""

    fusion: str = Field(default="slots", description="an entry of `polyfuse list fusions`")
    fusion_args: dict[str, Argument] = Field(
        default_factory=dict, description="further arguments of the fusion, such as {num_heads: 4}"
    )
    embed_dim: Int = Field(default=64, ge=1, description="width of every modality's embedding")
    hidden: Int | None = Field(default=128, ge=1, description="hidden width of the head; null: a linear head")
    dropout: Float = Field(default=0.1, ge=0, lt=1, description="dropout in the head")
    encoders: dict[str, EncoderConfig] = Field(default_factory=dict, description="options per modality, by its name")
    modality_dropout: Float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="rate at which a present input is hidden in training, given that one is left; "
        "default: 0.5, but 0 for fusion aecf, which drops by its own policy",
    )
    modality_dropout_schedule: Literal["bernoulli", "stratified"] = Field(
        default="bernoulli",
        description="bernoulli: inputs are lost independently; stratified: modality_dropout of the rows keep a number "
        "of inputs that is uniform over 1..M",
    )
    modality_dropout_ramp: Float = Field(
        default=0.0, ge=0, le=1, description="share of the epochs over which modality_dropout rises from 0 to its rate"
    )
    corruption: Float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="share of the inputs replaced by noise or another row's input, without a flag",
    )
    corruption_kinds: tuple[Literal["noise", "swap"], ...] = Field(
        default=("noise", "swap"), min_length=1, description="what corruption does to an input"
    )

    @field_validator("fusion")
    @classmethod
    def _fusion_exists(cls, name: str) -> str:
        from polyfuse.fusion import FUSIONS

        if name not in FUSIONS:
            raise ValueError(
                f"unknown fusion '{name}'{nearest(name, FUSIONS) or ';'} known: {', '.join(sorted(FUSIONS))}"
            )
        return name

    def masking(self) -> dict[str, Any]:
        """The keyword arguments of ``polyfuse.train.stream.Masking``."""
        rate = self.modality_dropout
        if rate is None:
            rate = 0.0 if self.fusion == "aecf" else 0.5
        return {
            "modality_dropout": rate,
            "schedule": self.modality_dropout_schedule,
            "ramp": self.modality_dropout_ramp,
            "corruption": self.corruption,
            "kinds": self.corruption_kinds,
        }


class RecipeConfig(_Frozen):
    """What a step minimises beside the task's loss on the rows as dropout left them.

    The default is what measured best (docs/studies.md): sandwich passes with distillation.
    """

    passes: Literal["one", "full", "sandwich"] = Field(
        default="sandwich",
        description="fusion passes of a step, encoders once: one: the rows as modality dropout left them; full: also "
        "with all they have; sandwich: that, and a random single input",
    )
    distill: Float = Field(
        default=1.0,
        ge=0,
        description="weight of the divergence from the full prediction to the poorer ones, rows weighted by the "
        "teacher's entropy (adds the full pass)",
    )
    consistency: Float = Field(
        default=0.0, ge=0, description="weight of the same divergence, unweighted: CEC as martingale consistency"
    )
    hinge: Float = Field(
        default=0.0, ge=0, description="weight of CML's hinge on confidence that grows when inputs are lost"
    )
    monotone: Float = Field(
        default=0.0,
        ge=0,
        description="weight of the mean loss of a pass with all inputs above that with fewer",
    )
    instance_passes: Int = Field(
        default=0,
        ge=0,
        description="further passes with random subsets, whose spread sets a coefficient per row for consistency and "
        "entropy_bonus (AECF's lambda(x)); 0: no coefficient, otherwise at least 2",
    )
    entropy_bonus: Float = Field(
        default=0.0, ge=0, description="weight of a reward for spread-out fusion weights, for fusions that have weights"
    )
    entropy_until: Float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the steps at which the entropy bonus has faded to nothing; 1: never",
    )
    subset_dro: Float = Field(
        default=0.0,
        ge=0,
        description="step size with which combinations of high regret gain weight (GroupDRO); 0: all weigh alike",
    )
    subset_floor: dict[str, Float] = Field(
        default_factory=dict,
        description="loss that a model of its own reaches per combination, such as {audio+image: 0.4}; the regret is "
        "measured from it; default 0",
    )
    proxy: Float = Field(
        default=0.0,
        ge=0,
        description="weight of the distance of proxy tokens from the inputs they stand for, for fusion proxy (adds the "
        "full pass)",
    )
    unimodal: Float = Field(
        default=0.0, ge=0, description="weight of the loss of every input alone, a linear head on its encoder"
    )
    modality_weights: dict[str, Float] = Field(
        default_factory=dict, description="factor of that loss by modality, such as {audio: 2}; default 1"
    )
    balance: Literal["none", "ogm_ge", "g_blend", "mmpareto"] = Field(
        default="none",
        description="against imbalance: ogm_ge: slow the encoder that leads down; mmpareto: mix joint and unimodal "
        "gradients of each encoder so that they do not conflict; g_blend: weigh joint and unimodal losses by how they "
        "generalised in a trial run",
    )
    ogm_alpha: Float = Field(default=0.3, gt=0, description="strength of ogm_ge")
    weak: str | None = Field(default=None, description="the modality that weak_method helps")
    weak_method: Literal["oversample", "mixup", "generate"] = Field(
        default="oversample",
        description="oversample: repeat rows that have it; mixup: add rows whose input is mixed within a class; "
        "generate: fill it in where it lacks, from a Gaussian per class",
    )
    weak_amount: Float = Field(
        default=1.0, gt=0, description="rows added or filled, as a multiple of the rows that have the weak modality"
    )


PLAIN = RecipeConfig(passes="one", distill=0.0)
"""A step that minimises the task's loss alone, on the rows as dropout left them."""


class TrainConfig(_Frozen):
    """The loop."""

    epochs: Int = Field(default=20, ge=1, description="passes over the training rows")
    steps: Int | None = Field(default=None, ge=1, description="optimiser steps in all; replaces epochs")
    batch_size: Int = Field(default=64, ge=1, description="rows per optimiser step, over all processes and passes")
    accumulate: Int = Field(
        default=1,
        ge=1,
        description="passes a step is cut into, to save memory; the same result, but for recipe.monotone and "
        "recipe.subset_dro, which look at one pass, and for what a fusion or dropout draws",
    )
    lr: Float = Field(default=2e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: Float = Field(
        default=0.01, ge=0, description="decay of weight matrices; norms, biases and tokens have none"
    )
    warmup: Float = Field(default=0.1, ge=0, lt=1, description="share of the steps that warm up, before the cosine")
    clip: Float | None = Field(default=1.0, gt=0, description="largest norm of the gradient; null: no clipping")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true", description="arithmetic of the model"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes a GPU where there is one")
    patience: Int | None = Field(
        default=5, ge=1, description="evaluations without a better validation loss before training stops; null: never"
    )
    evaluations: Int | None = Field(
        default=None,
        ge=1,
        description="evaluations on the validation rows, evenly spread over the run; default: 20, in a short run fewer "
        "(20 steps apart)",
    )
    seed: Int = Field(default=0, ge=0, description="seed of the weights and of every draw")
    threads: Int | None = Field(default=None, ge=1, description="threads of PyTorch; default: as PyTorch finds them")
    class_weights: Literal["balanced"] | dict[str, Float] | None = Field(
        default=None, description="balanced, or a weight per class or label by its name; classification and multilabel"
    )
    entropy_weight: Float = Field(
        default=0.0, ge=0, description="weight of the fusion's own entropy loss, for fusions that have one (aecf)"
    )
    ramp: Float = Field(
        default=0.0, ge=0, le=1, description="share of the steps over which a fusion's own drop policy (aecf) ramps up"
    )
    recipe: RecipeConfig = Field(default_factory=RecipeConfig, description="further objectives")
    checkpoint_seconds: Float = Field(default=20.0, gt=0, description="longest time between two checkpoints")
    checkpoint_steps: Int | None = Field(default=None, ge=1, description="also a checkpoint every so many steps")

    @field_validator("class_weights")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name, weight in value.items():
                if weight <= 0:
                    raise ValueError(f"the weight of class '{name}' must be positive, got {weight}")
        return value


class EvaluateConfig(_Frozen):
    """The sweep over combinations of inputs."""

    batch_size: Int = Field(default=1024, ge=1, description="rows encoded at once")
    all_subsets_up_to: Int = Field(
        default=6, ge=1, le=12, description="modalities up to which every subset is evaluated"
    )
    sampled_subsets: Int = Field(default=64, ge=1, description="subsets evaluated above that")
    drop_rates: tuple[Float, ...] = Field(
        default=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), description="abscissae of the curve over drop rates"
    )
    bins: Int = Field(default=15, ge=2, description="bins of the calibration error")
    bootstrap: Int = Field(default=2000, ge=100, description="resamples of an interval")
    corruptions: bool = Field(default=True, description="also evaluate with one input corrupted at a time")
    oracles: bool = Field(default=False, description="also train one model per subset, to measure the regret")

    @field_validator("drop_rates")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not rates or min(rates) < 0 or max(rates) >= 1:
            raise ValueError("must be one or more rates in [0, 1)")
        return rates


class CalibrateConfig(_Frozen):
    """Temperature, conformal sets and abstention, fitted per combination of inputs on the validation rows."""

    enabled: bool = Field(default=True, description="calibrate at the end of training")
    alpha: Float = Field(default=0.1, gt=0, lt=1, description="conformal sets miss the truth at most this often")
    ordered: bool = Field(default=False, description="force the temperature to grow when an input is lost")
    risk: Float = Field(
        default=0.1, gt=0, lt=1, description="error rate among the answered rows that abstention aims at"
    )


class RunConfig(_Frozen):
    """Everything that decides a run."""

    data: DataConfig = Field(description="the table and what its columns are")
    model: ModelConfig = Field(default_factory=ModelConfig, description="encoders, fusion, head")
    train: TrainConfig = Field(default_factory=TrainConfig, description="the loop")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="the sweep")
    calibrate: CalibrateConfig = Field(default_factory=CalibrateConfig, description="calibration")

    @model_validator(mode="after")
    def _encoders_have_modalities(self) -> "RunConfig":
        for name in self.model.encoders:
            if name not in self.data.modalities:
                known = ", ".join(self.data.modalities)
                hint = nearest(name, self.data.modalities) or ";"
                raise ValueError(f"model.encoders names '{name}', which data.modalities does not{hint} known: {known}")
        return self


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file.

    Args:
        path: The file.
        overrides: ``"train.lr=1e-3"``: a dotted key and a YAML value.

    Raises:
        UserError: If the file is missing, is not YAML, or breaks a rule: the sentence names the key, the rule, the
            value and the nearest known key.
    """
    return make_config(read_values(path), overrides)


def make_config(values: Mapping[str, Any] | RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """A config from plain values (or another config), with overrides.

    Raises:
        UserError: As ``load_config``.

    Example:
        >>> data = {"table": "t.csv", "target": "y", "modalities": {"note": {"type": "text", "column": "note"}}}
        >>> make_config({"data": data}, ["train.lr=1e-3"]).train.lr
        0.001
        >>> make_config({"data": data}, ["train.learning_rat=1e-3"])
        Traceback (most recent call last):
        polyfuse.errors.UserError: unknown key 'train.learning_rat' (value 0.001); known: ...
    """
    tree = to_dict(values) if isinstance(values, RunConfig) else values
    return config_of(RunConfig, tree, overrides, "'data', 'model', 'train', ...")


def describe(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[tuple[str, str, str]]:
    """``(dotted key, default, description)`` of every setting: the reference page.

    Example:
        >>> [key for key, _, _ in describe(CalibrateConfig, "calibrate.")]
        ['calibrate.enabled', 'calibrate.alpha', 'calibrate.ordered', 'calibrate.risk']
    """
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += describe(kind, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        rows.append((f"{prefix}{name}", default, field.description or ""))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."
