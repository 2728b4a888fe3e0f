"""Exact regret: hand-counted toys, and the expected excess loss that it must be."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyfuse.data.batch import Batch
from polyfuse.datasets import load_dataset
from polyfuse.evaluate.bayes import bayes_records, posterior_sweep
from polyfuse.evaluate.metrics import score
from polyfuse.evaluate.sweep import Sweep, sweep
from polyfuse.evaluate.table import predictions


class Says:
    """The same logits to every row, as far as it has the first input."""

    def __init__(self, logits: Any) -> None:
        self.logits = np.asarray(logits, np.float64)

    def predict_logits(self, batch: Batch) -> Any:
        return np.where(batch.present[:, :1].numpy(), self.logits, 0.0)


def toy(target: Tensor, present: Tensor) -> Batch:
    inputs: dict[str, Any] = {name: torch.zeros(len(target), 2) for name in "ab"}
    return Batch(("a", "b"), inputs, present, target, torch.arange(len(target)))


def table(records: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(r["subset"], r["metric"]): r for r in records}


def test_regret_of_a_constant_model_by_hand() -> None:
    batch = toy(torch.tensor([0, 1, 1]), torch.tensor([[True, True], [True, False], [True, True]]))

    def posterior(rows: Batch, present: Tensor) -> Tensor:
        p = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])[: len(rows)]
        return torch.where(present[:, :1], p, 0.5)

    swept = sweep(Says(np.log([0.75, 0.25])), batch)
    exact = posterior_sweep(swept, posterior, batch)
    assert (np.isnan(exact.logits).all(axis=2) == ~swept.valid).all()
    assert (np.isnan(exact.logits).any(axis=2) == ~swept.valid).all()
    np.testing.assert_allclose(np.exp(exact.own), [[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], rtol=1e-6)
    found = table(bayes_records(swept, posterior, batch))
    kl = [0.2 * np.log(0.2 / 0.75) + 0.8 * np.log(0.8 / 0.25), 0.6 * np.log(0.6 / 0.75) + 0.4 * np.log(0.4 / 0.25)]
    kl.append(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))
    assert found["a", "bayes_kl"]["value"] == pytest.approx(np.mean(kl), rel=1e-5)
    assert found["a", "bayes_gap"]["value"] == pytest.approx(0.6 / 3, rel=1e-5)
    assert found["a", "bayes_gap"]["n"] == 3
    assert found["b", "bayes_kl"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert found["a+b", "bayes_kl"]["value"] == pytest.approx((kl[0] + kl[2]) / 2, rel=1e-5)  # the row without b is out
    assert found["a+b", "bayes_kl"]["n"] == 2
    # Pairs: a+b over a (0.8 and 0.5, equal: no violation), a+b over b (0.5 each: none).
    assert found["", "bayes_violation_rate"]["value"] == 0.0
    assert found["", "bayes_confidence_gain"]["value"] == pytest.approx(0.3 / 4, rel=1e-5)


def test_labels_are_averaged() -> None:
    batch = toy(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool))
    p = torch.tensor([[0.9, 0.3], [0.1, 0.2]])
    swept = sweep(Says(np.log([0.6 / 0.4, 0.25 / 0.75])), batch)
    found = table(bayes_records(swept, lambda rows, present: p, batch))
    gap = (0.0 + 0.0 + 0.8 + 0.0) / 4  # 0.6 is on the wrong side of 0.1 alone
    assert found["a", "bayes_gap"]["value"] == pytest.approx(gap, rel=1e-5)
    q = np.array([0.6, 0.25])
    exact = p.double().numpy()
    kl = exact * np.log(exact / q) + (1 - exact) * np.log((1 - exact) / (1 - q))
    assert found["a", "bayes_kl"]["value"] == pytest.approx(float(kl.mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["mixed", "longtail"])
def test_the_posterior_has_no_regret_and_regret_is_the_excess_loss(name: str) -> None:
    data = load_dataset(name)
    assert data.posterior is not None
    task = data.target.task
    model = Says(np.linspace(-0.5, 0.5, data.target.outputs))
    swept = sweep(model, data.test, task=task)
    exact = posterior_sweep(swept, data.posterior, data.test)
    for row in bayes_records(exact, data.posterior, data.test):
        if row["subset"]:
            assert row["value"] == pytest.approx(0.0, abs=1e-5)
    assert 0.0 < table(bayes_records(exact, data.posterior, data.test))["", "bayes_violation_rate"]["value"] < 0.3

    found = table(bayes_records(swept, data.posterior, data.test))
    for s, subset in ((0, "a"), (6, "a+b+c")):
        ours, best = (score(task, predictions(x, task, s), x.target) for x in (swept, exact))
        assert found[subset, "bayes_kl"]["value"] == pytest.approx(ours["nll"] - best["nll"], abs=0.06)
        assert found[subset, "bayes_gap"]["value"] == pytest.approx(best["accuracy"] - ours["accuracy"], abs=0.03)
        assert found[subset, "bayes_kl"]["value"] > 0.05


class Sharper:
    """A calibration that doubles the logits."""

    def apply(self, logits: Any, present: Any) -> Any:
        e = np.exp(2 * np.asarray(logits))
        return type("Calibrated", (), {"probs": e / e.sum(axis=1, keepdims=True)})


def test_calibration_is_applied() -> None:
    batch = toy(torch.tensor([0, 1]), torch.ones(2, 2, dtype=torch.bool))
    p = torch.tensor([[0.9, 0.1]]).expand(2, -1)
    swept = sweep(Says(0.5 * np.log([0.9, 0.1])), batch)
    raw, better = (
        table(bayes_records(swept, lambda rows, present: p, batch, calibration=c))["a", "bayes_kl"]["value"]
        for c in (None, Sharper())
    )
    assert raw > 0.05
    assert better == pytest.approx(0.0, abs=1e-6)


def test_other_rows_are_refused() -> None:
    batch = toy(torch.tensor([0, 1, 1]), torch.ones(3, 2, dtype=torch.bool))
    swept: Sweep = sweep(Says([0.0, 0.0]), batch)
    with pytest.raises(ValueError, match="must hold the 3 rows of the sweep, got 2 others"):
        bayes_records(swept, lambda rows, present: torch.ones(2, 2), batch.rows(torch.tensor([0, 1])))
