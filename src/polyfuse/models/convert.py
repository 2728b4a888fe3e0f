"""Between our names and a checkpoint's original ones: one list of rules serves both ways."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SHOWN = 10


@dataclass(frozen=True)
class Rule:
    """One of our tensors and the original one, or ones, that it is made of.

    Attributes:
        ours: Our name.
        theirs: Original names. Several are stacked on the first axis, in that order (query, key, value).
        transpose: Whether the original is the transposed matrix.
        shape: Our shape where the original's differs by axes of length 1; None = as it is.
        copies: Original names that hold the same tensor again (tied weights): checked when reading, written too.
        original_shape: The original's shape, where ``shape`` is ours: what is written.
    """

    ours: str
    theirs: tuple[str, ...]
    transpose: bool = False
    shape: tuple[int, ...] | None = None
    copies: tuple[str, ...] = ()
    original_shape: tuple[int, ...] | None = None


def rule(ours: str, *theirs: str, transpose: bool = False) -> Rule:
    """A rule for one tensor."""
    return Rule(ours, theirs, transpose)


def rules_for(ours: str, *theirs: str, bias: bool = True, transpose: bool = False) -> list[Rule]:
    """Rules for the weight and the bias of a layer: names without ``.weight``."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [
        Rule(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), transpose and kind == "weight")
        for kind in kinds
    ]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file, or from a PyTorch file without running what it pickles.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is neither, or holds something other than named tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling fails in many ways, a missing key or a forbidden class among them
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as tensors (weights_only=True): {first}") from None
    return named_tensors(found, str(path))


def named_tensors(found: Any, where: str = "the checkpoint") -> dict[str, Tensor]:
    """The tensors by name, out of the dictionary in which training scripts put them beside an optimizer's state.

    Raises:
        ValueError: If it holds something other than named tensors.
    """
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} must hold named tensors, got {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(key, str):
            raise ValueError(f"{where} must hold named tensors, got the name {key!r}")
        if not isinstance(value, Tensor):
            raise ValueError(f"{where} must hold named tensors, got {type(value).__name__} under {key!r}")
    return dict(found)


def tensors_of(source: Mapping[str, Any] | str | Path) -> dict[str, Tensor]:
    """Tensors by name from a file, or from what is in memory already."""
    return named_tensors(source) if isinstance(source, Mapping) else read_tensors(Path(source))


def one_precision(state: Mapping[str, Tensor], least: torch.dtype | None = None) -> dict[str, Tensor]:
    """All in the widest precision that one of them has, and in ``least`` at least.

    Training in mixed precision leaves matrices in half precision beside norms in full: no model runs like that.
    """
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    kinds |= set() if least is None else {least}
    if len(kinds) < 2:
        return dict(state)
    widest = reduce(torch.promote_types, kinds)
    return {key: value.to(widest) if value.is_floating_point() else value for key, value in state.items()}


def read_original(
    state: Mapping[str, Tensor],
    rules: Sequence[Rule],
    *,
    ignored: Callable[[str], bool],
    expected: Mapping[str, Tensor],
    name: str,
) -> dict[str, Tensor]:
    """Our tensors from original ones.

    Args:
        state: Original tensors.
        rules: How they become ours.
        ignored: Whether an original name carries nothing (an index buffer, say).
        expected: Our state dict: names and shapes to be filled.
        name: Of the model, for messages.

    Raises:
        ValueError: With a list, if tensors are missing, cannot be mapped, do not fit, or copies disagree.
    """
    faults: list[str] = []
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    for one in rules:
        used.update(one.theirs, one.copies)
        missing = [key for key in one.theirs if key not in state]
        if missing:
            faults += [f"missing {key}" for key in missing]
            continue
        parts = [state[key] for key in one.theirs]
        try:
            value = parts[0] if len(parts) == 1 else torch.cat(parts)
        except RuntimeError:
            faults.append(f"{', '.join(one.theirs)} cannot be stacked: {[tuple(part.shape) for part in parts]}")
            continue
        value = value.t() if one.transpose else value
        value = value.reshape(one.shape) if one.shape is not None and value.numel() == _size(one.shape) else value
        faults += [f"{key} differs from {one.theirs[0]}" for key in one.copies if _differs(state, key, parts[0])]
        if one.ours not in expected:
            faults.append(f"{', '.join(one.theirs)} has no place ({one.ours})")
        elif value.shape != expected[one.ours].shape:
            shown = f"{tuple(value.shape)}, expected {tuple(expected[one.ours].shape)}"
            faults.append(f"{', '.join(one.theirs)} is {shown}")
        else:
            ours[one.ours] = value
    faults += [f"cannot map {key}" for key in state if key not in used and not ignored(key)]
    covered = {one.ours for one in rules}
    faults += [f"nothing fills {key}" for key in expected if key not in covered]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ValueError(f"this checkpoint does not fit {name}: {'; '.join(faults[:_SHOWN])}{more}")
    return {key: value.detach().clone().contiguous() for key, value in ours.items()}


def write_original(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Original tensors from ours: the inverse of ``read_original``; stacked tensors come apart in equal parts."""
    theirs: dict[str, Tensor] = {}
    for one in rules:
        value = state[one.ours].detach()
        value = value.t() if one.transpose else value
        value = value if one.original_shape is None else value.reshape(one.original_shape)
        parts = value.chunk(len(one.theirs)) if len(one.theirs) > 1 else (value,)  # a number cannot be cut
        for key, part in zip(one.theirs, parts, strict=True):
            theirs[key] = part.clone().contiguous()
        for key in one.copies:
            theirs[key] = theirs[one.theirs[0]].clone()
    return theirs


def strip_prefix(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Without those of the prefixes that every name carries (``module.`` of a parallel run, say), however many."""
    found = dict(state)
    while shared := [one for one in prefixes if found and all(key.startswith(one) for key in found)]:
        found = {key.removeprefix(shared[0]): value for key, value in found.items()}
    return found


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _differs(state: Mapping[str, Tensor], key: str, value: Tensor) -> bool:
    return key in state and not torch.equal(state[key], value)
