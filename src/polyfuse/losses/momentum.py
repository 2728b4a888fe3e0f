"""Contrast against a slowly moving teacher: soft targets, and a queue of what it said before.

Shapes: B pairs, E width, K keys (the batch's B, then the queue's). Masks: True = present.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polyfuse.functional import at_least_float32, masked_softmax
from polyfuse.losses.reduce import all_there, full_precision
from polyfuse.losses.scale import LearnableScale


class Keys(NamedTuple):
    """What the teacher says: of this batch's rows first, in their order, then of earlier rows.

    Attributes:
        first: ``(K, E)``.
        second: ``(K, E)``.
        ids: ``(K,)`` int64, or None where all rows differ.
        present: ``(K,)`` bool.
    """

    first: Tensor
    second: Tensor
    ids: Tensor | None
    present: Tensor


class MomentumTeacher(nn.Module):
    """A copy of a model that follows it slowly: ``teacher = momentum * teacher + (1 - momentum) * model``.

    It has no gradient and stays in eval mode. Source: MoCo, https://arxiv.org/abs/1911.05722, equation 2; ALBEF,
    https://arxiv.org/abs/2107.07651, momentum 0.995. Differs: buffers are copied (statistics of a norm are the
    model's), and ALBEF's copy keeps its dropout on.

    Args:
        model: What to follow; it is copied, not kept.
        momentum: In [0, 1].

    Example:
        >>> model = nn.Linear(2, 2)
        >>> teacher = MomentumTeacher(model, momentum=0.5)
        >>> _ = nn.init.zeros_(model.weight)
        >>> before = teacher.model.weight.clone()
        >>> teacher.update(model)
        >>> torch.equal(teacher.model.weight, before / 2)
        True
    """

    def __init__(self, model: nn.Module, momentum: float = 0.995) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.momentum = momentum

    def train(self, mode: bool = True) -> "MomentumTeacher":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step towards ``model``; call it after the optimiser's step, or before the forward pass.

        Raises:
            ValueError: If the model has other parameters than the one copied.
        """
        ours, theirs = dict(self.model.named_parameters()), dict(model.named_parameters())
        if ours.keys() != theirs.keys():
            raise ValueError(f"the model has other parameters than its teacher: {sorted(ours.keys() ^ theirs.keys())}")
        for name, parameter in ours.items():
            parameter.lerp_(theirs[name].detach().to(parameter), 1.0 - self.momentum)
        buffers = dict(model.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's answer."""
        return self.model(*args, **kwargs)


class MomentumQueue(nn.Module):
    """The last ``size`` pairs that the teacher saw, as buffers: they are saved, and move, with the model.

    Source: MoCo, https://arxiv.org/abs/1911.05722, section 3.1; ALBEF (65,536 pairs). Differs: an empty place is
    absent, not random; places carry ids; any batch size fits. Where the queue is longer than an epoch, ids are needed:
    a row would meet its earlier self as a negative.

    Args:
        embed_dim: Width E.
        size: Places; 0 = no queue.
        device: Device of the buffers.
        dtype: Dtype of the embeddings.
    """

    first: Tensor
    second: Tensor
    ids: Tensor
    present: Tensor
    place: Tensor

    def __init__(
        self, embed_dim: int, size: int = 65536, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f"size must be at least 0, got {size}")
        self.size = size
        for name in ("first", "second"):
            self.register_buffer(name, torch.zeros(size, embed_dim, device=device, dtype=dtype))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64, device=device))
        self.register_buffer("present", torch.zeros(size, dtype=torch.bool, device=device))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def push(self, first: Tensor, second: Tensor, ids: Tensor | None = None, present: Tensor | None = None) -> None:
        """Put a batch in the place of the oldest pairs. With several processes push what all of them saw.

        Shape:
            first, second ``(B, E)``; ids ``(B,)``; present ``(B,)`` bool.
        """
        here = all_there(present, (len(first),), first, "present")[-self.size :] if self.size else None
        if here is None or not len(first):
            return
        count = len(here)
        places = (self.place + torch.arange(count, device=self.place.device)) % self.size
        for buffer, values in ((self.first, first), (self.second, second)):
            buffer[places] = values[-count:].to(buffer).masked_fill(~here[:, None], 0.0)
        self.ids[places] = torch.zeros_like(places) if ids is None else ids[-count:]
        self.present[places] = here
        self.place.copy_((self.place + count) % self.size)

    def keys(self, first: Tensor, second: Tensor, ids: Tensor | None = None, present: Tensor | None = None) -> Keys:
        """The batch's rows and, after them, those of the queue.

        Shape:
            first, second ``(B, E)``; ids ``(B,)``, None where the queue was filled without; present ``(B,)`` bool.
        """
        here = all_there(present, (len(first),), first, "present")
        return Keys(
            torch.cat([first, self.first.to(first)]),
            torch.cat([second, self.second.to(second)]),
            None if ids is None else torch.cat([ids, self.ids]),
            torch.cat([here, self.present]),
        )

    def extra_repr(self) -> str:
        """The size."""
        return f"size={self.size}, embed_dim={self.first.shape[1]}"


def itc_loss(
    first: Tensor,
    second: Tensor,
    keys: Keys,
    scale: Tensor | float,
    *,
    alpha: float = 0.4,
) -> Tensor:
    """InfoNCE against a teacher's embeddings, with its own similarities as part of the target; a scalar.

    The target is ``alpha * softmax(scale * teacher's similarities) + (1 - alpha) * partners``, partners being the row
    itself and, with ids, every key that says the same, at equal shares (ALBEF's retrieval variant). Source: ALBEF,
    https://arxiv.org/abs/2107.07651, equations 1 and 6, alpha 0.4. Differs: incomplete pairs, and empty places of the
    queue, are neither keys nor counted.

    Args:
        first: ``(B, E)``; unit vectors give cosines.
        second: ``(B, E)``, row i belongs to row i of ``first``.
        keys: The teacher's ``(K, E)``, of which the first B are this batch's; no gradient reaches them.
        scale: What inner products are multiplied by (1 / temperature).
        alpha: Weight of the teacher, in [0, 1]; ALBEF lets it grow from 0 over the first epoch.

    Returns:
        The mean over present rows and both directions; 0 with a zero gradient where no row is present.

    Raises:
        ValueError: If alpha is not in [0, 1] or a shape is wrong.

    Example:
        >>> there = torch.ones(3, dtype=torch.bool)
        >>> itc_loss(torch.eye(3), torch.eye(3), Keys(torch.eye(3), torch.eye(3), None, there), 1.0)
        tensor(0.7210)
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    count, total_keys = len(first), len(keys.first)
    if first.shape != second.shape or keys.first.shape != keys.second.shape or total_keys < count:
        shapes = [tuple(x.shape) for x in (first, second, keys.first, keys.second)]
        raise ValueError(f"sides must be (B, E), keys (K, E) with K >= B, got {shapes}")
    hidden = ~keys.present[:, None]
    first, second = (at_least_float32(x).masked_fill(hidden[:count], 0.0) for x in (first, second))
    keys_first, keys_second = (at_least_float32(x.detach()).masked_fill(hidden, 0.0) for x in keys[:2])
    partners = (
        torch.eye(count, total_keys, dtype=torch.bool, device=first.device)
        if keys.ids is None
        else keys.ids[:count, None] == keys.ids[None, :]
    )
    both = keys.present[:count, None] & keys.present[None, :]
    hard = (partners & both).to(first.dtype)
    hard = hard / hard.sum(dim=1, keepdim=True).clamp(min=1)
    total = first.new_zeros(())
    with full_precision(first):
        for own, teacher, others in ((first, keys_first, keys_second), (second, keys_second, keys_first)):
            # The teacher's target is a constant, its temperature too.
            soft = masked_softmax((scale * teacher[:count] @ others.t()).detach(), both)
            target = alpha * soft + (1 - alpha) * hard
            logits = (scale * own @ others.t()).masked_fill(~keys.present[None, :], torch.finfo(first.dtype).min)
            total = total - (logits.log_softmax(dim=1).masked_fill(~both, 0.0) * target).sum()
    return total / (2 * keys.present[:count].sum().clamp(min=1))


class ITCLoss(nn.Module):
    """``itc_loss`` with a learnable temperature and the queue; in training mode every call fills the queue.

    Args:
        embed_dim: Width E.
        queue_size: Pairs that the queue holds.
        alpha: Weight of the teacher's similarities in the target.
        temperature: At the start; held within ``bounds`` as in ALBEF's code.
        bounds: Smallest and largest temperature.
        device: Device of parameter and queue.
        dtype: Dtype of parameter and queue.

    Example:
        >>> loss = ITCLoss(5, queue_size=7)
        >>> x = nn.functional.normalize(torch.ones(3, 5), dim=-1)
        >>> _ = loss(x, x, x, x)
        >>> int(loss.queue.present.sum())
        3
    """

    def __init__(
        self,
        embed_dim: int,
        queue_size: int = 65536,
        alpha: float = 0.4,
        temperature: float = 0.07,
        bounds: tuple[float, float] = (0.001, 0.5),
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        self.alpha = alpha
        self.scale = LearnableScale(1 / temperature, 1 / bounds[1], 1 / bounds[0], device=device, dtype=dtype)
        self.queue = MomentumQueue(embed_dim, queue_size, device=device, dtype=dtype)

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        teacher_first: Tensor,
        teacher_second: Tensor,
        ids: Tensor | None = None,
        present: Tensor | None = None,
        alpha: float | None = None,
    ) -> Tensor:
        """Scalar of ``(B, E)`` sides and the teacher's view of them; ids ``(B,)``, present ``(B,)``.

        ``alpha`` overrides the constructor's, for a ramp. Give ids in every call or in none.
        """
        keys = self.queue.keys(teacher_first, teacher_second, ids, present)
        loss = itc_loss(first, second, keys, self.scale(), alpha=self.alpha if alpha is None else alpha)
        if self.training:
            self.queue.push(teacher_first.detach(), teacher_second.detach(), ids, present)
        return loss
