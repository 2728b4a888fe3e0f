"""The `data:` part of a configuration: the table, which columns are which modality, the target, the split."""

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from polyfuse.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
ModalityType = Literal["image", "text", "audio", "tabular", "series", "vector", "video", "points"]
Task = Literal["auto", "classification", "multilabel", "regression"]

#: Cells that mean "empty" whatever the column; the list pandas reads as missing.
NULL_VALUES = (
    "",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-1.#IND",
    "-1.#QNAN",
    "-NaN",
    "-nan",
    "1.#IND",
    "1.#QNAN",
    "<NA>",
    "N/A",
    "NA",
    "NULL",
    "NaN",
    "None",
    "n/a",
    "nan",
    "null",
)

#: Which options a type understands, beside ``type``, ``column`` and ``columns``.
TYPE_OPTIONS: dict[str, tuple[str, ...]] = {
    "image": ("size", "fit", "pretrained"),
    "text": ("vocab_size", "max_length", "pretrained", "subtitles"),
    "audio": ("rate", "seconds", "offset"),
    "tabular": ("numeric", "categorical", "max_categories"),
    "series": ("length", "times", "grid_rate", "resample", "max_gap", "offset"),
    "vector": (),
    "video": ("frames", "size", "fit", "seconds", "frame_rate", "offset"),
    "points": ("count",),
}


PRETRAINED_TYPES = {"efficientnet_lite0": "image", "minilm": "text", "wordllama": "text"}
"""Which type of modality each frozen network reads; ``hf:<folder>`` reads what its model does."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModalityConfig(_Frozen):
    """One modality: its type, its column or columns, and the options of its type."""

    type: ModalityType = Field(description="image, text, audio, tabular, series, vector, video or points")
    column: str | None = Field(default=None, description="the column that holds it: a path, a text, a JSON list")
    columns: tuple[str, ...] | None = Field(default=None, description="tabular only: its columns")
    pretrained: str | None = Field(
        default=None,
        description="image, text: a frozen network whose features replace the raw input: efficientnet_lite0, minilm, "
        "wordllama or hf:<folder>",
    )
    size: int = Field(default=64, ge=8, le=1024, description="image, video: side in pixels after resizing")
    fit: Literal["crop", "pad"] = Field(
        default="crop", description="image, video: fill the square and crop, or pad with white"
    )
    vocab_size: int = Field(default=4096, ge=16, le=100_000, description="text: tokens learned from the training texts")
    max_length: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="text: tokens kept; default: what 95 % of training texts need, at most 128",
    )
    rate: int = Field(default=16_000, ge=1000, le=192_000, description="audio: samples per second after resampling")
    seconds: float | None = Field(
        default=None,
        gt=0,
        le=600,
        description="audio: length kept; default: what 95 % of training clips need, at most 10; video: the beginning "
        "that is looked at, default: all",
    )
    numeric: tuple[str, ...] = Field(
        default=(), description="tabular: columns to read as numbers, whatever they look like"
    )
    categorical: tuple[str, ...] = Field(default=(), description="tabular: columns to read as categories")
    max_categories: int = Field(
        default=1000, ge=1, description="tabular: categories kept per column, the most frequent"
    )
    length: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="series: steps kept; default: the longest in training, at most 1024",
    )
    times: str | None = Field(
        default=None,
        description="series: the column with the time of every step in seconds (a list, a JSON list or an .npy path)",
    )
    grid_rate: float | None = Field(
        default=None,
        gt=0,
        le=1_000_000,
        description="series: steps per second of the regular grid it is brought to; default: the usual one in training",
    )
    resample: Literal["linear", "nearest", "hold", "mean"] = Field(
        default="linear",
        description="series with times: between steps, the line, the nearest or the last step, or the mean around each "
        "point of the grid",
    )
    max_gap: float | None = Field(
        default=None,
        gt=0,
        description="series with times: a point of the grid farther from every step than so many seconds is missing; "
        "default: twice the usual distance in training",
    )
    offset: float | str | None = Field(
        default=None,
        description="audio, series, video: seconds added to its times, a number or the column that holds it, so that "
        "all streams of a row share one clock that starts at 0; default: the stream starts at 0",
    )
    frames: int = Field(default=8, ge=1, le=256, description="video: frames kept, evenly over the clip")
    frame_rate: float = Field(
        default=25.0, gt=0, le=1000, description="video: frames per second of a folder of pictures without times.txt"
    )
    count: int = Field(default=1024, ge=1, le=1_000_000, description="points: points kept of each set")
    subtitles: bool = Field(default=False, description="text: cells name .srt or .vtt files, whose cues are the text")

    @model_validator(mode="after")
    def _consistent(self) -> "ModalityConfig":
        if (self.column is None) == (self.columns is None):
            raise ValueError("give exactly one of 'column' and 'columns'")
        if self.columns is not None:
            if self.type != "tabular":
                raise ValueError(f"a modality of type {self.type} takes 'column', only tabular takes 'columns'")
            if not self.columns or len(set(self.columns)) != len(self.columns):
                raise ValueError(f"'columns' must be distinct and at least one, got {list(self.columns)}")
        allowed = {"type", "column", "columns", *TYPE_OPTIONS[self.type]}
        for key in sorted(self.model_fields_set - allowed):
            if getattr(self, key) != type(self).model_fields[key].default:
                known = ", ".join(TYPE_OPTIONS[self.type]) or "none"
                raise ValueError(f"'{key}' is not an option of type {self.type}; its options: {known}")
        if self.type == "series" and self.offset is not None and self.times is None and self.grid_rate is None:
            raise ValueError("'offset' of a series without 'times' needs 'grid_rate', its steps per second")
        reads = PRETRAINED_TYPES.get(self.pretrained or "", self.type)
        if reads != self.type:
            fits = [name for name, kind in PRETRAINED_TYPES.items() if kind == self.type]
            raise ValueError(
                f"pretrained '{self.pretrained}' reads {reads}, this modality is {self.type}; for {self.type}: "
                f"{', '.join((*fits, 'hf:<folder>'))}"
            )
        for key in ("numeric", "categorical"):
            unknown = sorted(set(getattr(self, key)) - set(self.all_columns))
            if unknown:
                raise ValueError(f"'{key}' names {unknown}, which 'columns' does not: {list(self.all_columns)}")
        both = sorted(set(self.numeric) & set(self.categorical))
        if both:
            raise ValueError(f"{both} stand in both 'numeric' and 'categorical'; keep them in one")
        return self

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Every column this modality reads."""
        if self.columns is not None:
            return self.columns
        offset = self.offset if isinstance(self.offset, str) else None
        return tuple(name for name in (self.column or "", self.times, offset) if name is not None)


class SplitConfig(_Frozen):
    """How rows are divided into train, validation and test."""

    column: str | None = Field(default=None, description="a column holding train, validation (val, valid, dev) or test")
    ratios: tuple[float, float, float] = Field(
        default=(0.7, 0.15, 0.15), description="shares of train, validation and test"
    )
    group: str | None = Field(default=None, description="rows with the same value here stay in one split")
    stratify: bool = Field(
        default=True, description="classification, multilabel: keep the classes' shares in every split"
    )
    seed: int = Field(default=0, ge=0, description="another seed gives another split; the row order never matters")

    @field_validator("ratios", mode="before")
    @classmethod
    def _three(cls, ratios: Any) -> Any:
        if not isinstance(ratios, list | tuple) or len(ratios) != 3:
            raise ValueError("must be three shares: of train, validation and test, e.g. [0.7, 0.15, 0.15]")
        return ratios

    @field_validator("ratios")
    @classmethod
    def _shares(cls, ratios: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(ratios) < 0 or ratios[0] <= 0 or ratios[1] <= 0 or abs(sum(ratios) - 1) > 1e-6:
            raise ValueError("must be three shares that sum to 1, train and validation above 0, e.g. [0.7, 0.15, 0.15]")
        return ratios


class DataConfig(_Frozen):
    """A table with holes: its file, its modalities, its target."""

    table: str = Field(min_length=1, description="CSV (.csv, .tsv), Parquet (.parquet) or JSON Lines (.jsonl) file")
    target: str | tuple[str, ...] = Field(description="the column to predict; several 0/1 columns for multilabel")
    task: Task = Field(
        default="auto", description="classification, multilabel, regression, or auto: decided by the values"
    )
    separator: str | None = Field(
        default=None, min_length=1, description="multilabel: what joins the labels in one cell"
    )
    id: str | None = Field(default=None, description="a column that names the row; default: the row's number")
    modalities: dict[str, ModalityConfig] = Field(min_length=1, description="the inputs, by name")
    split: SplitConfig = Field(default=SplitConfig(), description="train, validation and test rows")
    max_bad_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest share of broken files a modality may have before training is refused",
    )
    max_pixels: int = Field(default=50_000_000, ge=1, description="images with more pixels count as broken")
    allow_outside: bool = Field(default=False, description="allow file paths that lead out of the table's folder")
    null_values: tuple[str, ...] = Field(default=NULL_VALUES, description="cells that mean empty, in every column")
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="CSV: default: seen from the header"
    )
    max_memory_gb: float = Field(
        default=4.0, gt=0, description="an encoded table above this is kept in files, not in memory"
    )

    @field_validator("modalities")
    @classmethod
    def _names(cls, modalities: dict[str, ModalityConfig]) -> dict[str, ModalityConfig]:
        for name in modalities:
            if not name or "." in name or "+" in name or name != name.strip():
                raise ValueError(f"a modality name must be non-empty, without '.', '+' or outer spaces, got {name!r}")
        return modalities

    @model_validator(mode="after")
    def _target_is_no_input(self) -> "DataConfig":
        for name, modality in self.modalities.items():
            leak = sorted(set(modality.all_columns) & set(self.target_columns))
            if leak:
                raise ValueError(
                    f"the target column {leak[0]!r} is also an input of modality '{name}'; remove it there"
                )
        return self

    @property
    def nulls(self) -> frozenset[str]:
        """Cells that mean empty; the empty string always does."""
        return frozenset(("", *self.null_values))

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The target's columns, one or several."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Every column some modality reads, once, in order."""
        return tuple(dict.fromkeys(c for modality in self.modalities.values() for c in modality.all_columns))

    @property
    def used_columns(self) -> tuple[str, ...]:
        """Every column that training reads, once, in order."""
        others = (*self.target_columns, self.id, self.split.column, self.split.group)
        return tuple(dict.fromkeys((*self.input_columns, *(c for c in others if c is not None))))


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known word nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _peeled(here: Any) -> Any:
    """The model within Optional, Union and Annotated, if there is one."""
    for _ in range(4):
        if get_origin(here) in (typing.Union, types.UnionType):
            here = next((a for a in get_args(here) if isinstance(a, type) and issubclass(a, BaseModel)), None)
        elif get_origin(here) is typing.Annotated:
            here = get_args(here)[0]
    return here


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model whose keys live at ``loc`` (the last part excluded), or None."""
    here: Any = model
    for part in loc:
        here = _peeled(here)
        if isinstance(here, type) and issubclass(here, BaseModel):
            found = here.model_fields.get(str(part))
            here = None if found is None else found.annotation
        elif get_origin(here) in (dict, list, tuple, Mapping):
            here = next(kind for kind in reversed(get_args(here)) if kind is not Ellipsis)
        else:
            return None
    here = _peeled(here)
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def explain_validation(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One sentence per mistake: the key, the rule, the value, and the nearest known key.

    Args:
        error: What pydantic raised.
        model: The model that was being built, to know its keys.
        prefix: Where that model lives in a larger file, such as ``"data."``.
    """
    found: dict[str, list[Any]] = {}
    for item in error.errors():
        loc = tuple(part for part in item["loc"] if part != "[key]" and not _BRANCH.fullmatch(str(part)))
        found.setdefault((prefix + ".".join(map(str, loc))).rstrip("."), []).append((loc, item))
    # Of a value that may be this or that, the branch that was entered says what is wrong.
    keys = [key for key in found if not (key and any(other.startswith(f"{key}.") for other in found))]
    sentences = [_sentence(model, key, *zip(*found[key], strict=True)) for key in keys]
    more = f"; and {len(sentences) - 3} more" if len(sentences) > 3 else ""
    return "; ".join(sentences[:3]) + more


#: What pydantic puts into a place for a branch of a union, which is no key.
_BRANCH = re.compile(r"str|int|float|bool|(literal|tuple|list|dict|function-\w+|constrained-\w+)\[.*")

#: Words of pydantic that only a programmer knows.
_WORDS = (
    (r"^Value error, |^(Input|Tuple|List|String|Dictionary|Keys) ", ""),
    (r", got a number with a fractional part| after validation, not \d+", ""),
    (r"a valid dictionary( or instance of \w+)?", "a mapping (key: value)"),
    (r"a valid tuple", "a list"),
    (r"a valid string", "a text"),
    (r"a valid (number|integer|boolean), unable to .*", r"a \1"),
    (r"a valid ", "a "),
    (r"a boolean", "true or false"),
    (r"a integer", "an integer"),
)


def _sentence(model: type[BaseModel], key: str, locs: Sequence[tuple[Any, ...]], items: Sequence[Any]) -> str:
    """What is wrong with one key; several items are the branches of a union."""
    loc, item = locs[0], items[0]
    if item["type"] == "extra_forbidden":
        owner = _model_at(model, loc[:-1])
        known = list(owner.model_fields) if owner else []
        hint = nearest(str(loc[-1]), known) or (f"; known: {', '.join(known)}" if known else "")
        return f"unknown key '{key}' (value {item['input']!r}){hint}"
    if item["loc"][-1:] == ("[key]",) and item["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        return f"unknown key '{key}'{nearest(str(item['input']), known) or ';'} known: {', '.join(known)}"
    if item["type"] == "missing":
        return f"'{key}' is required; add it"
    rules = []
    for each in items:
        rule = each["msg"]
        for pattern, word in _WORDS:
            rule = re.sub(pattern, word, rule)
        rules.append(rule)
    rule = rules[0] + "".join(f" or {r.removeprefix('should be ')}" for r in dict.fromkeys(rules[1:]))
    value = repr(item["input"]) if item["input"] is not None else "null"
    got = f", got {value if len(value) <= 80 else value[:77] + '...'}"
    if item["type"] == "string_type" and not isinstance(item["input"], None | list | Mapping):
        got += "; put it in quotes"
    if item["type"] != "value_error":
        return f"'{key}' {rule}{got}"
    if ", got " in rule or isinstance(item["input"], Mapping):  # a rule between keys: the value would be all of them
        got = ""
    return f"'{key}': {rule}{got}" if key else rule


def validate(model: type[Model], value: Any, prefix: str = "") -> Model:
    """Build ``model`` from plain values.

    Raises:
        UserError: For any mistake, in the words of ``explain_validation``.

    Example:
        >>> validate(SplitConfig, {"rations": [0.8, 0.1, 0.1]}, "data.split.")
        Traceback (most recent call last):
        polyfuse.errors.UserError: unknown key 'data.split.rations' (value [0.8, 0.1, 0.1]); did you mean 'ratios'?
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(explain_validation(error, model, prefix)) from None
