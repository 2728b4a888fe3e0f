"""What every model returns."""

from typing import NamedTuple

from torch import Tensor


class ModelOutput(NamedTuple):
    """Named tensors; ``output.name`` and ``output["name"]`` read ``info`` too.

    Attributes:
        logits: ``(B, C)`` of the one head a model has (``(B, 2)`` mean and log-variance for regression); None where it
            has several or none: their outputs stand in ``info`` under ``<task>_logits``.
        weights: ``(B, M)`` share of each modality, exactly zero where absent; None where there are no weights.
        info: Everything else, by name: token states, pooled vectors, logits per task.
        attentions: ``{layer name: (B, H, Q, K)}`` where they were asked for; None otherwise.

    Example:
        >>> import torch
        >>> output = ModelOutput(None, None, {"pooled": torch.ones(1, 2)})
        >>> output.pooled, output["pooled"] is output.pooled
        (tensor([[1., 1.]]), True)
    """

    logits: Tensor | None
    weights: Tensor | None
    info: dict[str, Tensor]
    attentions: dict[str, Tensor] | None = None

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self.info[name]
        except KeyError:
            known = ", ".join([*self._fields, *sorted(self.info)])
            raise AttributeError(f"this output has no '{name}'; it has: {known}") from None

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        return getattr(self, key) if isinstance(key, str) else tuple.__getitem__(self, key)
