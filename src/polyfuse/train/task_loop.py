"""The training loop of vision and language tasks: several objectives, each on rows of its own, one model.

As ``train/loop.py``, nothing in it is random but what ``data/keyed.py`` draws: a checkpoint is weights, moments and
the number of the step.
"""

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from polyfuse.data.keyed import seed_of
from polyfuse.errors import UserError
from polyfuse.tasks.batch import TaskBatch
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import Objective
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
from polyfuse.train.devices import freeze_modes
from polyfuse.train.interrupt import Interrupt
from polyfuse.train.progress import Bar
from polyfuse.train.schedule import evaluation_steps, learning_rate, set_learning_rate
from polyfuse.train.task_devices import Alone, Replicas, device_of, full, put
from polyfuse.train.task_layers import checkpointed, task_groups
from polyfuse.train.task_parts import LoopSettings, State, Task, TaskFit, fingerprint, visual_tokens
from polyfuse.train.task_shares import Loss, check_shares, shared_loss
from polyfuse.train.task_stream import TaskStream

__all__ = ["LoopSettings", "Task", "TaskFit", "fit_tasks", "visual_tokens"]
Validate = Callable[[TaskModel], Mapping[str, float]]


def fit_tasks(
    model: TaskModel,
    tasks: Mapping[str, Task],
    settings: LoopSettings,
    *,
    validate: Validate | None = None,
    best_by: str = "loss",
    best_is: Literal["lowest", "highest"] = "lowest",
    before_step: Callable[[int], None] | None = None,
    augment: Callable[[TaskBatch, int], TaskBatch] | None = None,
    begun: Callable[[], None] | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    fabric: Any = None,
    progress: bool = False,
) -> TaskFit:
    """Train ``model`` in place and leave its best weights in it.

    Args:
        model: With the heads of all objectives.
        tasks: By name.
        settings: The loop's settings.
        validate: Figures for the curves, on held-out rows; called in evaluation mode without gradients. None: the last
            weights are kept.
        best_by: The figure that decides which weights are best, and whether to stop.
        best_is: Whether that is the lowest or the highest.
        before_step: Called with the number of every step before it, to freeze and unfreeze parameters. A resumed run
            begins in the middle: it must set what the step needs, not only what changes there.
        augment: Changes a training batch, given the step; draws must be keyed by ``batch.keys`` and the step.
        begun: Called once, when settings and data have proved to fit, before the first step.
        run_dir: Folder for checkpoints and ``metrics.jsonl``; None writes nothing.
        resume: Go on from ``run_dir``'s last checkpoint, if there is one.
        fabric: A launched Fabric (``task_fabric``); None = one process on the CPU.
        progress: Show progress on stderr.

    Raises:
        UserError: If ``run_dir`` holds a run and ``resume`` is off, if its checkpoint belongs to other settings or
            data, or if a loss stops being a number.
        KeyboardInterrupt: On Ctrl-C, after the step in hand is done and a checkpoint is written.
        SystemExit: On SIGTERM, likewise.
    """
    threads, home = torch.get_num_threads(), next(model.parameters()).device
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = device_of(fabric, settings.precision)
    if settings.shard_parameters != device.sharded:
        raise UserError(
            "shard_parameters needs the Fabric that task_fabric makes of the same settings, under torchrun with "
            f"several processes; got shard_parameters={settings.shard_parameters} and "
            f"{'sharded' if device.sharded else 'whole'} parameters"
        )
    if device.sharded and before_step is not None:
        raise UserError("before_step works on the whole model, which shard_parameters cuts up; leave one of them out")
    try:
        with torch.random.fork_rng(devices=[device.device] if device.device.type == "cuda" else []):
            judge = _Judge(validate, best_by, 1.0 if best_is == "lowest" else -1.0)
            loop = _Loop(model, tasks, settings, judge, before_step, augment, run_dir, device)
            loop.open(resume)
            if begun is not None:
                begun()
            with checkpointed(loop.model, settings.activation_checkpointing):
                return loop.run(progress)
    finally:
        model.eval()
        model.to(home)
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Judge:
    """What decides which weights are best."""

    validate: Validate | None
    key: str
    sign: float

    def figures(self, model: TaskModel) -> dict[str, float]:
        """Of the model as it is."""
        assert self.validate is not None  # noqa: S101 - callers look
        model.eval()
        with torch.no_grad():
            found = {name: float(value) for name, value in self.validate(model).items()}
        if self.key not in found:
            raise ValueError(f"validate gave no figure '{self.key}', which is to decide; it gave: {', '.join(found)}")
        return found


class _Loop:
    """One run. ``open`` finds where it stands, ``run`` brings it to the end."""

    def __init__(
        self,
        model: TaskModel,
        tasks: Mapping[str, Task],
        settings: LoopSettings,
        judge: _Judge,
        before_step: Callable[[int], None] | None,
        augment: Callable[[TaskBatch, int], TaskBatch] | None,
        run_dir: Path | None,
        device: Alone | Replicas,
    ) -> None:
        self.whole, self.tasks, self.settings, self.judge = model, dict(tasks), settings, judge
        self.before_step, self.augment, self.run_dir, self.device = before_step, augment, run_dir, device
        self.stream = TaskStream(
            {name: task.rows for name, task in self.tasks.items()},
            {name: task.weight for name, task in self.tasks.items()},
            settings.mixing,
            batch_size=settings.batch_size,
            steps=settings.steps,
            seed=settings.seed,
        )
        self.moments = evaluation_steps(settings.steps, settings.evaluations)
        self.shares = device.world_size * settings.accumulate
        check_shares({name: task.objective for name, task in self.tasks.items()}, self.shares)
        fewest = min(min(settings.batch_size, len(task.rows)) for task in self.tasks.values())
        if fewest < self.shares:
            raise UserError(
                f"a batch of {fewest} rows cannot be cut into {self.shares} shares ({device.world_size} processes x "
                f"accumulate={settings.accumulate}); raise batch_size"
            )
        self.model = device.prepare(model)  # what is trained: the model, or a copy in parts
        groups = task_groups(self.model, settings.weight_decay, settings.layer_decay, frozen=before_step is not None)
        if not groups:
            raise ValueError("nothing in the model is trainable; unfreeze a part of it")
        self.optimizer = torch.optim.AdamW(device.groups(groups), lr=settings.lr, fused=device.fused_optimizer)
        self.wrapped = device.wrap(self.optimizer)
        # Since the last evaluation, of this process: steps of each task, and sums of its loss and figures over them.
        self.sums: dict[str, Tensor] = {}
        self.state = State()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None
        self.fingerprint = fingerprint(settings, self.tasks, device.world_size)

    def open(self, resume: bool) -> None:
        """Take up the last checkpoint, or begin; refuse to write over a run."""
        last = last_checkpoint(self.run_dir, resume)
        size = 0 if last is None else self._restore(last)
        self.device.barrier()  # no process may write before all have looked
        if self.run_dir is not None and self.device.rank == 0:
            self.history = take_up_metrics(self.run_dir, size)

    def run(self, progress: bool) -> TaskFit:
        """Train to the end, or to early stopping."""
        state, settings = self.state, self.settings
        started, saved = time.perf_counter() - state.seconds, time.perf_counter()
        bar = Bar(settings.steps, state.step, enabled=progress and self.device.rank == 0)
        with Interrupt(self.run_dir is not None) as interrupt, bar:
            freeze_modes(self.model)
            while state.step < settings.steps and not state.finished:
                self._train(state.step)
                state.step += 1
                now = time.perf_counter()
                state.seconds = now - started
                due = state.step in self.moments
                if due:
                    record = self._evaluate()
                    bar.evaluated({**record, "validation_loss": record["validation"].get(self.judge.key)})
                elif bar.enabled:
                    bar.step(state.step, *self._running())
                wanted = settings.checkpoint_steps is not None and state.step % settings.checkpoint_steps == 0
                late = now - saved > settings.checkpoint_seconds
                asked, late = self.device.agree([bool(interrupt.asked), late])
                interrupt.asked = interrupt.asked or (signal.SIGINT if asked else 0)
                if due or wanted or asked or late:
                    self._save()
                    saved = time.perf_counter()
                if interrupt.asked and not state.finished:
                    interrupt.end()
                state.seconds = time.perf_counter() - started
        return self._finish()

    def _train(self, number: int) -> None:
        """One optimiser step: one backward pass per objective, gradients added up."""
        device, settings = self.device, self.settings
        if self.before_step is not None:
            self.before_step(number)
            freeze_modes(self.model)
        seed = seed_of(settings.seed, "step", number, device.rank)  # for nn.Dropout
        if device.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        rate = learning_rate(number, settings.steps, settings.lr, settings.warmup)
        set_learning_rate(self.optimizer, rate)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        batches: dict[tuple[int, int, int], TaskBatch] = {}
        for name, turn in self.stream.turns(number):
            task = self.tasks[name]
            batch = self._batch(batches, task, name, turn, number)
            draws = task.objective.draws(batch, visual_tokens(self.model, batch), settings.seed, number)
            factor = device.loss_factor * self._weight(name)
            for share in range(settings.accumulate):
                loss, figures = self._loss(task.objective, batch, draws, share)
                if loss.requires_grad:  # not where all it would train is frozen
                    device.backward(loss * factor)
                self._count(name, {"loss": loss.detach(), **figures}, first=share == 0)
        device.add_gradients(self.optimizer)
        if settings.clip is not None:
            device.clip(self.model, self.wrapped, settings.clip)
        device.step(self.wrapped)

    def _loss(self, objective: Objective, batch: TaskBatch, draws: Mapping[str, Tensor], share: int) -> Loss:
        """Of this process and pass."""
        device, passes = self.device, self.settings.accumulate

        def compute() -> Loss:
            with device.autocast():
                if self.shares == 1:
                    return objective.loss(self.model, batch, draws)
                part = device.rank * passes + share
                return shared_loss(objective, self.model, batch, draws, part=part, parts=self.shares, passes=passes)

        return device.call(compute)

    def _batch(
        self, batches: dict[tuple[int, int, int], TaskBatch], task: Task, name: str, turn: int, number: int
    ) -> TaskBatch:
        """The task's rows; made once for tasks that share them."""
        key = (id(task.collate), id(task.rows), turn)
        if key not in batches:
            batch = task.collate(self.stream.rows(name, turn)).to(self.device.device)
            batches[key] = batch if self.augment is None else self.augment(batch, number)
        return batches[key]

    def _count(self, name: str, figures: Mapping[str, Tensor], *, first: bool) -> None:
        lead = first and self.device.rank == 0  # of the shares of a step, one counts it
        for figure, value in {"steps": torch.tensor(float(lead), device=self.device.device), **figures}.items():
            key = f"{name}/{figure}"
            if key in self.sums:
                self.sums[key] += value
            else:
                self.sums[key] = value.detach().double()

    def _all_sums(self) -> dict[str, Tensor]:
        """Over all processes."""
        if not self.sums:
            return {}
        total = self.device.total(torch.stack(list(self.sums.values())))
        return dict(zip(self.sums, total.cpu().unbind(), strict=True))

    def _running(self) -> tuple[Tensor, int]:
        """Sum of the weighted losses since the last evaluation and the number of steps, for the progress bar."""
        total, steps = torch.zeros(()), 0
        if self.sums:
            steps = self.state.step - max((r["step"] for r in self.history), default=0)
            parts = [(self._weight(n), self.sums[f"{n}/loss"]) for n in self.tasks if f"{n}/loss" in self.sums]
            total = torch.stack([weight * part for weight, part in parts]).sum()
        return total, steps

    def _weight(self, name: str) -> float:
        return self.tasks[name].weight if self.settings.mixing == "sum" else 1.0

    def _evaluate(self) -> dict[str, Any]:
        """Means since the last evaluation, held-out figures, the best weights, early stopping, one line of metrics."""
        state, settings = self.state, self.settings
        objectives: dict[str, dict[str, float]] = {}
        for key, value in self._all_sums().items():
            name, _, figure = key.rpartition("/")
            objectives.setdefault(name, {})[figure] = value.item()
        total = steps = 0.0
        for name in filter(objectives.__contains__, self.tasks):
            figures = objectives[name]
            count = figures["steps"]
            total += self._weight(name) * figures["loss"]
            steps = steps + count if settings.mixing == "sample" else count
            figures.update({figure: value / count for figure, value in figures.items() if figure != "steps"})
            figures["epochs"] = self.stream.epochs(name, state.step)
        record: dict[str, Any] = {
            "step": state.step,
            "learning_rate": learning_rate(state.step - 1, settings.steps, settings.lr, settings.warmup),
            "train_loss": total / steps,
            "objectives": objectives,
            "validation": {},
        }
        self.sums = {}
        if self.judge.validate is not None:
            record["validation"] = self.device.decide(self.device.call(lambda: self.judge.figures(self.model)))
            freeze_modes(self.model)
        self._decide(record)
        record["seconds"] = round(state.seconds, 3)
        self.history.append(record)
        if self.run_dir is not None and self.device.rank == 0:
            append_metrics(self.run_dir / METRICS, record)
        return record

    def _decide(self, record: dict[str, Any]) -> None:
        """Keep the weights if they are the best so far; stop if there was no better for too long."""
        state, judge = self.state, self.judge
        figure = record["validation"].get(judge.key)
        if not math.isfinite(record["train_loss"]) or (figure is not None and not math.isfinite(figure)):
            losses = ", ".join(f"{name} {found['loss']:.4g}" for name, found in record["objectives"].items())
            raise UserError(
                f"at step {state.step} the losses are {losses}, on validation {judge.key} is {figure}; lower train.lr "
                f"(now {self.settings.lr}) or look for extreme values in the inputs"
            )
        value = 0.0 if figure is None else judge.sign * figure
        better = figure is None or value < state.best  # without validation the last weights are the answer
        state.stale = 0 if better else state.stale + 1
        patience = self.settings.patience
        state.finished = state.step >= self.settings.steps or (patience is not None and state.stale >= patience)
        if not better:
            return
        state.best, state.best_step = value, state.step
        if figure is None and not state.finished:
            return
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        kept = frozen if self.before_step is None else set()  # what was thawed once has changed
        tensors, extra = self._tensors()
        self.best = {
            name: tensor.detach().clone()
            for path, tensor in tensors.items()
            if (name := path.removeprefix("model.")) not in kept
        }
        if self.run_dir is not None and self.device.rank == 0:
            write_checkpoint(self.run_dir / BEST, tensors, {"extra": extra, "step": state.step, judge.key: figure})

    def _save(self) -> None:
        """Write the last checkpoint. A loss that is not finite is left for the next evaluation to report."""
        if self.run_dir is None:
            return
        sums = self._all_sums()
        if not all(bool(value.isfinite()) for value in sums.values()):
            return
        tensors, extra = self._tensors()
        moments = {name: full(value) for name, value in optimizer_tensors(self.optimizer).items()}
        if self.device.rank != 0:
            return
        tensors |= moments | {f"sums.{name}": value for name, value in sums.items()}
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

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All weights, put together where they are in parts."""
        tensors, extra = model_tensors(self.model)
        return {name: full(value) for name, value in tensors.items()}, extra

    def _restore(self, last: Path) -> int:
        """Take over weights, moments, counters and sums; return the size of ``metrics.jsonl`` at that moment."""
        checkpoint = read_checkpoint(last)
        saved = checkpoint.state
        theirs = saved.get("fingerprint", {})
        for key in sorted({*self.fingerprint, *theirs} - {"processes"}):
            then, now = theirs.get(key), self.fingerprint.get(key)
            if then != now:
                raise UserError(f"cannot resume '{self.run_dir}': {key} was {then}, is now {now}; start a new run")
        warn_of_other_bits(saved, self.device.world_size)
        load_model(self.whole, checkpoint)
        if self.device.sharded:
            self._scatter()
        load_optimizer(self.optimizer, checkpoint)
        if self.device.sharded:
            self._scatter_moments()
        self.device.load_scaler_state(saved.get("scaler", {}))
        self.state = State(**saved["counters"])
        share = float(self.device.rank == 0)  # the file holds the sums of all processes
        self.sums = {n: (value * share).to(self.device.device) for n, value in checkpoint.part("sums").items()}
        return int(saved["metrics_size"])

    @torch.no_grad()
    def _scatter(self) -> None:
        """The whole model's weights into the one in parts."""
        whole = self.whole.state_dict()
        for name, value in self.model.state_dict().items():
            put(value, whole[name])

    @torch.no_grad()
    def _scatter_moments(self) -> None:
        """Whole moments, as read, into parts like their parameters."""
        for parameter, entry in self.optimizer.state.items():
            for name, value in entry.items():
                if value.shape == parameter.shape and value.ndim:
                    entry[name] = torch.zeros_like(parameter)
                    put(entry[name], value)

    def _finish(self) -> TaskFit:
        """Put the best weights in place and sum up."""
        state = self.state
        self.device.barrier()  # the first process has written the best weights
        if self.best is not None:
            self.whole.load_state_dict(self.best, strict=False)
        elif self.run_dir is not None:
            load_model(self.whole, read_checkpoint(self.run_dir / BEST))
        return TaskFit(
            best_metric=math.nan if self.judge.validate is None else self.judge.sign * state.best,
            best_step=state.best_step,
            steps=state.step,
            seconds=state.seconds,
            history=self.history,
            stopped_early=state.step < self.settings.steps,
        )
