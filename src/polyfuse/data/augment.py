"""More rows for a weak modality: repeated, mixed, or generated. Pure functions of training rows, keyed by row.

Shapes: N rows, n of them with the weak modality, M modalities.
"""

from dataclasses import replace

import torch
from torch import Tensor

from polyfuse.data.batch import Batch, concatenate, map_tensors
from polyfuse.data.corrupt import input_form
from polyfuse.data.keyed import normal, uniform
from polyfuse.errors import UserError

METHODS = ("oversample", "mixup", "generate")
_COPY = 0x5851F42D4C957F2D  # odd: copies of a row get keys, hence masks, of their own


def strengthen(train: Batch, modality: str, method: str, amount: float, task: str, seed: int) -> Batch:
    """Help one modality by more rows, or by filling it in.

    ``oversample`` repeats rows that have it. ``mixup`` adds copies of them whose weak input is
    ``lambda x_i + (1 - lambda) x_j``, lambda ~ U(0.5, 1), j another row of the same class (mixup,
    https://arxiv.org/abs/1710.09412, within a class, hence without mixed labels; the other inputs stay those of row i).
    ``generate`` fills the modality in where it is absent, with draws from a Gaussian per class (means per class, one
    covariance shrunk towards its diagonal), fitted on the rows that have it.

    Args:
        train: Training rows with targets.
        modality: The weak one.
        method: One of ``METHODS``.
        amount: Rows added (``generate``: filled), as a multiple of n.
        task: ``mixup`` and ``generate`` are for classification.
        seed: Of the draws.

    Raises:
        UserError: If the modality is unknown or in no row, or its inputs cannot be mixed or generated.
    """
    if modality not in train.modalities:
        raise UserError(f"train.recipe.weak must be one of {', '.join(train.modalities)}, got '{modality}'")
    column = train.modalities.index(modality)
    rows = train.present[:, column].nonzero()[:, 0]
    if not len(rows):
        raise UserError(f"train.recipe.weak names '{modality}', which no training row has")
    if method == "oversample":
        return concatenate([train, _copies(train, _pick(train, rows, amount, seed))])
    value = train.inputs[modality]
    if task != "classification" or not isinstance(value, Tensor) or input_form(value) != "vector":
        raise UserError(
            f"train.recipe.weak_method={method} is for classification on vectors, got task {task} and modality "
            f"'{modality}'; use oversample"
        )
    if method == "mixup":
        chosen = _pick(train, rows, amount, seed)
        added = _copies(train, chosen)
        mixed = _mixed(train, value, rows, chosen, seed)
        return concatenate([train, replace(added, inputs={**added.inputs, modality: mixed})])
    if method == "generate":
        return _generated(train, modality, column, rows, amount, seed)
    raise UserError(f"train.recipe.weak_method must be one of {', '.join(METHODS)}, got '{method}'")


def _pick(train: Batch, rows: Tensor, amount: float, seed: int) -> Tensor:
    """``amount`` times as many of ``rows``: whole rounds, and of the last round those with the smallest draws."""
    whole, part = divmod(amount, 1.0)
    order = uniform(seed, "augment/pick", 0, train.keys[rows], 1)[:, 0].argsort(stable=True)
    return torch.cat([*[rows] * int(whole), rows[order[: round(part * len(rows))]]])


def _copies(train: Batch, chosen: Tensor) -> Batch:
    """The chosen rows, each copy of a row with a key of its own."""
    copies = train.rows(chosen)
    order = chosen.argsort(stable=True)
    sorted_rows = chosen[order]
    first = torch.searchsorted(sorted_rows, sorted_rows)
    number = torch.empty_like(chosen)
    number[order] = torch.arange(len(chosen)) - first
    ids = None if train.ids is None else [f"{i} (copy)" for i in copies.ids or ()]
    return replace(copies, keys=copies.keys ^ ((number + 1) * _COPY), ids=ids)


def _classes(train: Batch) -> Tensor:
    assert train.target is not None  # noqa: S101 - training rows have targets
    return train.target


def _mixed(train: Batch, value: Tensor, rows: Tensor, chosen: Tensor, seed: int) -> Tensor:
    """``(len(chosen), D)`` each chosen row's input mixed with that of a row of the same class."""
    target = _classes(train)
    keys = _copies(train, chosen).keys
    draws = uniform(seed, "augment/mixup", 0, keys, 2).double()
    out = value[chosen].clone()
    for c in target[chosen].unique().tolist():
        here = (target[chosen] == c).nonzero()[:, 0]
        donors = rows[target[rows] == c]
        donor = donors[(draws[here, 0] * len(donors)).long()]
        share = (0.5 + 0.5 * draws[here, 1:]).to(value.dtype)
        out[here] = share * out[here] + (1.0 - share) * value[donor]
    return out


def _generated(train: Batch, modality: str, column: int, rows: Tensor, amount: float, seed: int) -> Batch:
    value, target = train.inputs[modality], _classes(train)
    assert isinstance(value, Tensor)  # noqa: S101 - checked by strengthen
    lacking = (~train.present[:, column] & torch.isin(target, target[rows])).nonzero()[:, 0]
    order = uniform(seed, "augment/fill", 0, train.keys[lacking], 1)[:, 0].argsort(stable=True)
    filled = lacking[order[: round(amount * len(rows))]]
    if not len(filled):
        return train
    x, y = value[rows].double(), target[rows]
    means = torch.zeros(int(target.max()) + 1, x.shape[1], dtype=torch.float64).index_add_(0, y, x)
    means /= torch.bincount(y, minlength=len(means)).clamp(min=1)[:, None]
    rest = x - means[y]
    covariance = rest.T @ rest / max(len(rest), 1)
    shrink = min(1.0, x.shape[1] / len(x))  # as many columns as rows: the diagonal alone
    covariance = (1 - shrink) * covariance + torch.diag(shrink * covariance.diagonal() + 1e-6)
    factor = torch.linalg.cholesky(covariance)
    noise = normal(seed, "augment/generate", 0, train.keys[filled], x.shape[1]).double()
    drawn = (means[target[filled]] + noise @ factor.T).to(value.dtype)
    present = train.present.clone()
    present[filled, column] = True
    inputs = map_tensors(train.inputs, lambda tensor: tensor)
    inputs[modality] = value.index_copy(0, filled, drawn)
    return replace(train, inputs=inputs, present=present)
