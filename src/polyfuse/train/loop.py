"""The training loop: resumable to the same bits, the same result on any number of processes.

Nothing in it is random but what ``data/keyed.py`` draws, so a checkpoint is weights, moments
and the number of the step.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyfuse.data.augment import strengthen
from polyfuse.data.batch import Batch
from polyfuse.data.keyed import seed_of
from polyfuse.errors import UserError
from polyfuse.train.checkpoint import (
    BEST,
    LAST,
    METRICS,
    append_metrics,
    last_checkpoint,
    load_model,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
    read_checkpoint,
    take_up_metrics,
    warn_of_other_bits,
    write_checkpoint,
)
from polyfuse.train.devices import Device, FabricDevice, PlainDevice, freeze_modes
from polyfuse.train.interrupt import Interrupt
from polyfuse.train.loop_parts import FitResult, State, fingerprint
from polyfuse.train.objective import Objective, class_weight
from polyfuse.train.progress import Bar
from polyfuse.train.recipe import Recipe, active
from polyfuse.train.schedule import evaluation_steps, learning_rate, make_optimizer, set_learning_rate
from polyfuse.train.stream import Masking, Step, Stream
from polyfuse.train.validation import SubsetLoss

if TYPE_CHECKING:
    from polyfuse.config import TrainConfig


def fit(
    model: nn.Module,
    train: Batch,
    validation: Batch | None,
    config: "TrainConfig",
    *,
    task: str,
    masking: Masking | Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    run_dir: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    fabric: Any = None,
) -> FitResult:
    """Train ``model`` in place and leave its best weights in it.

    Args:
        model: A ``FusionModel``; parameters that do not require a gradient stay as they are.
        train: Training rows with targets.
        validation: Rows for early stopping and for the choice of the best weights; None or no rows: the last are kept.
        config: The loop's settings.
        task: Of ``task_loss``.
        masking: Modality dropout and corruption (``ModelConfig.masking()``); None = neither.
        classes: Class or label names, for ``config.class_weights`` by name.
        run_dir: Folder for checkpoints and ``metrics.jsonl``; None writes nothing.
        resume: Go on from ``run_dir``'s last checkpoint, if there is one.
        progress: Show progress on stderr.
        fabric: A launched Fabric (``make_fabric``); None = one process on the CPU.

    Raises:
        UserError: If ``run_dir`` holds a run and ``resume`` is off, if its checkpoint belongs to other settings or
            data, or if the loss stops being a number.
        KeyboardInterrupt: On Ctrl-C, after the step in hand is done and a checkpoint is written.
        SystemExit: On SIGTERM, likewise.
    """
    if train.target is None or len(train) == 0:
        raise UserError("training needs rows with a target, got none")
    recipe = config.recipe
    if recipe.weak is not None:
        train = strengthen(train, recipe.weak, recipe.weak_method, recipe.weak_amount, task, config.seed)
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = PlainDevice(config.precision) if fabric is None else FabricDevice(fabric)
    home = next(model.parameters()).device
    chosen = masking if isinstance(masking, Masking) else Masking(**(masking or {}))
    try:
        with torch.random.fork_rng(devices=[device.device] if device.device.type == "cuda" else []):
            loop = _Loop(model, train, validation, config, task, chosen, classes, run_dir, device)
            loop.open(resume)
            return loop.run(progress)
    finally:
        model.eval()
        model.to(home)
        torch.set_num_threads(threads)


class _Loop:
    """One run. ``open`` finds where it stands, ``run`` brings it to the end."""

    def __init__(
        self,
        model: nn.Module,
        train: Batch,
        validation: Batch | None,
        config: "TrainConfig",
        task: str,
        masking: Masking,
        classes: Sequence[str],
        run_dir: Path | None,
        device: Device,
    ) -> None:
        self.model, self.config, self.device, self.run_dir = model, config, device, run_dir
        shard: dict[str, Any] = {"rank": device.rank, "world_size": device.world_size, "device": device.device}
        self.stream = Stream(
            train, config.batch_size, accumulate=config.accumulate, masking=masking, seed=config.seed, **shard
        )
        self.total = config.steps or config.epochs * self.stream.steps_per_epoch
        self.stream.epochs = self.total / self.stream.steps_per_epoch
        self.moments = evaluation_steps(self.total, config.evaluations)
        self.validate = SubsetLoss(validation, task, **shard) if validation is not None and len(validation) else None
        assert train.target is not None  # noqa: S101 - fit refuses it
        weight = self._class_weight(train, task, classes)
        self.objective = Objective(task, weight, getattr(model, "fusion", None), config.entropy_weight)
        self.recipe = self._recipe(train, validation, masking, classes) if active(config.recipe) else None
        trained = model if self.recipe is None else self.recipe.network
        self.optimizer, _ = make_optimizer(trained, config.lr, config.weight_decay, fused=device.fused_optimizer)
        # Of this process: task loss since the last evaluation; what the fusion dropped since the start, of how many.
        self.sums = torch.zeros(3, dtype=torch.float64, device=device.device)
        self.state = State()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None
        self.fingerprint = fingerprint(config, masking, task, train, device.world_size)
        ramps: list[Any] = [getattr(module, "set_progress", None) for module in model.modules()]
        self.set_progress: Callable[[float], Any] | None = next(filter(callable, ramps), None)  # the outermost

    def _class_weight(self, train: Batch, task: str, classes: Sequence[str]) -> Tensor | None:
        if self.config.class_weights is None or train.target is None:
            return None
        first = train.rows(torch.zeros(1, dtype=torch.int64))
        with torch.no_grad():
            outputs = self.model.cpu().eval()(first.inputs, first.present).logits.shape[1]
        weight = class_weight(self.config.class_weights, task, train.target, classes, outputs)
        return None if weight is None else weight.to(self.device.device)

    def _recipe(self, train: Batch, validation: Batch | None, masking: Masking, classes: Sequence[str]) -> Recipe:
        config, blend = self.config, None
        balance = config.recipe.balance
        if balance in ("ogm_ge", "mmpareto") and (self.device.world_size > 1 or config.accumulate > 1):
            raise UserError(
                f"train.recipe.balance={balance} needs the whole batch in one pass of one process, got "
                f"{self.device.world_size} processes and train.accumulate={config.accumulate}"
            )
        self.model.cpu()
        if balance == "g_blend":
            from polyfuse.train.blend import blend_trial  # it trains, with fit

            blend = blend_trial(self.model, train, validation, config, self.objective.task, masking, classes)
        row = train.rows(torch.zeros(1, dtype=torch.int64))
        return Recipe(config.recipe, self.model, self.objective, config.seed, row, blend)

    def open(self, resume: bool) -> None:
        """Take up the last checkpoint, or begin; refuse to write over a run."""
        last = last_checkpoint(self.run_dir, resume)
        self.module, self.wrapped_optimizer = self.device.setup(
            self.model if self.recipe is None else self.recipe.network, self.optimizer
        )
        size = 0 if last is None else self._restore(last)
        self.device.barrier()  # no process may write before all have looked
        if self.run_dir is not None and self.device.rank == 0:
            self.history = take_up_metrics(self.run_dir, size)

    def run(self, progress: bool) -> FitResult:
        """Train to the end, or to early stopping."""
        state, config = self.state, self.config
        started, saved = time.perf_counter() - state.seconds, time.perf_counter()
        bar = Bar(self.total, state.step, enabled=progress and self.device.rank == 0)
        with Interrupt(self.run_dir is not None) as interrupt, bar:
            freeze_modes(self.model)
            for step in self._steps():
                self._train(step)
                state.step += 1
                now = time.perf_counter()
                state.seconds = now - started
                due = state.step in self.moments
                if due:
                    bar.evaluated(self._evaluate())
                else:
                    bar.step(state.step, self.sums[0], state.rows)
                wanted = config.checkpoint_steps is not None and state.step % config.checkpoint_steps == 0
                if due or wanted or interrupt.asked or now - saved > config.checkpoint_seconds:
                    self._save()
                    saved = time.perf_counter()
                if interrupt.asked and not state.finished:
                    interrupt.end()
                state.seconds = time.perf_counter() - started
        return self._finish()

    def _steps(self) -> Iterator[Step]:
        while self.state.step < self.total and not self.state.finished:
            epoch, start = divmod(self.state.step, self.stream.steps_per_epoch)
            for step in self.stream.epoch(epoch, start):
                yield step
                if self.state.step >= self.total or self.state.finished:
                    return

    def _train(self, step: Step) -> None:
        """One optimiser step. Sums over rows, divided by the rows of all processes: uneven shares weigh by rows."""
        device, config, number = self.device, self.config, self.state.step
        seed = seed_of(config.seed, "step", number, device.rank)  # for nn.Dropout and fusions that draw
        if device.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        set_learning_rate(self.optimizer, learning_rate(number, self.total, config.lr, config.warmup))
        if self.set_progress is not None:
            self.set_progress(min(1.0, number / (config.ramp * self.total)) if config.ramp > 0 else 1.0)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        scale = device.world_size / step.rows  # processes average their gradients
        for i, part in enumerate(step.passes, start=1):
            target = part.batch.target
            assert target is not None  # noqa: S101 - fit refuses it
            with device.no_sync(self.module, i < len(step.passes)):
                with device.autocast():
                    if self.recipe is None:
                        output = self.module(part.batch.inputs, part.batch.present)
                        loss, task_sum = self.objective(output, target)
                    else:
                        loss, task_sum, output = self.recipe(
                            self.module, part.batch, part.available, number, number / self.total
                        )
                if self.recipe is None:
                    device.backward(loss * (part.weight * scale))
                else:
                    self.recipe.backward(device, loss, part.weight * scale)
            if part.weight:
                self.sums[0] += task_sum
                self.state.rows += len(part.batch)
                drop = output.info.get("drop")
                if drop is not None:
                    self.sums[1] += drop[: len(part.batch)].sum()  # of the first pass
                    self.sums[2] += part.batch.present.sum()
        if config.clip is not None:
            device.clip(self.module, self.wrapped_optimizer, config.clip)
        device.step(self.wrapped_optimizer)

    def _evaluate(self) -> dict[str, Any]:
        """Losses over all processes, the best weights, early stopping, one line of metrics."""
        state = self.state
        record: dict[str, Any] = {
            "step": state.step,
            "epoch": state.step / self.stream.steps_per_epoch,
            "learning_rate": learning_rate(state.step - 1, self.total, self.config.lr, self.config.warmup),
        }
        mine = torch.stack([self.sums[0], torch.tensor(state.rows, dtype=torch.float64, device=self.device.device)])
        if self.validate is not None:
            self.model.eval()
            mine = torch.cat([mine, self.validate.sums(self.model, self.device.autocast())])
            freeze_modes(self.model)
        everyone = self.device.total(mine).cpu()
        record["train_loss"] = (everyone[0] / everyone[1]).item()
        self.sums[0], state.rows = 0.0, 0
        if self.validate is not None:
            record |= self.validate.reduce(everyone[2:])
        self._judge(record)
        record["seconds"] = round(state.seconds, 3)
        self.history.append(record)
        if self.run_dir is not None and self.device.rank == 0:
            append_metrics(self.run_dir / METRICS, record)
        return record

    def _judge(self, record: dict[str, Any]) -> None:
        """Keep the weights if they are the best so far; stop if there was no better for too long."""
        state = self.state
        loss = record.get("validation_loss", record["train_loss"])
        broken = not math.isfinite(loss) or (self.device.fused_optimizer and not math.isfinite(record["train_loss"]))
        if broken:
            raise UserError(
                f"at step {state.step} the loss is {record['train_loss']}, on validation "
                f"{record.get('validation_loss')}; lower train.lr (now {self.config.lr}) or look for "
                "extreme values in the inputs"
            )
        # Without validation rows the last weights are the answer.
        better = self.validate is None or loss < state.best
        state.stale = 0 if better else state.stale + 1
        patience = self.config.patience
        state.finished = state.step >= self.total or (patience is not None and state.stale >= patience)
        if not better:
            return
        state.best, state.best_step = loss, state.step
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        self.best = {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in self.model.state_dict().items()
            if name not in frozen
        }
        if self.run_dir is not None and self.device.rank == 0:
            tensors, extra = model_tensors(self.model)
            write_checkpoint(self.run_dir / BEST, tensors, {"extra": extra, "step": state.step, "loss": loss})

    def _save(self) -> None:
        """Write the last checkpoint. A loss that is not finite is left for the next evaluation to report."""
        if self.run_dir is None or self.device.rank != 0 or not bool(self.sums.isfinite().all()):
            return
        tensors, extra = model_tensors(self.model)
        tensors |= optimizer_tensors(self.optimizer) | {"loop.sums": self.sums}
        if self.recipe is not None:
            tensors |= self.recipe.tensors()
        metrics = self.run_dir / METRICS
        state = {
            "extra": extra,
            "counters": asdict(self.state),
            "scaler": self.device.scaler_state(),
            "fingerprint": self.fingerprint,
            "threads": torch.get_num_threads(),
            "metrics_size": metrics.stat().st_size if metrics.exists() else 0,
        }
        write_checkpoint(self.run_dir / LAST, tensors, state)

    def _restore(self, last: Path) -> int:
        """Take over weights, moments and counters; return the size of ``metrics.jsonl`` at that moment."""
        checkpoint = read_checkpoint(last)
        saved = checkpoint.state
        for key, now in self.fingerprint.items():
            then = saved["fingerprint"].get(key)
            if then != now and key != "processes":
                raise UserError(f"cannot resume '{self.run_dir}': {key} was {then}, is now {now}; start a new run")
        warn_of_other_bits(saved, self.device.world_size)
        load_model(self.model, checkpoint)
        load_optimizer(self.optimizer, checkpoint)
        if self.recipe is not None:
            self.recipe.load(checkpoint.part("recipe"))
        self.device.load_scaler_state(saved["scaler"])
        self.state = State(**saved["counters"])
        if self.device.rank == 0:
            self.sums.copy_(checkpoint.tensors["loop.sums"])
        else:  # the file holds the first process's share of the running means
            self.state.rows = 0
        return int(saved["metrics_size"])

    def _finish(self) -> FitResult:
        """Put the best weights in place and sum up."""
        state, per_epoch = self.state, self.stream.steps_per_epoch
        self.device.barrier()  # the first process has written the best weights
        if self.best is not None:
            self.model.load_state_dict(self.best, strict=False)
        elif self.run_dir is not None:
            load_model(self.model, read_checkpoint(self.run_dir / BEST))
        return FitResult(
            best_metric=state.best if self.validate is not None else math.nan,
            best_epoch=-(-state.best_step // per_epoch),
            best_step=state.best_step,
            steps=state.step,
            seconds=state.seconds,
            history=self.history,
            realised_drop_rate=self._drop_rate(),
            stopped_early=state.step < self.total,
        )

    def _drop_rate(self) -> float:
        """What the loop hid (counted anew: its draws are keyed), and of the rest what the fusion hid."""
        dropped = offered = 0
        if self.stream.masking.modality_dropout > 0:
            epochs, rest = divmod(self.state.step, self.stream.steps_per_epoch)
            for epoch in range(epochs + (rest > 0)):
                counts = self.stream.drop_counts(epoch, rest if epoch == epochs else self.stream.steps_per_epoch)
                dropped, offered = dropped + counts[0], offered + counts[1]
        loop = dropped / max(offered, 1)
        fusion_dropped, fusion_offered = self.device.total(self.sums[1:]).tolist()
        return 1.0 - (1.0 - loop) * (1.0 - fusion_dropped / max(fusion_offered, 1.0))
