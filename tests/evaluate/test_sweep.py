"""The sweep is exact: it equals asking the model subset by subset; its tables equal loops and Monte Carlo."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from polyfuse.data.batch import Batch
from polyfuse.evaluate import table
from polyfuse.evaluate.corruptions import corruption_records
from polyfuse.evaluate.metrics import probabilities, score
from polyfuse.evaluate.records import evaluate_model, own_record, records, reliability_records
from polyfuse.evaluate.subsets import all_subsets
from polyfuse.evaluate.sweep import Sweep, sweep
from polyfuse.fusion import FUSIONS
from polyfuse.heads import ClassificationHead, MultilabelHead, RegressionHead
from polyfuse.models import FusionModel, ModelOutput

NAMES = ("image", "text", "sound")
N, D, C = 67, 5, 4


class Counting(nn.Linear):
    """An encoder that counts the rows it sees and refuses what an absent slot may hold."""

    seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.isfinite().all()
        self.seen += len(x)
        return super().forward(x)


def make_batch(task: str = "classification", n: int = N, holes: float = 0.35, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    target: torch.Tensor = torch.randint(0, C, (n,), generator=g)
    inputs: dict[str, torch.Tensor | dict[str, torch.Tensor]] = {
        name: torch.randn(n, D, generator=g) + target[:, None] * (m + 1) / 3 for m, name in enumerate(NAMES)
    }
    if task == "multilabel":
        target = (torch.rand(n, C, generator=g) < 0.4).float()
    elif task == "regression":
        target = target.float() / 2 + 0.3 * torch.randn(n, generator=g)
    present = torch.rand(n, 3, generator=g) >= holes
    if holes:
        present[:2] = False
    return Batch(NAMES, inputs, present, target, torch.arange(n) * 7 + 1)


def make_model(task: str = "classification", fusion: str = "gated") -> FusionModel:
    torch.manual_seed(1)
    head = {
        "classification": lambda d: ClassificationHead(d, C, dropout=0.5),
        "multilabel": lambda d: MultilabelHead(d, C),
        "regression": lambda d: RegressionHead(d),
    }[task]
    layer = FUSIONS[fusion](NAMES, embed_dim=D)
    return FusionModel({name: Counting(D, D) for name in NAMES}, layer, head(layer.out_dim))


@pytest.mark.parametrize("fusion", ["concat", "gated", "embracenet"])
def test_sweep_equals_the_model_asked_subset_by_subset(fusion: str) -> None:
    model, batch = make_model(fusion=fusion), make_batch()
    model.train()
    swept = sweep(model, batch, batch_size=13)
    assert model.training
    assert model.head.training
    assert all(encoder.seen == N for encoder in model.encoders.values())  # once per row, whatever the subsets
    model.eval()
    for s, mask in enumerate(all_subsets(3)):
        has = (batch.present | ~torch.from_numpy(mask)).all(dim=1)
        np.testing.assert_array_equal(swept.valid[s], has.numpy())
        with torch.no_grad():
            want = model(batch.inputs, torch.from_numpy(mask).expand(N, -1))
        np.testing.assert_allclose(swept.logits[s][has], want.logits[has], atol=1e-6)
        assert np.isnan(swept.logits[s][~has]).all()
        if want.weights is not None:
            assert swept.weights is not None
            np.testing.assert_allclose(swept.weights[s], want.weights[has].mean(dim=0), atol=1e-6)
    with torch.no_grad():
        own = model(batch.inputs, batch.present)
    np.testing.assert_allclose(swept.own, own.logits, atol=1e-6)
    assert swept.ms_per_row > 0


def test_absent_content_cannot_reach_the_sweep() -> None:
    model, batch = make_model(), make_batch()
    broken = {n: x.masked_fill(~batch.present[:, m, None], math.nan) for m, (n, x) in enumerate(batch.inputs.items())}  # type: ignore[union-attr]
    a = sweep(model, batch)
    b = sweep(model, Batch(NAMES, broken, batch.present, batch.target, batch.keys))
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.own, b.own)


def test_empty_rows_get_the_given_answer() -> None:
    prior = np.log([0.1, 0.2, 0.3, 0.4])
    swept = sweep(make_model(), make_batch(), empty=prior)
    np.testing.assert_allclose(swept.own[:2], np.stack([prior, prior]), rtol=1e-6)
    assert not np.allclose(swept.own[2:], prior)
    assert not swept.valid[:, :2].any()


def test_unscorable_targets_are_left_out() -> None:
    batch = make_batch(holes=0)
    assert batch.target is not None
    target = batch.target.clone()
    target[5] = -1
    swept = sweep(make_model(), Batch(NAMES, batch.inputs, batch.present, target, batch.keys))
    assert not swept.valid[:, 5].any()
    assert swept.valid[:, 6].all()
    assert {r["n"] for r in records(swept, "classification")} == {N - 1}


class Fixed:
    """A predictor that answers with which inputs are there."""

    def predict_logits(self, batch: Batch) -> np.ndarray:
        code = batch.present.float() @ torch.tensor([1.0, 2.0, 4.0])
        return torch.nn.functional.one_hot(code.long() % C, C).float().numpy() * 3


def test_a_predictor_sweeps_like_a_model() -> None:
    batch = make_batch()
    swept = sweep(Fixed(), batch)
    for s, mask in enumerate(swept.subsets):
        want = (mask @ [1, 2, 4]) % C
        assert (swept.logits[s][swept.valid[s]].argmax(axis=1) == want).all()
        assert np.isnan(swept.logits[s][~swept.valid[s]]).all()
    assert len(evaluate_model(Fixed(), batch, "classification")) == 7


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_records_are_the_scores_of_the_valid_rows(task: str) -> None:
    model, batch = make_model(task), make_batch(task)
    out = evaluate_model(model, batch, task)
    assert [r["subset"] for r in out][-1] == "image+text+sound"
    assert out[3]["subset"] == "image+text"
    assert out[3]["modalities"] == ["image", "text"]
    json.dumps(out, allow_nan=False)
    model.eval()
    has = batch.present[:, :2].all(dim=1)
    with torch.no_grad():
        logits = model(batch.inputs, torch.tensor([[True, True, False]] * N)).logits[has]
    assert batch.target is not None
    want = score(task, probabilities(task, logits.numpy()), batch.target[has].numpy())
    assert out[3]["n"] == int(has.sum())
    for name, value in want.items():
        assert out[3][name] == pytest.approx(value, abs=1e-5), name
    assert sum(out[3]["weights"].values()) == pytest.approx(1.0, abs=1e-5)
    diagrams = reliability_records(sweep(model, batch, task=task), task)
    assert {d["stage"] for d in diagrams} == {"raw"}
    assert len(diagrams) == 7
    found = own_record(sweep(model, batch, task=task), task)
    assert found["n"] == N
    assert found["subset"] == "as found"


def test_a_subset_nobody_has_gives_nulls() -> None:
    batch = make_batch(holes=0)
    lonely = batch.with_present(torch.tensor([[True, False, False]] * N))
    out = evaluate_model(make_model(), lonely, "classification")
    assert [r["n"] for r in out] == [N, 0, 0, 0, 0, 0, 0]
    assert out[1]["accuracy"] is None
    assert out[0]["accuracy"] is not None
    json.dumps(out, allow_nan=False)
    assert table.summary(out, "accuracy")["complete"] is None
    assert table.worst_subset(out, "accuracy")["subset"] == "image"


def test_drop_curve_equals_monte_carlo_on_rows_with_holes() -> None:
    task, rate = "classification", 0.4
    swept = sweep(make_model(), make_batch(n=41), task=task)
    exact = table.drop_curve(swept, task, [rate])[0]
    rng = np.random.default_rng(0)
    names = ("accuracy", "nll", "brier")
    samples = []
    rows = np.flatnonzero(swept.present.any(axis=1))
    codes = {tuple(mask): s for s, mask in enumerate(swept.subsets.tolist())}
    for _ in range(1500):
        left = swept.present[rows] & (rng.random((len(rows), 3)) >= rate)
        while (none := ~left.any(axis=1)).any():  # one survivor: draw those rows again
            left[none] = swept.present[rows][none] & (rng.random((none.sum(), 3)) >= rate)
        which = [codes[tuple(m)] for m in left.tolist()]
        s = score(task, probabilities(task, swept.logits[which, rows]), swept.target[rows])
        samples.append([s[name] for name in names])
    mean, error = np.mean(samples, axis=0), np.std(samples, axis=0) / math.sqrt(len(samples))
    for name, m, e in zip(names, mean, error, strict=True):
        assert exact[name] == pytest.approx(m, abs=4 * e), name
    assert exact["n"] == len(rows)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_drop_curve_pools_by_weight(task: str) -> None:
    swept = sweep(make_model(task), make_batch(task, holes=0), task=task)
    curve = table.drop_curve(swept, task, [0.0, 0.5], scale=2.0)
    complete = records(swept, task, scale=2.0)[-1]
    for name in ("nll", "ece", "augrc"):
        assert curve[0][name] == pytest.approx(complete[name]), name
    # Rate 0.5 weighs all subsets alike: the pool of all predictions.
    flat = probabilities(task, swept.logits).reshape(-1, swept.logits.shape[2])
    want = score(task, flat, np.concatenate([swept.target] * 7), scale=2.0)
    for name, value in want.items():
        assert curve[1][name] == pytest.approx(value), name


def test_drop_curve_keeps_patterns_that_are_not_listed() -> None:
    """With only singletons listed, rate 0 must still be the rows as they are and 0.3 the mixture of both."""
    batch = make_batch(holes=0)
    swept = sweep(make_model(), batch, subsets=np.eye(3, dtype=bool))
    own = score("classification", probabilities("classification", swept.own), swept.target)
    curve = table.drop_curve(swept, "classification", [0.0, 0.3])
    assert curve[0]["nll"] == pytest.approx(own["nll"])
    single = np.mean([r["nll"] for r in records(swept, "classification")])
    whole = 0.7**3 / (1 - 0.3**3)
    assert curve[1]["nll"] == pytest.approx(whole * own["nll"] + (1 - whole) * single)


def toy_sweep(logits: list[list[list[float]]], target: list[int], valid: list[list[bool]] | None = None) -> Sweep:
    """Two modalities, three subsets: a, b, a+b."""
    z = np.array(logits, np.float32)
    ok = np.ones(z.shape[:2], bool) if valid is None else np.array(valid)
    n = z.shape[1]
    present = np.ones((n, 2), bool)
    return Sweep(("a", "b"), all_subsets(2), z, ok, z[-1], np.ones(n, bool), present, np.array(target), np.arange(n))


def test_violation_rate_by_hand() -> None:
    def z(p: float) -> list[float]:
        return [math.log(p), math.log(1 - p)]

    swept = toy_sweep([[z(0.9), z(0.6)], [z(0.5), z(0.8)], [z(0.7), z(0.9)]], [0, 0])
    out = table.violation_rate(swept, "classification")
    # Pairs (a+b, a): 0.9 > 0.7 violates, 0.6 < 0.9; (a+b, b): 0.5 < 0.7, 0.8 < 0.9.
    assert out["violation_rate"] == pytest.approx(1 / 4)
    assert out["violation_mean"] == pytest.approx(0.2 / 4, abs=1e-6)
    assert out["confidence_gain"] == pytest.approx((-0.2 + 0.3 + 0.2 + 0.1) / 4, abs=1e-6)
    want = [math.log(0.7 / 0.9), math.log(0.9 / 0.6), math.log(0.7 / 0.5), math.log(0.9 / 0.8)]
    assert out["nll_gain"] == pytest.approx(np.mean(want), abs=1e-6)
    assert out["violation_pairs"] == 4
    one = toy_sweep(swept.logits.tolist(), [0, 0], [[True, True], [True, True], [False, True]])
    assert table.violation_rate(one, "classification")["violation_pairs"] == 2


def test_violation_rate_of_an_exact_posterior_is_not_zero_but_its_means_are_monotone() -> None:
    """Two equal Gaussian modalities, ten classes: the reference for a Bayes predictor lies near 0.19."""
    rng = np.random.default_rng(0)
    n, classes, width = 20_000, 10, 5
    centres = rng.normal(size=(2, classes, width)) * 0.8
    y = rng.integers(0, classes, n)
    x = centres[:, y] + rng.normal(size=(2, n, width))
    single = -0.5 * ((x[:, :, None] - centres[:, None]) ** 2).sum(-1)
    z = np.stack([single[0], single[1], single.sum(axis=0)]).astype(np.float32)
    present = np.ones((n, 2), bool)
    swept = Sweep(
        ("a", "b"), all_subsets(2), z, np.ones((3, n), bool), z[-1], np.ones(n, bool), present, y, np.arange(n)
    )
    out = table.violation_rate(swept, "classification")
    assert 0.1 < out["violation_rate"] < 0.3
    assert out["confidence_gain"] > 0.05
    assert out["nll_gain"] > 0.05
    assert out["violation_mean"] < out["confidence_gain"]


def test_worst_subset_and_regret_by_hand() -> None:
    out = [
        {"subset": "a", "size": 1, "accuracy": 0.5, "nll": 1.0},
        {"subset": "b", "size": 1, "accuracy": 0.6, "nll": 1.4},
        {"subset": "a+b", "size": 2, "accuracy": 0.9, "nll": 0.3},
    ]
    assert table.worst_subset(out, "accuracy") == {"subset": "a", "value": 0.5}
    assert table.worst_subset(out, "nll") == {"subset": "b", "value": 1.4}
    assert table.summary(out, "accuracy") == {
        "complete": 0.9,
        "mean": pytest.approx(2 / 3),
        "worst": 0.5,
        "worst_subset": "a",
    }
    found = table.regret(out, {"a": 0.52, "b": 0.75, "a+b": 0.88}, "accuracy")
    assert found["worst"] == pytest.approx(0.15)
    assert found["worst_subset"] == "b"
    assert found["mean"] == pytest.approx((0.02 + 0.15 - 0.02) / 3)
    losses = table.regret(out, [{"subset": "a", "nll": 0.8}, {"subset": "b", "nll": None}], "nll")
    assert losses["by_subset"] == {"a": pytest.approx(0.2)}
    with pytest.raises(ValueError, match="share no subset with metric 'nll'"):
        table.regret(out, {"c": 1.0}, "nll")
    with pytest.raises(ValueError, match="no record has metric 'f2'"):
        table.worst_subset(out, "f2")
    assert table.is_better_high("accuracy")
    assert not table.is_better_high("nll_calibrated")


def test_shapley_shares_sum_to_the_whole_and_equal_the_mean_over_orders() -> None:
    values = {"a": 0.5, "b": 0.4, "c": 0.3, "a+b": 0.7, "a+c": 0.8, "b+c": 0.4, "a+b+c": 0.9}
    shares = table.shapley(values, ("a", "b", "c"), 0.2)
    assert sum(shares.values()) == pytest.approx(0.7)
    # Orders: abc acb bac bca cab cba
    assert shares["a"] == pytest.approx((0.3 + 0.3 + 0.3 + 0.5 + 0.5 + 0.5) / 6)


def test_row_means_average_valid_subsets() -> None:
    swept = sweep(make_model(), make_batch())
    losses = table.row_losses(swept, "classification")
    assert np.isnan(losses[~swept.valid]).all()
    means = table.row_means(swept, "classification", "nll")
    assert np.isnan(means[:2]).all()
    n = int(np.flatnonzero(swept.valid.all(axis=0))[0])
    p = probabilities("classification", swept.logits[:, n])
    assert means[n] == pytest.approx(-np.log(p[:, swept.target[n]]).mean())
    with pytest.raises(ValueError, match="got 'brier'"):
        table.row_losses(swept, "classification", "brier")


def test_corrupted_inputs_that_a_first_call_made_serve_the_next_one() -> None:
    model, batch = make_model(), make_batch()
    made: dict[tuple[str, str], torch.Tensor | dict[str, torch.Tensor]] = {}
    first = corruption_records(model, batch, "classification", made=made)
    assert first == corruption_records(model, batch, "classification")
    assert {(r["modality"], r["corruption"]) for r in first} == set(made)
    assert corruption_records(model, batch, "classification", made=made) == first
    made |= {
        key: torch.zeros_like(value) for key, value in made.items() if isinstance(value, torch.Tensor)
    }  # looked at, not made again
    zeros = corruption_records(model, batch, "classification", made=made)
    assert len({r["nll"] for r in zeros if r["modality"] == zeros[0]["modality"]}) == 1


def test_corruption_records_score_the_rows_that_have_the_input() -> None:
    model, batch = make_model(), make_batch()
    out = corruption_records(model, batch, "classification")
    assert {r["corruption"] for r in out} == {"noise 1", "noise 3", "permuted", "stuck", "scaled 0", "scaled 4"}
    assert len(out) == 6 * 3
    for r in out:
        assert r["n"] == int(batch.present[:, NAMES.index(r["modality"])].sum())
        assert 0 <= r["detection_auroc"] <= 1
    json.dumps(out, allow_nan=False)


class Plain(nn.Module):
    """A model that shows no encoders: everything is asked of it again."""

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.inner, self.modalities = model, model.modalities

    def encode(self, inputs: dict[str, torch.Tensor], present: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.inner.encode(inputs, present)

    def fuse(self, embeddings: dict[str, torch.Tensor], present: torch.Tensor) -> ModelOutput:
        return self.inner.fuse(embeddings, present)


@pytest.mark.parametrize("flagged", [False, True])
def test_corruption_encodes_only_the_broken_input_again(flagged: bool) -> None:
    model, batch = make_model(), make_batch()
    out = corruption_records(model, batch, "classification", flagged=flagged)
    for m, name in enumerate(NAMES):
        assert model.encoders[name].seen == N + 6 * int(batch.present[:, m].sum())
    want = corruption_records(Plain(model), batch, "classification", flagged=flagged)
    for a, b in zip(out, want, strict=True):
        assert a == {key: pytest.approx(value, abs=1e-6) for key, value in b.items()}


def test_flagged_corruption_equals_the_missing_input() -> None:
    model, batch = make_model(), make_batch(holes=0)
    out = corruption_records(model, batch, "classification", flagged=True)
    missing = {r["subset"]: r for r in evaluate_model(model, batch, "classification")}
    without = {"image": "text+sound", "text": "image+sound", "sound": "image+text"}
    for r in out:
        assert r["nll"] == pytest.approx(missing[without[r["modality"]]]["nll"])


def test_mistakes_are_named() -> None:
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match="needs a target"):
        sweep(model, Batch(NAMES, batch.inputs, batch.present, None, batch.keys))
    with pytest.raises(ValueError, match=r"got \('text', 'image', 'sound'\)"):
        sweep(model, Batch(("text", "image", "sound"), batch.inputs, batch.present, batch.target, batch.keys))
    with pytest.raises(ValueError, match=r"\(S, 3\), got \(1, 2\)"):
        sweep(model, batch, subsets=[[True, True]])
    with pytest.raises(ValueError, match="empty one at row 1"):
        sweep(model, batch, subsets=[[True, True, True], [False] * 3])
    nobody = batch.rows(torch.arange(0))
    for predictor in (model, Fixed()):
        with pytest.raises(ValueError, match="at least one row"):
            sweep(predictor, nobody)


def test_many_modalities_are_swept_on_sampled_subsets() -> None:
    names = tuple("abcdefgh")
    g = torch.Generator().manual_seed(0)
    batch = Batch(
        names,
        {n: torch.randn(N, D, generator=g) for n in names},
        torch.rand(N, 8, generator=g) < 0.8,
        torch.randint(0, C, (N,), generator=g),
        torch.arange(N),
    )
    layer = FUSIONS["concat"](names, embed_dim=D)
    model = FusionModel({n: nn.Identity() for n in names}, layer, ClassificationHead(layer.out_dim, C))
    swept = sweep(model, batch)
    assert len(swept.subsets) == 63
    out = records(swept, "classification")
    assert out[-1]["subset"] == "a+b+c+d+e+f+g+h"
    curve = table.drop_curve(swept, "classification", [0.0, 0.5])
    own = own_record(swept, "classification")
    assert curve[0]["nll"] == pytest.approx(own["nll"])  # every row is there, listed pattern or not
    assert curve[1]["nll"] != pytest.approx(own["nll"])
