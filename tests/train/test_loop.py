import contextlib
import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyfuse.config import PLAIN, ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.errors import UserError
from polyfuse.models.fusion_model import FusionModel
from polyfuse.train import loop as module
from polyfuse.train.build import build_model
from polyfuse.train.checkpoint import BEST, LAST, read_checkpoint
from polyfuse.train.loop import FitResult, fit
from polyfuse.train.schedule import learning_rate
from polyfuse.train.stream import Masking, Stream
from polyfuse.train.validation import SubsetLoss

NAMES = ("a", "b", "c")
SPECS = {name: ModalitySpec(name, "vector", {"width": 5}) for name in NAMES}
TARGETS = {
    "classification": TargetSpec("classification", ("x", "y", "z")),
    "multilabel": TargetSpec("multilabel", ("x", "y")),
    "regression": TargetSpec("regression"),
}


def make_table(rows: int, seed: int = 0, task: str = "classification") -> Batch:
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (rows,), generator=g)
    direction = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(99))
    inputs: dict[str, Any] = {n: torch.randn(rows, 5, generator=g) + direction[m][label] for m, n in enumerate(NAMES)}
    present = torch.rand(rows, 3, generator=g) > 0.2
    target = {
        "classification": label,
        "multilabel": torch.stack([label == 0, label != 2], dim=1).float(),
        "regression": label.float() - 1.0,
    }[task]
    return Batch(NAMES, inputs, present, target, torch.arange(rows) * 3)


def make_model(task: str = "classification", **settings: Any) -> FusionModel:
    config = ModelConfig(**{"fusion": "concat", "embed_dim": 5, "hidden": 7, "dropout": 0.0, **settings})
    return build_model(SPECS, TARGETS[task], config, encoders={name: nn.Identity() for name in NAMES})


def run(
    model: nn.Module, *, rows: int = 53, validation: bool = True, task: str = "classification", **more: Any
) -> FitResult:
    keys = {"masking", "classes", "run_dir", "resume", "progress", "fabric"}
    given = {k: v for k, v in more.items() if k not in keys}
    settings = {"epochs": 3, "batch_size": 8, "evaluations": 4, "recipe": PLAIN, **given}
    held = make_table(29, 1, task) if validation else None
    rest = {k: v for k, v in more.items() if k in keys}
    return fit(model, make_table(rows, 0, task), held, TrainConfig(**settings), task=task, **rest)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_parameters()}


def test_equals_a_loop_written_by_hand() -> None:
    """AdamW of torch without its fused kernel, the formulas of rate and decay, the same rows and masks."""
    model, mine = make_model(), make_model()
    config = {"lr": 0.01, "weight_decay": 0.3, "warmup": 0.25, "clip": 0.5, "patience": None, "seed": 4}
    masking = Masking(0.5, corruption=0.3)
    run(model, masking=masking, validation=False, **config)

    decayed = [p for n, p in mine.named_parameters() if p.ndim > 1 and "token" not in n]
    plain = [p for n, p in mine.named_parameters() if p.ndim < 2 or "token" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}], foreach=False
    )
    stream = Stream(make_table(53), 8, masking=masking, seed=4)
    for epoch in range(3):
        for step in stream.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * 7 + step.number, 21, 0.01, 0.25)
            batch = step.passes[0].batch
            optimizer.zero_grad()
            F.cross_entropy(mine(batch.inputs, batch.present).logits, batch.target).backward()
            nn.utils.clip_grad_norm_(mine.parameters(), 0.5)
            optimizer.step()
    for name, value in weights(mine).items():
        torch.testing.assert_close(dict(model.named_parameters())[name], value, rtol=1e-4, atol=2e-6)


def test_passes_of_a_step_add_up() -> None:
    one, many = make_model(), make_model()
    run(one, lr=0.01, validation=False)
    run(many, lr=0.01, validation=False, accumulate=3)
    for name, value in weights(one).items():
        torch.testing.assert_close(dict(many.named_parameters())[name], value, rtol=1e-4, atol=1e-5)


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    results = []
    for seed in (1, 2):
        model = make_model(fusion="aecf", dropout=0.4)
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        run(model, masking=Masking(0.3, corruption=0.2))
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append(weights(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_another_seed_is_another_run() -> None:
    a, b = make_model(), make_model()
    run(a, seed=0), run(b, seed=1)
    assert not torch.equal(weights(a)["head.layers.0.weight"], weights(b)["head.layers.0.weight"])


def test_the_best_weights_are_left_in_the_model(tmp_path: Path) -> None:
    model = make_model()
    result = run(model, lr=0.3, epochs=8, evaluations=20, patience=None, run_dir=tmp_path)  # too fast: it gets worse
    losses = [record["validation_loss"] for record in result.history]
    assert result.best_metric == min(losses) < losses[-1]
    assert result.history[losses.index(min(losses))]["step"] == result.best_step
    assert result.best_epoch == math.ceil(result.best_step / 7)
    assert not model.training
    table = SubsetLoss(make_table(29, 1), "classification")
    now = table.reduce(table.sums(model, contextlib.nullcontext()))
    assert now["validation_loss"] == result.best_metric
    stored = read_checkpoint(tmp_path / BEST).part("model")
    assert all(torch.equal(stored[name], value) for name, value in weights(model).items())


def test_training_stops_when_validation_does_not_improve() -> None:
    result = run(make_model(), lr=0.3, epochs=30, evaluations=50, patience=3)
    assert result.stopped_early
    assert result.steps < 30 * 7
    losses = [record["validation_loss"] for record in result.history]
    assert len(losses) - 1 - losses.index(min(losses)) == 3
    assert not run(make_model(), patience=None).stopped_early


@pytest.mark.parametrize("task", sorted(TARGETS))
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_task_learns(task: str, precision: str) -> None:
    result = run(make_model(task), task=task, precision=precision, lr=0.02, epochs=12, masking=Masking(0.3))
    assert result.history[-1]["validation_loss_complete"] < result.history[0]["validation_loss_complete"] - 0.1


def test_without_validation_the_last_weights_stay(tmp_path: Path) -> None:
    model = make_model()
    result = run(model, validation=False, run_dir=tmp_path)
    assert math.isnan(result.best_metric)
    assert result.best_step == result.steps == 21
    last = read_checkpoint(tmp_path / LAST).part("model")
    assert all(torch.equal(last[name], value) for name, value in weights(model).items())


def test_steps_replace_epochs() -> None:
    result = run(make_model(), steps=10)
    assert result.steps == 10
    assert result.history[-1]["step"] == 10


def test_frozen_parts_stay_as_they_are() -> None:
    specs = {**SPECS, "a": ModalitySpec("a", "vector", {"width": 5})}
    frozen = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)).requires_grad_(False)
    modes = []
    frozen[1].register_forward_pre_hook(lambda layer, _: modes.append(layer.training))
    model = build_model(
        specs,
        TARGETS["classification"],
        ModelConfig(fusion="concat", embed_dim=5),
        encoders={"a": frozen, "b": nn.Identity(), "c": nn.Identity()},
    )
    before = weights(frozen)
    run(model, weight_decay=0.5)
    assert modes
    assert not any(modes)
    assert all(torch.equal(before[name], value) for name, value in weights(frozen).items())


def test_metrics_are_written_and_returned(tmp_path: Path) -> None:
    result = run(make_model(), run_dir=tmp_path / "new" / "folder")
    lines = (tmp_path / "new" / "folder" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert [record["step"] for record in result.history] == [5, 10, 16, 21]
    assert set(result.history[0]) == {
        "step", "epoch", "learning_rate", "train_loss", "validation_loss", "validation_loss_complete", "seconds"
    }  # fmt: skip
    assert result.seconds > result.history[-1]["seconds"] - 1e-3  # rounded to milliseconds


def test_train_loss_is_the_mean_over_rows_since_the_last_evaluation() -> None:
    model = make_model()
    untouched = F.cross_entropy(model(make_table(53).inputs, make_table(53).present).logits, make_table(53).target)
    result = run(model, lr=1e-12, epochs=2, evaluations=2)
    assert [r["train_loss"] for r in result.history] == pytest.approx([untouched.item()] * 2, abs=1e-5)


def test_the_realised_drop_rate_counts_loop_and_fusion() -> None:
    assert run(make_model()).realised_drop_rate == 0.0
    table = make_table(53)
    masking = Masking(0.5)
    by_loop = run(make_model(), masking=masking, patience=None).realised_drop_rate
    stream = Stream(table, 8, masking=masking)
    hidden = sum(int((table.present & ~stream.presence(epoch)).sum()) for epoch in range(3))
    assert by_loop == pytest.approx(hidden / (3 * int(table.present.sum())))
    aecf = {"fusion": "aecf", "fusion_args": {"policy": "uniform", "target_rate": 0.4}}
    by_fusion = run(make_model(**aecf), patience=None, epochs=20).realised_drop_rate
    assert 0.15 < by_fusion < 0.45  # rows with one input lose none
    both = run(make_model(**aecf), masking=masking, patience=None, epochs=20).realised_drop_rate
    assert both > max(by_loop, by_fusion)


@pytest.mark.parametrize(("ramp", "expected"), [(0.0, [1.0, 1.0, 1.0, 1.0]), (0.5, [0.0, 0.5, 1.0, 1.0])])
def test_a_fusion_with_a_curriculum_is_told_how_far_the_run_is(
    monkeypatch: pytest.MonkeyPatch, ramp: float, expected: list[float]
) -> None:
    model, told = make_model(fusion="aecf"), []
    monkeypatch.setattr(type(model.fusion), "set_progress", lambda self, progress: told.append(progress))
    run(model, steps=4, ramp=ramp)
    assert told == expected


def test_class_weights_and_entropy_weight_change_the_training() -> None:
    plain, weighted, entropic = (make_model(fusion="aecf") for _ in range(3))
    run(plain, lr=0.05)
    run(weighted, lr=0.05, class_weights={"x": 9.0}, classes=TARGETS["classification"].classes)
    run(entropic, lr=0.05, entropy_weight=5.0)
    table = make_table(29, 1)
    share = [m(table.inputs, table.present).logits.softmax(1)[:, 0].mean().item() for m in (plain, weighted)]
    assert share[1] > share[0] + 0.03
    assert not torch.equal(weights(plain)["head.layers.0.weight"], weights(entropic)["head.layers.0.weight"])


def test_a_loss_that_is_no_number_is_reported(tmp_path: Path) -> None:
    table = make_table(53)
    table.inputs["a"][:] = 1e38
    with pytest.raises(UserError, match=r"at step \d+ the loss is nan.*lower train\.lr \(now 0\.002\)"):
        fit(make_model(), table, make_table(9), TrainConfig(epochs=2), task="classification", run_dir=tmp_path)
    assert not (tmp_path / LAST).exists()


@pytest.mark.parametrize("rows", [0, 5])
def test_rows_without_a_target_are_refused(rows: int) -> None:
    table = make_table(5).rows(torch.arange(rows))
    table = table if rows == 0 else Batch(NAMES, table.inputs, table.present, None, table.keys)
    with pytest.raises(UserError, match="training needs rows with a target, got none"):
        fit(make_model(), table, None, TrainConfig(), task="classification")


def test_progress_is_a_line_per_evaluation_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    run(make_model(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 4
    assert err.splitlines()[-1].startswith("step 21/21  loss ")
    run(make_model(), progress=True, validation=False)
    assert "validation -" in capsys.readouterr().err


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("polyfuse.train.progress._REFRESH_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    run(make_model(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "21/21" in err
    assert "steps/s" in err


def test_ctrl_c_without_a_folder_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original = module._Loop._train

    def train(self: Any, step: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(self, step)

    monkeypatch.setattr(module._Loop, "_train", train)
    with pytest.raises(KeyboardInterrupt):
        run(make_model())


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    original = module._Loop._train

    def train(self: Any, step: Any) -> None:
        if self.state.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not reached")
        original(self, step)

    monkeypatch.setattr(module._Loop, "_train", train)
    with pytest.raises(KeyboardInterrupt):
        run(make_model(), run_dir=tmp_path)
    assert read_checkpoint(tmp_path / LAST).state["counters"]["step"] == 5
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(run(make_model(), run_dir=tmp_path)))
    thread.start()
    thread.join()
    assert results[0].steps == 21


def test_threads_are_put_back() -> None:
    now = torch.get_num_threads()
    seen: list[int] = []
    model = make_model()
    model.fusion.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    run(model, threads=now + 1)
    assert set(seen) == {now + 1}
    assert torch.get_num_threads() == now


def test_a_checkpoint_is_written_after_some_seconds(tmp_path: Path) -> None:
    saved: list[int] = []
    original = module._Loop._save

    def save(self: Any) -> None:
        saved.append(self.state.step)
        original(self)

    module._Loop._save = save
    try:
        run(make_model(), run_dir=tmp_path, checkpoint_seconds=1e-9, evaluations=1)
    finally:
        module._Loop._save = original
    assert saved == list(range(1, 22))
