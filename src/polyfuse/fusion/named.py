"""What named fusions share: modules keyed by modality name, a canonical order, and a checkpoint that knows its order.

Shapes: B batch, M modalities, D embedding width. Masks: True = present.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput, check_embeddings, check_modalities, embedding_widths
from polyfuse.fusion.subsets import Readout, all_finite, fuse_repeated


class NamedModules(nn.Module):
    """Modules by modality name, in a fixed order.

    Unlike ``nn.ModuleDict`` it takes every name a modality may have: "values", "type" and "training" are attributes of
    a ``ModuleDict`` and refused by it. Such a name gets a trailing underscore in the state dict, and only there.

    Args:
        modules: ``{name: module}``; names without ".".

    Example:
        >>> layers = NamedModules({"image": nn.Linear(2, 3), "values": nn.Linear(5, 3)})
        >>> sorted(layers.state_dict())
        ['image.bias', 'image.weight', 'values_.bias', 'values_.weight']
        >>> layers["values"].in_features
        5
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._key_of: dict[str, str] = {}
        for name in sorted(modules):  # sorted: the keys do not depend on the order of the mapping
            key = name
            while hasattr(self, key):
                key += "_"
            self.add_module(key, modules[name])
            self._key_of[name] = key

    def __getitem__(self, name: str) -> nn.Module:
        module = self._modules[self._key_of[name]]
        assert module is not None  # noqa: S101 - for the type checker: add_module was given a module
        return module

    def __contains__(self, name: object) -> bool:
        return name in self._key_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._key_of)

    def __len__(self) -> int:
        return len(self._key_of)

    def keys(self) -> list[str]:
        """The names, sorted."""
        return list(self._key_of)

    def values(self) -> list[nn.Module]:
        """The modules, in the order of ``keys``."""
        return [self[name] for name in self._key_of]

    def items(self) -> list[tuple[str, nn.Module]]:
        """Pairs of name and module, in the order of ``keys``."""
        return [(name, self[name]) for name in self._key_of]


class NamedFusion(nn.Module):
    """Names, widths and the order guard of a fusion; subclasses add the layers and ``forward``.

    Inside a fusion everything runs in the order of the sorted names, so that neither the order of dict keys nor the
    order of ``modalities`` changes a bit of the result; only the columns of ``present`` and of ``weights`` follow
    ``modalities``. The state dict carries ``modalities`` as a small uint8 tensor (``_extra_state``; it survives
    safetensors), and loading it into a fusion of another order is refused: ``present`` columns, calibration tables and
    reports made for one order are wrong in another.

    Args:
        modalities: Names, in the column order of ``present`` and ``weights``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.

    Raises:
        ValueError: If names are empty, repeated or contain ".", or a width is missing or not positive.
    """

    decision_level: ClassVar[bool] = False

    def __init__(
        self, modalities: Sequence[str], embed_dim: int | Mapping[str, int], out_dim: int | None = None
    ) -> None:
        super().__init__()
        self.modalities = check_modalities(modalities)
        self.widths = embedding_widths(self.modalities, embed_dim)
        self.out_dim = max(self.widths.values()) if out_dim is None else int(out_dim)
        if self.out_dim < 1:
            raise ValueError(f"out_dim must be positive, got {out_dim}")
        self.canonical = tuple(sorted(self.modalities))

    def canonical_inputs(
        self, embeddings: Mapping[str, Tensor], present: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Checked embeddings, zero where absent, sorted by name.

        Returns:
            Embeddings ``(B, D_m)``, presence ``(B, M)`` and ``empty (B,)``: no modality is present in that row.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        ordered, present_BM = check_embeddings(embeddings, self.modalities, present)
        for name, x_BD in zip(self.modalities, ordered, strict=True):
            if x_BD.shape[1] != self.widths[name]:
                raise ValueError(f"embedding of '{name}' must be (B, {self.widths[name]}), got {tuple(x_BD.shape)}")
        empty_B = ~present_BM.any(dim=1)
        if self.canonical == self.modalities:
            return ordered, present_BM, empty_B
        position = {name: m for m, name in enumerate(self.modalities)}
        columns = [present_BM[:, position[name]] for name in self.canonical]
        return [ordered[position[name]] for name in self.canonical], torch.stack(columns, dim=1), empty_B

    def fuse_subsets(
        self, embeddings: Mapping[str, Tensor], subsets: Tensor, readout: Readout | None = None
    ) -> FusionOutput:
        """Fuse every subset of every row: ``forward`` of all pairs, to rounding, at a fraction of the cost.

        Fusions that can share work between subsets do so in ``every_subset``; the others, a fusion that draws in
        training, and embeddings that are not finite, go through ``forward`` once per pair.

        Shape:
            - embeddings: ``{name: (B, D_m)}``, all of them as if present; subsets: ``(S, M)`` bool.
            - fused: ``(S B, H)``, subset by subset, or ``(S B, R)`` with a ``readout``; weights: ``(S B, M)`` or None;
              info: not all that ``forward`` tells.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``subsets`` is not ``(S, M)`` bool.
        """
        if subsets.dtype != torch.bool or subsets.ndim != 2 or subsets.shape[1] != len(self.modalities):
            expected, got = f"(S, {len(self.modalities)})", f"{subsets.dtype} {tuple(subsets.shape)}"
            raise ValueError(f"subsets must be bool of shape {expected}, got {got}")
        inputs, _, _ = self.canonical_inputs(embeddings, None)
        out: FusionOutput | None = None
        if self.shares_subsets and all_finite(inputs):
            position = {name: m for m, name in enumerate(self.modalities)}
            columns = [position[name] for name in self.canonical]
            out = self.every_subset(inputs, subsets[:, columns], readout)
        if out is not None:
            return out
        out = fuse_repeated(self, embeddings, subsets)
        return out if readout is None else out._replace(fused=readout(out.fused))

    @property
    def shares_subsets(self) -> bool:
        """Whether ``fuse_subsets`` is cheaper than asking pair by pair."""
        return _is_current(type(self))

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """The shared work of ``fuse_subsets``; None = there is none, ask ``forward``.

        Shape:
            - inputs: ``(B, D_m)`` each, finite, and the columns of subsets ``(S, M)``, in the order of sorted names.
            - returns: as ``fuse_subsets``, columns of weights in the order of ``modalities``.
        """
        return None

    def user_order(self, x_BM: Tensor) -> Tensor:
        """Columns sorted by name, back in the order of ``modalities``; shape ``(B, M, ...)``."""
        if self.canonical == self.modalities:
            return x_BM
        position = {name: m for m, name in enumerate(self.canonical)}
        return torch.stack([x_BM[:, position[name]] for name in self.modalities], dim=1)

    def get_extra_state(self) -> Tensor:
        """The order of the modalities as UTF-8 JSON bytes, a tensor so that safetensors stores it."""
        return torch.tensor(list(json.dumps(self.modalities).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Refuse a checkpoint written for other modalities or another order.

        Raises:
            ValueError: If the names or their order differ.
        """
        stored = tuple(json.loads(bytes(state.cpu().tolist()).decode()))
        if stored != self.modalities:
            raise ValueError(
                f"the checkpoint was written for modalities {stored}, this {type(self).__name__} has "
                f"{self.modalities}; build it with the names in the checkpoint's order"
            )


def _is_current(fusion: type) -> bool:
    """Whether ``every_subset`` was written for this ``forward``: a subclass with another one must bring its own."""
    for part in fusion.__mro__:
        if "every_subset" in vars(part):
            return True
        if "forward" in vars(part):
            return False
    return False


def linear_by_name(widths: Mapping[str, int], out_dim: int, **factory: Any) -> NamedModules:
    """One ``nn.Linear`` per modality, from its width to ``out_dim``."""
    return NamedModules({name: nn.Linear(width, out_dim, **factory) for name, width in widths.items()})


def masked_softmax(scores_BM: Tensor, present_BM: Tensor, dim: int = 1) -> Tensor:
    """Softmax over the present entries in at least fp32; absent entries are exactly 0, and so are empty rows.

    Shape:
        scores_BM and present_BM broadcast together; the result is fp32 (float64 stays float64).

    Example:
        >>> masked_softmax(torch.zeros(1, 3), torch.tensor([[True, False, True]]))
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    scores_BM = scores_BM if scores_BM.dtype == torch.float64 else scores_BM.float()
    low = torch.finfo(scores_BM.dtype).min  # not -inf: a row of -inf gives NaN, forward and backward
    return scores_BM.masked_fill(~present_BM, low).softmax(dim=dim).masked_fill(~present_BM, 0.0)


def present_mean(x_BMD: Tensor, present_BM: Tensor) -> Tensor:
    """Mean over present modalities, zeros in empty rows. ``x_BMD`` is zero where absent; returns ``(B, D)``."""
    count_B1 = present_BM.sum(dim=1, keepdim=True).clamp(min=1)
    return x_BMD.sum(dim=1) / count_B1.to(x_BMD.dtype)
