"""Corruption: the input is there, the mask says so, and its content is wrong.

``corrupt`` is the training augmentation (unflagged, a share of the present inputs); ``corrupt_modality`` is what tests
do to one modality at a time. Every draw is keyed by the row (``data/keyed.py``); only "swap", "permuted" and "stuck"
look at other rows. Absent inputs are never touched.

Shapes: B batch, M modalities; the forms of an input are those of ``input_form``. Masks: True = present.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyfuse.data.batch import Batch
from polyfuse.data.keyed import normal, uniform

Value = Tensor | dict[str, Tensor]
Parts = dict[str, Tensor]  # a value as a dict: a bare tensor is its part ""

TRAIN_KINDS = ("noise", "swap")
TEST_CORRUPTIONS: tuple[tuple[str, float | None], ...] = (
    ("noise", 1.0),
    ("noise", 3.0),
    ("permuted", None),
    ("stuck", None),
    ("scaled", 0.0),
    ("scaled", 4.0),
)
_ROWS_AT_ONCE = 512  # noise for a whole table of images would not fit in memory
_FIRST_WORD = 2  # 0 is padding, 1 the unknown token


@dataclass(frozen=True)
class InputScale:
    """What "one standard deviation" means for one modality, measured on the training rows.

    Attributes:
        std: Scalar for pixels and wave samples, one entry per column, channel or feature otherwise.
        cardinalities: Number of ids: of the vocabulary for text, of each categorical column for a table.
    """

    std: Tensor
    cardinalities: tuple[int, ...] = ()


_FORMS = {
    "ids": "text", "wave": "audio", "numeric": "tabular", "values": "series", "frames": "video", "points": "points",
}  # fmt: skip
_MAIN = {"audio": "wave", "tabular": "numeric", "series": "values", "video": "frames", "points": "points"}


def input_form(value: Value) -> str:
    """Which of the eight input forms a value has: image, text, audio, tabular, series, vector, video or points.

    Raises:
        ValueError: If it has none of them.

    Example:
        >>> input_form({"ids": torch.zeros(2, 3), "mask": torch.zeros(2, 3)})
        'text'
    """
    if isinstance(value, Tensor):
        if value.dtype == torch.uint8 and value.ndim == 4:
            return "image"
        if value.is_floating_point() and value.ndim == 2:
            return "vector"
        raise ValueError(
            f"an input tensor must be a uint8 (B, 3, S, S) image or a float (B, D) vector, "
            f"got {value.dtype} {tuple(value.shape)}"
        )
    for key, form in _FORMS.items():
        if key in value:
            return form
    raise ValueError(f"an input dict must hold {' or '.join(map(repr, _FORMS))}, got {sorted(value)}")


def fit_scales(train: Batch) -> dict[str, InputScale]:
    """Measure every modality's scale on the rows that have it: the unit of the noise, and the ids that exist."""
    return {
        name: _fit(_take(_parts(train.inputs[name]), train.present[:, m].nonzero()[:, 0]))
        for m, name in enumerate(train.modalities)
    }


def corrupt(
    batch: Batch,
    rate: float,
    seed: int,
    epoch: int,
    kinds: Sequence[str] = TRAIN_KINDS,
    *,
    scales: Mapping[str, InputScale] | None = None,
    max_sigma: float = 3.0,
) -> Batch:
    """Corrupt a share of the present inputs without saying so, as training augmentation.

    Every present (row, modality) is hit with probability ``rate``; a hit takes one of ``kinds`` with equal chance:
    "noise" adds Gaussian noise of sigma ~ U(0, ``max_sigma``) training standard deviations (an id becomes a random one
    with probability sigma^2 / (1 + sigma^2), the noise's share of the power); "swap" puts another row's input in its
    place, drawn among the rows of the batch that have that modality.

    Args:
        batch: Rows to corrupt; not changed.
        rate: Probability per present input.
        seed: The run's seed.
        epoch: Another epoch hits other rows.
        kinds: Some of ``TRAIN_KINDS``. With "noise" alone no row looks at another.
        scales: From ``fit_scales`` on the training rows; None = measured on this batch.
        max_sigma: Upper end of sigma.

    Returns:
        The same rows, ``present`` unchanged.

    Raises:
        ValueError: If ``rate`` is outside [0, 1] or a kind is unknown.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate must lie in [0, 1], got {rate}")
    unknown = sorted(set(kinds) - set(TRAIN_KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds must name some of {TRAIN_KINDS}, got {unknown or tuple(kinds)}")
    if rate == 0.0:
        return batch
    scales = fit_scales(batch) if scales is None else scales
    inputs = dict(batch.inputs)
    for m, name in enumerate(batch.modalities):
        u = uniform(seed, f"corrupt/{name}", epoch, batch.keys, 4)
        hit = batch.present[:, m] & (u[:, 0] < rate)
        kind = (u[:, 1] * len(kinds)).long()
        clean = _parts(batch.inputs[name])
        broken = clean
        for number, chosen in enumerate(kinds):
            index = (hit & (kind == number)).nonzero()[:, 0]
            if chosen == "swap":
                rows = _take(clean, _donors(batch.present[:, m], index, u[index, 3]))
            else:
                draw = _Draws(seed, f"corrupt/{name}/noise", epoch, batch.keys[index])
                rows = _noise(_take(clean, index), u[index, 2] * max_sigma, scales[name], draw)
            broken = _put(broken, index, rows)
        inputs[name] = _value(broken)
    return replace(batch, inputs=inputs)


def corrupt_modality(
    batch: Batch,
    modality: str,
    corruption: str,
    value: float | None = None,
    *,
    seed: int = 0,
    flagged: bool = False,
    scales: Mapping[str, InputScale] | None = None,
) -> Batch:
    """Corrupt one modality of every row that has it.

    - "noise": Gaussian noise of ``value`` standard deviations; ids as in ``corrupt``.
    - "permuted": every row gets the input of another one, along one random cycle.
    - "stuck": every row gets the input of one and the same row.
    - "scaled": pixels, samples, numbers times ``value``, clipped to the form's range; at 0 categorical ids become
      unknown; a text is said ``value`` times, as far as it fits (0 leaves it empty).

    Args:
        batch: A whole table: "permuted" and "stuck" pick among its rows.
        modality: Which one.
        corruption: One of the four names.
        value: Sigma of "noise", factor of "scaled".
        seed: Seed of the keyed draws.
        flagged: Also mark the modality absent: the model must then answer as if it were not there.
        scales: From ``fit_scales`` on the training rows; None = measured on this batch.

    Raises:
        ValueError: If a name is unknown, or "noise" or "scaled" lacks its value.
    """
    if modality not in batch.modalities:
        raise ValueError(f"modality must be one of {batch.modalities}, got '{modality}'")
    m = batch.modalities.index(modality)
    index = batch.present[:, m].nonzero()[:, 0]
    clean = _parts(batch.inputs[modality])
    rows = _take(clean, index)
    draw = _Draws(seed, f"corrupt_modality/{modality}/{corruption}", 0, batch.keys[index])
    if corruption in ("noise", "scaled") and (value is None or value < 0):
        raise ValueError(f"corruption '{corruption}' needs a value of at least 0, got {value}")
    if corruption == "noise":
        scale = (scales or fit_scales(batch))[modality]
        sigma = torch.full((len(index),), float(value or 0.0), device=index.device)
        rows = _noise(rows, sigma, scale, draw)
    elif corruption == "scaled":
        rows = _scaled(rows, float(value or 0.0))
    elif corruption in ("permuted", "stuck"):
        order = draw.uniform(1)[:, 0].argsort(stable=True)
        source = torch.empty_like(order)
        source[order] = order.roll(1) if corruption == "permuted" else order[:1].expand_as(order)
        rows = _take(rows, source)
    else:
        raise ValueError(f"corruption must be noise, permuted, stuck or scaled, got '{corruption}'")
    out = replace(batch, inputs={**batch.inputs, modality: _value(_put(clean, index, rows))})
    if not flagged:
        return out
    present = batch.present.clone()
    present[:, m] = False
    return out.with_present(present)


@dataclass(frozen=True)
class _Draws:
    """The keyed draws of some rows."""

    seed: int
    stream: str
    epoch: int
    keys: Tensor

    def uniform(self, n: int) -> Tensor:
        return uniform(self.seed, self.stream, self.epoch, self.keys, n)

    def normal(self, n: int) -> Tensor:
        return normal(self.seed, self.stream, self.epoch, self.keys, n)

    def rows(self, part: slice) -> "_Draws":
        return replace(self, keys=self.keys[part])


def _parts(value: Value) -> Parts:
    return {"": value} if isinstance(value, Tensor) else value


def _value(parts: Parts) -> Value:
    return parts[""] if "" in parts else parts


def _take(parts: Parts, index: Tensor | slice) -> Parts:
    return {key: part[index] for key, part in parts.items()}


def _put(parts: Parts, index: Tensor, rows: Parts) -> Parts:
    """A copy of ``parts`` with other content at ``index``."""
    return {key: part.index_copy(0, index, rows[key]) for key, part in parts.items()}


def _donors(present: Tensor, index: Tensor, u: Tensor) -> Tensor:
    """For each row of ``index`` another present row, uniformly; itself where it is the only one."""
    rows = present.nonzero()[:, 0]
    if len(rows) < 2:
        return index
    pick = (u.double() * (len(rows) - 1)).long()
    own = torch.searchsorted(rows, index)
    return rows[pick + (pick >= own).long()]


def _noise(rows: Parts, sigma: Tensor, scale: InputScale, draw: _Draws) -> Parts:
    """Noise of ``sigma`` (b,) per row, a block of rows at a time."""
    if not len(sigma):
        return rows
    function = _NOISE[input_form(_value(rows))]
    blocks = []
    for start in range(0, len(sigma), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        blocks.append(function(_take(rows, part), sigma[part], scale, draw.rows(part)))
    return {key: torch.cat([block[key] for block in blocks]) for key in rows}


def _add(x: Tensor, sigma: Tensor, scale: InputScale, draw: _Draws) -> Tensor:
    """``x + sigma * std * noise``, rounded and clipped where the dtype is an integer."""
    noise = draw.normal(x[0].numel()).view(x.shape) * scale.std.to(x.device, torch.float32)
    return _clip(x.float() + sigma.view(-1, *[1] * (x.ndim - 1)) * noise, x.dtype)


def _clip(y: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return y.to(dtype)
    info = torch.iinfo(dtype)
    return y.round().clamp(info.min, info.max).to(dtype)


def _random_ids(ids: Tensor, sigma: Tensor, where: Tensor, low: int, scale: InputScale, draw: _Draws) -> Tensor:
    """An id becomes one of ``low..cardinality-1`` with probability sigma^2 / (1 + sigma^2), only at ``where``."""
    width = ids.shape[1]
    u = draw.uniform(2 * width).double()
    high = torch.tensor(scale.cardinalities, device=ids.device)  # one for all columns, or one each
    random = low + (u[:, width:] * (high - low)).long()
    chance = (sigma.square() / (1.0 + sigma.square()))[:, None]
    return torch.where(where & (u[:, :width] < chance) & (high > low), random.to(ids.dtype), ids)


def _noise_dense(x: Parts, sigma: Tensor, scale: InputScale, draw: _Draws) -> Parts:
    return {"": _add(x[""], sigma, scale, draw)}


def _noise_text(x: Parts, sigma: Tensor, scale: InputScale, draw: _Draws) -> Parts:
    return {**x, "ids": _random_ids(x["ids"], sigma, x["mask"], _FIRST_WORD, scale, draw)}


def _noise_audio(x: Parts, sigma: Tensor, scale: InputScale, draw: _Draws) -> Parts:
    wave = _add(x["wave"], sigma, scale, draw)
    return {**x, "wave": wave.masked_fill(~_heard(x), 0)}


def _noise_masked(x: Parts, sigma: Tensor, scale: InputScale, draw: _Draws) -> Parts:
    name = _MAIN[input_form(_value(x))]
    noisy = _add(x[name], sigma, scale, draw)
    mask = x["mask"].view(*x["mask"].shape, *[1] * (noisy.ndim - 2))
    return {**x, name: noisy.masked_fill(~mask, 0)}


def _noise_tabular(x: Parts, sigma: Tensor, scale: InputScale, draw: _Draws) -> Parts:
    out = dict(x)
    if x["numeric"].shape[1]:
        out["numeric"] = _add(x["numeric"], sigma, scale, draw).masked_fill(~x["numeric_mask"], 0.0)
    if x["categorical"].shape[1]:
        known = x["categorical"] > 0
        ids = replace(draw, stream=draw.stream + "/categorical")
        out["categorical"] = _random_ids(x["categorical"], sigma, known, 1, scale, ids)
    return out


_NOISE: dict[str, Callable[[Parts, Tensor, InputScale, _Draws], Parts]] = {
    "image": _noise_dense,
    "vector": _noise_dense,
    "text": _noise_text,
    "audio": _noise_audio,
    "series": _noise_masked,
    "video": _noise_masked,
    "points": _noise_masked,
    "tabular": _noise_tabular,
}


def _scaled(x: Parts, factor: float) -> Parts:
    form = input_form(_value(x))
    if form == "text":
        length = x["mask"].sum(dim=1, keepdim=True)
        place = torch.arange(x["mask"].shape[1], device=length.device)
        mask = place < (length * factor).round()
        ids = x["ids"].gather(1, place % length.clamp(min=1))
        return {**x, "ids": ids.masked_fill(~mask, 0), "mask": mask}
    name = _MAIN.get(form, "")
    out = {**x, name: _clip(x[name].float() * factor, x[name].dtype)}
    if form == "tabular" and factor == 0.0:
        out["categorical"] = torch.zeros_like(x["categorical"])
    return out


def _heard(x: Parts) -> Tensor:
    """``(B, N)`` bool: samples within the clip's length."""
    place = torch.arange(x["wave"].shape[1], device=x["wave"].device)
    heard = place < x["length"][:, None]
    return heard & (place >= x["start"][:, None]) if "start" in x else heard


def _fit(x: Parts) -> InputScale:
    form = input_form(_value(x))
    if form == "text":
        largest = int(x["ids"].max()) if x["ids"].numel() else 0
        return InputScale(torch.zeros(()), (max(largest + 1, _FIRST_WORD + 1),))
    if form == "image":
        return InputScale(_masked_std(x[""], torch.ones((), dtype=torch.bool)))
    if form == "vector":
        return InputScale(_masked_std(x[""], torch.ones((), dtype=torch.bool), dim=0))
    if form == "audio":
        return InputScale(_masked_std(x["wave"], _heard(x)))
    if form == "video":
        return InputScale(_masked_std(x["frames"], x["mask"][..., None, None, None]))
    if form in ("series", "points"):
        return InputScale(_masked_std(x[_MAIN[form]].flatten(0, 1), x["mask"].flatten()[:, None], dim=0))
    ids = x["categorical"]
    largest_ids = ids.amax(dim=0).tolist() if len(ids) else [0] * ids.shape[1]
    return InputScale(_masked_std(x["numeric"], x["numeric_mask"], dim=0), tuple(int(i) + 1 for i in largest_ids))


def _masked_std(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Standard deviation where ``mask``, zero where there is nothing; summed a block at a time in float64."""
    count = total = square = torch.zeros((), dtype=torch.float64)
    axes = [0] if dim == 0 else list(range(x.ndim))
    for block, where in zip(x.split(_ROWS_AT_ONCE), mask.expand(x.shape).split(_ROWS_AT_ONCE), strict=True):
        y = block.double().masked_fill(~where, 0.0)
        count = count + where.double().sum(axes).cpu()
        total = total + y.sum(axes).cpu()
        square = square + y.square().sum(axes).cpu()
    count = count.clamp(min=1)
    return (square / count - (total / count).square()).clamp(min=0).sqrt().float()
