"""Distance to the optimum where it is known: a model against the exact posterior, subset by subset.

Nothing here depends on which labels happened to be drawn: given the inputs, the expected excess log loss of a model is
KL(posterior || model), and the expected accuracy it gives away is the posterior mass between the best answer and its
own. Both are zero only for the posterior itself (the second also for any model that picks the same class).

Shapes: S subsets, N rows, M modalities, C classes or labels.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.data.batch import Batch
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.subsets import subset_name
from polyfuse.evaluate.sweep import Sweep
from polyfuse.evaluate.table import Calibrator, predictions, violation_rate

_TINY = 1e-12


def posterior_sweep(swept: Sweep, posterior: Callable[[Batch, Tensor], Tensor], batch: Batch) -> Sweep:
    """What the exact posterior says to the same questions, as logits: scored like a model.

    Args:
        swept: Of any model on ``batch``: its subsets and rows.
        posterior: ``(batch, present (N, M)) -> (N, C)``, as in ``DataSet.posterior``.
        batch: The rows of ``swept``.

    Raises:
        ValueError: If ``batch`` has other rows than ``swept``.
    """
    if not np.array_equal(batch.keys.cpu().numpy(), swept.keys):
        raise ValueError(f"batch must hold the {len(swept.keys)} rows of the sweep, got {len(batch)} others")

    def logits(present: Tensor) -> Floats:
        p = posterior(batch, present).double().clamp(_TINY, 1 - _TINY)
        return (torch.logit(p) if swept.target.ndim == 2 else p.log()).numpy()

    asked = [logits(torch.from_numpy(mask).expand(len(batch), -1)) for mask in swept.subsets]
    answers = np.where(swept.valid[..., None], np.stack(asked), np.nan).astype(np.float32)
    own = logits(batch.present).astype(np.float32)
    return replace(swept, logits=answers, own=own, weights=None, ms_per_row=0.0)


def bayes_records(
    swept: Sweep,
    posterior: Callable[[Batch, Tensor], Tensor],
    batch: Batch,
    calibration: Calibrator | None = None,
) -> list[dict[str, Any]]:
    """Exact regret of a model per subset, and the reference of monotone confidence.

    Args:
        swept: Of the model on ``batch``; classification, or multilabel (a two-dimensional target).
        posterior: As in ``DataSet.posterior``.
        batch: The rows of ``swept``.
        calibration: Applied to the model's logits first.

    Returns:
        ``{"subset", "metric", "value", "n"}``: per subset ``bayes_kl`` (mean KL(posterior || model), nats; multilabel:
        mean over labels) and ``bayes_gap`` (expected accuracy given away); with subset "" what ``violation_rate`` says
        of the posterior (``bayes_violation_rate`` and so on).

    Raises:
        ValueError: If ``batch`` has other rows than ``swept``.
    """
    exact = posterior_sweep(swept, posterior, batch)
    task = "multilabel" if swept.target.ndim == 2 else "classification"
    out: list[dict[str, Any]] = []
    for s, mask in enumerate(swept.subsets):
        valid = swept.valid[s]
        p, q = predictions(exact, task, s)[valid], predictions(swept, task, s, calibration)[valid]
        found = {"bayes_kl": _divergence(task, p, q), "bayes_gap": _gap(task, p, q)}
        name = subset_name(mask, swept.modalities)
        for metric, value in found.items():
            mean = float(value.mean()) if len(value) else float("nan")
            out.append({"subset": name, "metric": metric, "value": mean, "n": len(value)})
    rows = int(exact.valid.any(axis=0).sum())
    reference = violation_rate(exact, task)
    out += [{"subset": "", "metric": f"bayes_{key}", "value": value, "n": rows} for key, value in reference.items()]
    return out


def _divergence(task: str, p: Floats, q: Floats) -> Floats:
    """``(N,)`` KL(p || q); multilabel: mean over labels."""
    p, q = p.clip(_TINY, 1 - _TINY), q.clip(_TINY, 1 - _TINY)
    parts = p * np.log(p / q)
    if task == "classification":
        return np.asarray(parts.sum(axis=1))
    return np.asarray((parts + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=1))


def _gap(task: str, p: Floats, q: Floats) -> Floats:
    """``(N,)`` expected accuracy under p of its own answer less that of q's."""
    if task == "classification":
        return np.asarray(p.max(axis=1) - np.take_along_axis(p, q.argmax(axis=1)[:, None], axis=1)[:, 0])
    return np.asarray(np.where((p >= 0.5) == (q >= 0.5), 0.0, np.abs(2 * p - 1)).mean(axis=1))
