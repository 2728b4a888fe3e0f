"""Where the loop runs: lightning Fabric for processes, accelerators and scaled precision, or nothing at all.

Fabric takes seconds to import. One process on a CPU needs none of it, so the loop speaks to the few methods of
``Device`` and is the same code with either.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from polyfuse.errors import UserError

if TYPE_CHECKING:
    from polyfuse.config import TrainConfig


class Device(Protocol):
    """What the loop needs to know and to do."""

    world_size: int
    rank: int
    device: torch.device
    fused_optimizer: bool

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Move and wrap."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        ...

    def no_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        """Keep gradients local in all passes of a step but the last."""
        ...

    def backward(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        """Add the gradients."""
        ...

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Clip the norm of all gradients."""
        ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimiser that ``setup`` returned."""
        ...

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over processes."""
        ...

    def barrier(self) -> None:
        """Wait for the others."""
        ...

    def scaler_state(self) -> dict[str, Any]:
        """State of the gradient scaler, JSON-able; empty without one."""
        ...

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Restore ``scaler_state``."""
        ...


class PlainDevice:
    """One process on the CPU.

    Args:
        precision: ``32-true`` or ``bf16-mixed``.
    """

    world_size, rank, fused_optimizer = 1, 0, True
    device = torch.device("cpu")

    def __init__(self, precision: str = "32-true") -> None:
        if precision not in ("32-true", "bf16-mixed"):
            raise UserError(f"train.precision on a CPU must be 32-true or bf16-mixed, got {precision}")
        self._bf16 = precision == "bf16-mixed"
        self._moments: list[tuple[list[Tensor], ...]] | None = None  # of the one optimiser that steps here

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Nothing to move or wrap."""
        return model, optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """Bfloat16 where wanted."""
        return torch.autocast("cpu", torch.bfloat16) if self._bf16 else nullcontext()

    def no_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        """Nobody to keep in step with."""
        return nullcontext()

    def backward(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        """Plain backward."""
        loss.backward(retain_graph=retain_graph)

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """As ``torch.nn.utils.clip_grad_norm_``, a third of whose time on a small model is grouping by device."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return
        total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0)))
        torch._foreach_mul_(gradients, (norm / (total + 1e-6)).clamp(max=1.0))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The fused kernel that ``optimizer`` would call, to the same bits, without the bookkeeping around it.

        That takes several times as long as the kernel where parameters are small. The first step, which makes the
        moments, is the optimiser's own, as is one in which a parameter has no gradient.
        """
        groups = optimizer.param_groups
        gradients = [[p.grad for p in group["params"]] for group in groups]
        if self._moments is None and all(p in optimizer.state for group in groups for p in group["params"]):
            self._moments = _moments(optimizer)
        if not self._moments or any(g is None for part in gradients for g in part):
            optimizer.step()
            return
        with torch.no_grad():
            for group, grads, (means, squares, steps) in zip(groups, gradients, self._moments, strict=True):
                torch._foreach_add_(steps, 1)
                torch._fused_adamw_(
                    group["params"],
                    grads,
                    means,
                    squares,
                    [],
                    steps,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                )

    def total(self, tensor: Tensor) -> Tensor:
        """One process: its own sum."""
        return tensor

    def barrier(self) -> None:
        """Nobody to wait for."""

    def scaler_state(self) -> dict[str, Any]:
        """No scaler."""
        return {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """No scaler."""


class FabricDevice:
    """Whatever a launched ``lightning_fabric.Fabric`` runs on.

    Args:
        fabric: Launched; its own precision and strategy hold.
    """

    def __init__(self, fabric: Any) -> None:
        self.fabric = fabric
        self.world_size, self.rank = int(fabric.world_size), int(fabric.global_rank)
        self.device = fabric.device
        self._scaler = getattr(fabric.strategy.precision, "scaler", None)
        self.fused_optimizer = self._scaler is None

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Fabric's."""
        module, wrapped = self.fabric.setup(model, optimizer)
        return module, wrapped

    def autocast(self) -> AbstractContextManager[Any]:
        """Fabric's precision, for the loss; the module has it already."""
        context: AbstractContextManager[Any] = self.fabric.autocast()
        return context

    def no_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        """Fabric's, where there is somebody to keep in step with."""
        if self.world_size == 1 or not enabled:
            return nullcontext()
        context: AbstractContextManager[Any] = self.fabric.no_backward_sync(module, enabled)
        return context

    def backward(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        """Fabric's."""
        self.fabric.backward(loss, retain_graph=retain_graph)

    def clip(self, module: nn.Module, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Fabric's, which unscales first; an overflow is the scaler's business, and NaN shows in the loss."""
        self.fabric.clip_gradients(module, optimizer, max_norm=norm, error_if_nonfinite=False)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's own, as Fabric wrapped it."""
        optimizer.step()

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over processes."""
        if self.world_size == 1:
            return tensor
        result: Tensor = self.fabric.all_reduce(tensor, reduce_op="sum")
        return result

    def barrier(self) -> None:
        """Fabric's."""
        self.fabric.barrier()

    def scaler_state(self) -> dict[str, Any]:
        """The scaler's numbers."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Restore them."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)


def _moments(optimizer: torch.optim.Optimizer) -> list[tuple[list[Tensor], ...]]:
    """First and second moments and numbers of steps by group; empty if the fused kernel would not take a group."""
    groups = optimizer.param_groups
    if any(not group["fused"] or len({p.dtype for p in group["params"]}) > 1 for group in groups):
        return []
    return [
        tuple([optimizer.state[p][key] for p in group["params"]] for key in ("exp_avg", "exp_avg_sq", "step"))
        for group in groups
    ]


def make_fabric(config: "TrainConfig") -> Any:
    """A launched Fabric for this process, or None where a plain CPU process needs none.

    Under ``torchrun`` (``WORLD_SIZE`` above 1) it joins the other processes, with gloo on CPUs.

    Raises:
        UserError: If the config wants a device or a precision that this machine lacks.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise UserError("train.device is cuda, but PyTorch finds no GPU here; use train.device=auto")
    on_gpu = has_gpu and config.device != "cpu"
    if not on_gpu and config.precision == "16-mixed":
        raise UserError("train.precision on a CPU must be 32-true or bf16-mixed, got 16-mixed")
    if processes == 1 and not on_gpu:
        return None
    from lightning_fabric import Fabric

    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        strategy="ddp" if processes > 1 else "auto",
        devices=local if processes > 1 else 1,
        num_nodes=max(processes // local, 1),
        precision=config.precision,
    )
    fabric.launch()
    return fabric


def freeze_modes(model: nn.Module) -> None:
    """Training mode, except for modules whose parameters are all frozen: their dropout and statistics stay still."""
    model.train()
    for module in model.modules():
        parameters: Iterable[nn.Parameter] = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
