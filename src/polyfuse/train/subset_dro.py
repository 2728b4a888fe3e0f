"""GroupDRO over combinations of inputs: those that fall short of what is possible there gain weight.

Shapes: b rows, M modalities, S = 2^M combinations. Masks: True = present.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polyfuse.errors import UserError

_LARGEST = 12


class SubsetDRO:
    """Weights per combination, q_S <- q_S exp(eta (loss_S - floor_S)) / Z.

    Source: GroupDRO, https://arxiv.org/abs/1911.08731, algorithm 1, with combinations of inputs as the groups.
    Differs: the loss of a combination is taken above the loss that a model of its own reaches there (its floor), so a
    combination is not favoured for being uninformative; and only combinations in the batch are updated.

    Args:
        modalities: Names, in column order; at most 12.
        eta: Step size.
        floor: Reachable loss by combination, names joined by "+" in any order; others have 0.

    Raises:
        UserError: If there are too many modalities or a combination is unknown.
    """

    def __init__(self, modalities: Sequence[str], eta: float, floor: Mapping[str, float]) -> None:
        if len(modalities) > _LARGEST:
            raise UserError(f"train.recipe.subset_dro takes at most {_LARGEST} modalities, got {len(modalities)}")
        self.eta = eta
        self.log_weight = torch.zeros(1 << len(modalities))
        self.floor = torch.zeros(1 << len(modalities))
        for name, value in floor.items():
            parts = name.split("+")
            unknown = [part for part in parts if part not in modalities]
            if unknown:
                raise UserError(
                    f"train.recipe.subset_floor names '{unknown[0]}', which is no modality; "
                    f"known: {', '.join(modalities)}"
                )
            self.floor[sum(1 << modalities.index(part) for part in set(parts))] = value

    def weights(self, mask: Tensor, loss: Tensor) -> Tensor:
        """Update the weights with one batch, and return one weight per row, 1 on average over the batch.

        Args:
            mask: ``(b, M)`` bool, what each row's prediction had.
            loss: ``(b,)``, detached.
        """
        code = (mask.long() << torch.arange(mask.shape[1], device=mask.device)).sum(dim=1)
        self.log_weight, self.floor = self.log_weight.to(loss.device), self.floor.to(loss.device)
        sums = torch.zeros_like(self.log_weight).index_add_(0, code, loss.to(self.log_weight.dtype))
        count = torch.zeros_like(self.log_weight).index_add_(0, code, torch.ones_like(loss, dtype=sums.dtype))
        regret = torch.where(count > 0, sums / count.clamp(min=1) - self.floor, 0.0)
        self.log_weight += self.eta * regret
        self.log_weight -= self.log_weight.logsumexp(dim=0)
        weight = self.log_weight.softmax(dim=0)[code]
        return (weight / weight.mean()).to(loss.dtype)
