"""Checkpoints: one safetensors file with model, optimiser and counters, written in one atomic step.

A process killed while it writes leaves the previous file whole. There is no random state in the file: every draw of a
run is keyed (``data/keyed.py``), so weights, moments and the step number say everything.
"""

import errno
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from polyfuse.errors import UserError

BEST, LAST, METRICS = "checkpoints/best.safetensors", "checkpoints/last.safetensors", "metrics.jsonl"
_FORMAT = 1
_TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        tensors: By name: ``model.<name>``, ``optimizer.<parameter number>.<name>``, ``loop.<name>``.
        state: JSON-able counters and settings.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under ``prefix.``, without it."""
        head = f"{prefix}."
        return {name.removeprefix(head): tensor for name, tensor in self.tensors.items() if name.startswith(head)}


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write to a sibling file, flush it to the disk, and rename it over ``path``.

    Raises:
        OSError: If the disk is full or refuses; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    metadata = {"polyfuse": json.dumps({"format": _FORMAT, **state}, allow_nan=True)}
    try:
        save_file(_own_storage(tensors), temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except SafetensorError as error:  # how the format reports a full disk; an OSError is one to every caller
        raise OSError(errno.EIO, f"the checkpoint cannot be written ({error})", str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporary(folder: Path) -> None:
    """Delete the half-written files of processes that were killed."""
    for whole in (folder / BEST, folder / LAST):
        for path in whole.parent.glob(f".{whole.name}.*{_TEMPORARY}"):
            path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that ``write_checkpoint`` wrote; tensors on the CPU.

    Raises:
        UserError: If the file is missing, damaged or of another kind.
    """
    return _read(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})


def read_state(path: Path) -> dict[str, Any]:
    """The counters and settings of a file that ``write_checkpoint`` wrote, without its tensors.

    Raises:
        UserError: As of ``read_checkpoint``.
    """
    return _read(path, lambda _: {}).state


def _read(path: Path, tensors_of: Callable[[Any], dict[str, Tensor]]) -> Checkpoint:
    if not path.is_file():
        raise UserError(f"no checkpoint at '{path}'; train first, or give the folder of a run")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = tensors_of(file)
            state = json.loads((file.metadata() or {}).get("polyfuse", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"'{path}' is not a readable checkpoint ({error}); delete it and train again") from None
    if not isinstance(state, dict) or state.pop("format", None) != _FORMAT:
        raise UserError(f"'{path}' is not a polyfuse checkpoint of format {_FORMAT}")
    return Checkpoint(tensors, state)


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model's state dict as ``model.<name>`` tensors, and its entries that are not tensors (JSON-able)."""
    tensors, extra = {}, {}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            tensors[f"model.{name}"] = value
        else:
            extra[name] = value
    return tensors, extra


def load_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights of ``checkpoint`` into ``model``; every name and shape must agree.

    Raises:
        UserError: If they do not: the checkpoint is of another model.
    """
    try:
        model.load_state_dict({**checkpoint.part("model"), **checkpoint.state.get("extra", {})})
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the checkpoint does not fit this model: {reason[:600]}") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every moment as ``optimizer.<parameter number>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{number}.{name}": value if isinstance(value, Tensor) else torch.tensor(float(value))
        for number, entry in state.items()
        for name, value in entry.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put the moments of ``checkpoint`` into ``optimizer``, in memory of its own."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in checkpoint.part("optimizer").items():
        number, _, name = path.partition(".")
        # A copy is aligned as torch allocates; a slice of the file need not be, and kernels may round differently.
        state.setdefault(int(number), {})[name] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def last_checkpoint(run_dir: Path | None, resume: bool) -> Path | None:
    """The checkpoint to go on from; None = begin.

    Raises:
        UserError: If the folder holds a run that is not to be resumed: nothing writes over it.
    """
    if run_dir is None or not (run_dir / LAST).exists():
        return None
    if not resume:
        raise UserError(f"'{run_dir}' holds a run already; resume it or choose another folder")
    return run_dir / LAST


def warn_of_other_bits(saved: Mapping[str, Any], processes: int) -> None:
    """Say where a resumed run has other threads or processes than its checkpoint: sums are rounded differently."""
    for name, then, now in (
        ("threads", saved["threads"], torch.get_num_threads()),
        ("processes", saved["fingerprint"]["processes"], processes),
    ):
        if then != now:
            warnings.warn(
                f"resuming with {now} {name} a run begun with {then}: results may differ in the last bits",
                stacklevel=3,
            )


def take_up_metrics(run_dir: Path, size: int) -> list[dict[str, Any]]:
    """Make the folder ready to be written: no half-written file, ``metrics.jsonl`` of ``size`` as at the checkpoint.

    Returns:
        The records that remain in ``metrics.jsonl``.
    """
    (run_dir / LAST).parent.mkdir(parents=True, exist_ok=True)
    clear_temporary(run_dir)
    return cut_metrics(run_dir / METRICS, size)


def cut_metrics(path: Path, size: int) -> list[dict[str, Any]]:
    """Cut ``metrics.jsonl`` back to its ``size`` at the checkpoint, and return the records that remain."""
    if not path.exists():
        path.touch()
    if path.stat().st_size > size:
        os.truncate(path, size)
    return read_metrics(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append_metrics(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line to ``metrics.jsonl``."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two of which share memory: the format refuses tied weights."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage().data_ptr()
        if storage in seen or own.untyped_storage().nbytes() != own.numel() * own.element_size():
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        result[name] = own
    return result
