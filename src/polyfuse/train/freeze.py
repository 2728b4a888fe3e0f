"""Freezing by name, unfreezing step by step, and learning rates that fall with depth: for any model.

A pattern is a glob over dotted parameter names, the name of a part, or a regular expression behind ``re:``
(``polyfuse.registry.select_names``); one that matches nothing is an error, because a typing mistake would train
what was meant to rest.
"""

import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from polyfuse.registry import select_names
from polyfuse.train.schedule import parameter_groups

Say = Callable[[str], None]


def _log(text: str) -> None:
    print(text, file=sys.stderr)


class Count(NamedTuple):
    """Tensors and numbers of parameters: those matched, and those that are trainable afterwards."""

    tensors: int
    parameters: int
    trainable: int

    def __str__(self) -> str:
        return f"{self.tensors} tensors, {self.parameters:,} parameters; {self.trainable:,} are trainable now"


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    """All names, a tied parameter under each of its own."""
    return dict(model.named_parameters(remove_duplicate=False))


def trainable_count(model: nn.Module) -> int:
    """Numbers that train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def freeze_parameters(model: nn.Module, patterns: Sequence[str], *, say: Say = _log) -> Count:
    """Freeze every parameter that a pattern matches, forget its gradient, and say how many.

    Modes are set by the loops: a module all of whose parameters are frozen is kept in eval mode there
    (``train.devices.freeze_modes``).

    Raises:
        UserError: If a pattern matches no parameter, with the nearest names.

    Example:
        >>> model = nn.ModuleDict({"image": nn.Linear(3, 5), "text": nn.Linear(7, 5)})
        >>> freeze_parameters(model, ["image"], say=print)
        froze image: 2 tensors, 20 parameters; 40 are trainable now
        Count(tensors=2, parameters=20, trainable=40)
    """
    return _set(model, patterns, False, say)


def unfreeze_parameters(model: nn.Module, patterns: Sequence[str], *, say: Say = _log) -> Count:
    """The reverse of ``freeze_parameters``.

    Raises:
        UserError: If a pattern matches no parameter, with the nearest names.
    """
    return _set(model, patterns, True, say)


def _set(model: nn.Module, patterns: Sequence[str], trains: bool, say: Say) -> Count:
    named = _named(model)
    chosen = {id(named[name]): named[name] for name in select_names(patterns, list(named))}
    for parameter in chosen.values():
        parameter.requires_grad_(trains)
        if not trains:
            parameter.grad = None
    count = Count(len(chosen), sum(p.numel() for p in chosen.values()), trainable_count(model))
    say(f"{'unfroze' if trains else 'froze'} {', '.join(patterns)}: {count}")
    return count


class GradualUnfreezing:
    """Parts that begin to train at given steps.

    What is trainable is a function of the step alone, so a resumed run continues as it was: a parameter that the
    schedule names trains from the earliest step that names it, the others are left as they are. Make the optimiser
    first: it must hold the parameters that join later (AdamW leaves those without a gradient alone).

    Source: ULMFiT, https://arxiv.org/abs/1801.06146, section 3.3, with steps of our own in place of epochs.

    Args:
        model: Whose parameters are named.
        schedule: ``{step: patterns}``; step 0 trains from the start.
        say: Where counts go.

    Raises:
        UserError: If a pattern matches no parameter.
        ValueError: If a step is negative or the schedule is empty.

    Example:
        >>> model = nn.ModuleDict({"body": nn.Linear(3, 5), "head": nn.Linear(5, 2)})
        >>> gradual = GradualUnfreezing(model, {0: ["head"], 100: ["body"]}, say=print)
        froze until their step: 2 tensors, 20 parameters; 12 are trainable now
        >>> gradual.apply(99), gradual.apply(100)
        unfroze at step 100: 2 tensors, 20 parameters; 32 are trainable now
        (False, True)
    """

    def __init__(self, model: nn.Module, schedule: Mapping[int, Sequence[str]], *, say: Say = _log) -> None:
        if not schedule or min(schedule) < 0:
            raise ValueError(f"a schedule needs one step at least, none negative; got {sorted(schedule)}")
        self.model, self.say = model, say
        named = _named(model)
        first: dict[int, int] = {}
        for step in sorted(schedule):
            for name in select_names(schedule[step], list(named)):
                first.setdefault(id(named[name]), step)
        self._from = [(p, first[id(p)]) for p in model.parameters() if id(p) in first]
        self.apply(0)

    def apply(self, step: int) -> bool:
        """Set what trains at ``step`` (steps done before it); whether anything changed."""
        woken = [p for p, start in self._from if start <= step and not p.requires_grad]
        frozen = [p for p, start in self._from if start > step and p.requires_grad]
        for parameter in woken:
            parameter.requires_grad_(True)
        for parameter in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
        for words, parameters in ((f"unfroze at step {step}", woken), ("froze until their step", frozen)):
            if parameters:
                size = sum(p.numel() for p in parameters)
                self.say(f"{words}: {Count(len(parameters), size, trainable_count(self.model))}")
        return bool(woken or frozen)


# Lists of layers by their names: "layers", "text_layers", "co_layers", "blocks", "stages", "connections", and "norms"
# beside layers; a ResNet counts its stages in the name. Lists inside a layer belong to the layer.
_LIST = re.compile(r"(?:.*_)?(?:layers|blocks|stages|connections|norms)")
_NUMBERED = re.compile(r"layer(\d+)")
_LOWER = frozenset({"towers", "encoder", "encoders", "resnet"})  # feed the lists beside them
_UPPER = "after"  # in MultimodalTransformer's strategies: layers behind those that fuse
_TOP = frozenset({"heads", "head", "end"})  # "end": norms behind the last layer


class _List(NamedTuple):
    path: str  # the list, "resnet.layer" for numbered stages
    entries: list[str]
    level: int  # 0 the uppermost


def _layer_lists(model: nn.Module) -> list[_List]:
    """The outermost lists of layers."""
    entries: dict[str, list[str]] = {}
    inside: list[str] = []
    for path, module in model.named_modules():
        segments = path.split(".")
        if _TOP & set(segments) or any(path.startswith(f"{outer}.") for outer in inside):
            continue
        if (number := _NUMBERED.fullmatch(segments[-1])) is not None:
            entries.setdefault(path[: -len(number[1])], []).append(path)
            inside.append(path)
        elif isinstance(module, (nn.ModuleList, nn.Sequential)) and any(_LIST.fullmatch(s) for s in segments[-2:]):
            entries[path] = [f"{path}.{name}" for name, _ in module.named_children()]
            inside.append(path)
    return [_List(path, kept, _level(set(path.split(".")))) for path, kept in entries.items() if kept]


def _level(segments: set[str]) -> int:
    return 2 if segments & _LOWER else 0 if _UPPER in segments else 1


def parameter_depths(model: nn.Module) -> dict[str, int]:
    """How many layers lie between each parameter and the output: ``{name: depth}``, 0 for heads.

    Lists of layers that stand side by side (the two streams of ViLBERT, the towers of CLIP) end at the same height;
    those under a name such as ``towers``, ``encoders`` or ``resnet`` lie below the others, if there are others. What
    a module registers before its lists of layers is their input (embeddings) and lies one deeper than the deepest of
    them; what it registers after them (norms, poolers), and everything under ``heads``, lies above.

    Example:
        >>> from polyfuse.models import MODELS
        >>> depth = parameter_depths(MODELS["bert_tiny"]())
        >>> [depth[f"{name}.bias"] for name in ("pooler.dense", "layers.1.mlp_norm", "embeddings.norm")]
        [0, 1, 3]
    """
    lists = _layer_lists(model)
    depth_of: dict[str, int] = {}
    above = 0
    for level in range(3):
        beside = [one.entries for one in lists if one.level == level]
        for kept in beside:
            depth_of |= {path: above + len(kept) - place for place, path in enumerate(kept)}
        above += max(map(len, beside), default=0)
    order = [path for path, _ in model.named_modules()]
    place_of = {path: place for place, path in enumerate(order)}
    named = _named(model)
    return {name: 0 if named[name].numel() == 1 else _depth(name, depth_of, place_of) for name in named}


def _depth(name: str, depth_of: Mapping[str, int], place_of: Mapping[str, int]) -> int:
    segments = name.split(".")
    owners = [".".join(segments[:size]) for size in range(len(segments))]  # "", then from the outside in
    for owner in owners:
        if owner in depth_of:
            return depth_of[owner]
    if not depth_of or any(segment in _TOP or segment.endswith("pooler") for segment in segments):
        return 0
    # The innermost part around the parameter that has layers at all; which of them were registered behind it?
    scope = next(o for o in reversed(owners) if any(not o or path.startswith(f"{o}.") for path in depth_of))
    near = [path for path in depth_of if not scope or path.startswith(f"{scope}.")]
    mine = place_of[owners[-1]]
    behind = sorted(place_of[path] for path in near)
    later = behind[bisect_left(behind, mine) :]
    if later:
        return 1 + max(depth_of[path] for path in near if place_of[path] >= later[0])
    return min(depth_of[path] for path in near) - 1


def layerwise_groups(model: nn.Module, lr: float, decay: float, *, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Optimiser groups whose rate is ``lr * decay ** depth`` (``parameter_depths``), the heads first.

    Each has ``lr``, ``lr_share`` (which ``train.schedule.set_learning_rate`` keeps), ``depth`` and ``weight_decay``
    (0 for norms, biases and learned inputs). Frozen parameters are left out. A model without lists of layers has one
    rate.

    Source: ELECTRA, https://arxiv.org/abs/2003.10555, appendix B, "layerwise learning-rate decay".

    Args:
        model: Any of ours, or one that names its lists of layers alike.
        lr: Rate of the heads.
        decay: Factor per layer, in (0, 1].
        weight_decay: Of the matrices.

    Raises:
        ValueError: If ``decay`` is outside (0, 1], or nothing is trainable.

    Example:
        >>> from polyfuse.models import MODELS
        >>> groups = layerwise_groups(MODELS["bert_tiny"](), 1e-3, 0.5)
        >>> sorted({(group["depth"], group["lr_share"]) for group in groups})
        [(0, 1.0), (1, 0.5), (2, 0.25), (3, 0.125)]
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"decay must be in (0, 1], got {decay}")
    depths = parameter_depths(model)
    depth_by_id: dict[int, int] = {}
    for name, parameter in _named(model).items():  # a tied parameter takes the lower of its rates
        depth_by_id[id(parameter)] = max(depth_by_id.get(id(parameter), 0), depths[name])
    split: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = parameter_groups(model, weight_decay)
    for group in whole:
        parts: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(depth_by_id[id(parameter)], []).append(parameter)
        split += [
            {**group, "params": kept, "depth": depth, "lr_share": decay**depth, "lr": lr * decay**depth}
            for depth, kept in parts.items()
        ]
    if not split:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; unfreeze the head at least")
    return sorted(split, key=lambda group: group["depth"])
