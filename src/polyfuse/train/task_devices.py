"""Where the task loop runs: one process on a CPU, replicas that add up their gradients, or sharded parameters.

Replicas are kept in step by one sum over all gradients at the end of a step, not by DistributedDataParallel: a step has
a backward pass per objective, each through a part of the model, which DDP's hooks do not follow.
"""

import copy
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polyfuse.errors import UserError
from polyfuse.tasks.model import TaskModel
from polyfuse.train.devices import FabricDevice, PlainDevice, make_fabric
from polyfuse.train.task_layers import layers_of

if TYPE_CHECKING:
    from polyfuse.task_config import LoopConfig

Result = TypeVar("Result")


class Alone(PlainDevice):
    """One process on the CPU."""

    sharded, loss_factor = False, 1.0

    def prepare(self, model: TaskModel) -> TaskModel:
        """The model to train."""
        return model

    def groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups as the optimiser can take them."""
        return groups

    def wrap(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """What ``step`` takes."""
        return optimizer

    def call(self, function: Callable[[], Result]) -> Result:
        """Compute something with the model."""
        return function()

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Nobody to add."""

    def agree(self, flags: list[bool]) -> list[bool]:
        """What any process says."""
        return flags

    def decide(self, figures: dict[str, float]) -> dict[str, float]:
        """What the first process found."""
        return figures


class Replicas(FabricDevice):
    """Several processes, or an accelerator, each with the whole model.

    Args:
        fabric: Launched.
    """

    sharded, loss_factor = False, 1.0

    def prepare(self, model: TaskModel) -> TaskModel:
        """Moved, and the same everywhere."""
        model.to(self.device)
        if self.world_size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor.data, src=0)
        return model

    def groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups as the optimiser can take them."""
        return groups

    def wrap(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Fabric's."""
        wrapped: torch.optim.Optimizer = self.fabric.setup_optimizers(optimizer)
        return wrapped

    def call(self, function: Callable[[], Result]) -> Result:
        """Compute something with the model."""
        return function()

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """One sum over processes, in one message; a parameter that no process used stays without a gradient."""
        if self.world_size == 1:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=self.device)
        dist.all_reduce(used, op=dist.ReduceOp.MAX)
        parameters = [p for p, some in zip(parameters, used.tolist(), strict=True) if some]
        if not parameters:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def agree(self, flags: list[bool]) -> list[bool]:
        """What any process says."""
        if self.world_size == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.uint8, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def decide(self, figures: dict[str, float]) -> dict[str, float]:
        """What the first process found: others may differ in the last bits, and all must stop at the same step."""
        if self.world_size == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.device)
        dist.broadcast(values, src=0)
        return dict(zip(figures, values.tolist(), strict=True))


class _Whole(nn.Module):
    """A model behind one forward call, inside which ``fully_shard`` gathers what is outside the layers."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Result]) -> Result:
        """Whatever is to be computed."""
        return function()


class Shards(Replicas):
    """Several processes, each with a part of every parameter, gathered layer by layer when needed.

    Source: https://arxiv.org/abs/2304.11277; ``torch.distributed.fsdp.fully_shard`` through Fabric's
    ``ModelParallelStrategy``.

    Args:
        fabric: Launched, of ``task_fabric``.
    """

    sharded = True

    def __init__(self, fabric: Any) -> None:
        super().__init__(fabric)
        self.loss_factor = float(self.world_size)  # gradients are averaged where they are scattered

    def prepare(self, model: TaskModel) -> TaskModel:
        """A copy whose parameters are parts."""
        whole = _Whole(copy.deepcopy(model))
        self._module = self.fabric.setup_module(whole)
        return whole.model

    def call(self, function: Callable[[], Result]) -> Result:
        """Within the forward call of the whole."""
        result: Result = self._module(function)
        return result

    def groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameters in parts and whole ones apart: no kernel takes both."""
        return [
            {**group, "params": part}
            for group in groups
            for parts in (True, False)
            if (part := [p for p in group["params"] if hasattr(p, "full_tensor") == parts])
        ]

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Of the scalars, which stay whole; the backward passes did the rest."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if not hasattr(parameter, "full_tensor") and parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.world_size

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Over all parts of all gradients: each process sums its own, the scalars count once."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        own = [g.to_local() for g in gradients if hasattr(g, "to_local")]
        whole = [g for g in gradients if not hasattr(g, "to_local")]
        squares = torch.stack([part.float().square().sum() for part in own] or [torch.zeros((), device=self.device)])
        total = squares.sum()
        dist.all_reduce(total)
        total = (total + sum(part.float().square().sum() for part in whole)).sqrt()
        torch._foreach_mul_([*own, *whole], (norm / (total + 1e-6)).clamp(max=1.0))


def shard(whole: nn.Module, mesh: Any) -> nn.Module:
    """Cut the layers of the backbone one by one, and the rest together; scalars stay whole, they cannot be cut."""
    from torch.distributed.fsdp import fully_shard

    data = mesh["data_parallel"] if mesh.ndim > 1 else mesh
    for layer in layers_of(whole.model).values():  # type: ignore[arg-type]
        fully_shard(layer, mesh=data, ignored_params={p for p in layer.parameters() if p.ndim == 0})
    fully_shard(whole, mesh=data, ignored_params={p for p in whole.parameters() if p.ndim == 0})
    return whole


def device_of(fabric: Any, precision: str) -> "Alone | Replicas":
    """Where to run: with a launched Fabric, or without any."""
    if fabric is None:
        return Alone(precision)
    sharded = type(fabric.strategy).__name__ == "ModelParallelStrategy"
    return Shards(fabric) if sharded else Replicas(fabric)


def task_fabric(config: "LoopConfig") -> Any:
    """A launched Fabric for this process, or None where a plain CPU process needs none.

    Raises:
        UserError: If this machine lacks the device or the precision, or there is nobody to share parameters with.
    """
    if not config.shard_parameters:
        return make_fabric(config)  # type: ignore[arg-type]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        raise UserError(
            "train.shard_parameters needs several processes: torchrun --nproc-per-node=2 -m polyfuse ..., or "
            "train.shard_parameters=false"
        )
    if config.precision == "16-mixed":
        raise UserError("train.shard_parameters works with train.precision 32-true or bf16-mixed, got 16-mixed")
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import ModelParallelStrategy

    on_gpu = torch.cuda.is_available() and config.device != "cpu"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        strategy=ModelParallelStrategy(shard, data_parallel_size=processes, tensor_parallel_size=1),
        devices=local,
        num_nodes=max(processes // local, 1),
        precision=config.precision,
    )
    fabric.launch()
    return fabric


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be in parts; every process must ask."""
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()


def put(own: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be in parts."""
    if not hasattr(own, "full_tensor"):
        own.copy_(whole)
        return
    from torch.distributed.tensor import distribute_tensor

    own.copy_(distribute_tensor(whole.to(own.device), own.device_mesh, own.placements))  # type: ignore[attr-defined]
