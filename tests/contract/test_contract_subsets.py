"""All subsets asked at once are what asking them one by one gives: over every fusion."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.subsets import Readout
from polyfuse.heads import ClassificationHead, MultilabelHead, RegressionHead
from polyfuse.models import FusionModel

ROWS = 11


def one_by_one(ask: Any, subsets: torch.Tensor) -> list[Any]:
    return [ask(mask.expand(ROWS, -1)) for mask in subsets]


def joined(outputs: list[Any], field: str) -> torch.Tensor:
    return torch.cat([getattr(out, field) for out in outputs])


def spread(module: nn.Module) -> nn.Module:
    """Parameters that start at 0 or 1 moved, so that forgetting one of them shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize("number", [4, 7])
def test_every_subset_equals_the_loop(case: Any, number: int) -> None:
    fusion = spread(case.build()).eval()
    x, subsets = case.embeddings(ROWS), case.masks()[: number + 1]
    out, loop = fusion.fuse_subsets(x, subsets), one_by_one(lambda mask: fusion(x, mask), subsets)
    torch.testing.assert_close(out.fused, joined(loop, "fused"))
    if loop[0].weights is None:
        assert out.weights is None
    else:
        torch.testing.assert_close(out.weights, joined(loop, "weights"))


def test_empty_subset_is_the_empty_row(case: Any) -> None:
    fusion = spread(case.build()).eval()
    x, empty = case.embeddings(ROWS), torch.zeros(1, 3, dtype=torch.bool)
    torch.testing.assert_close(fusion.fuse_subsets(x, empty).fused, fusion(x, empty.expand(ROWS, -1)).fused)


def test_readout_is_applied_whether_or_not_it_is_merged(case: Any) -> None:
    fusion = spread(case.build()).eval()
    x, subsets = case.embeddings(ROWS), case.masks()
    for width in (2, 50):
        layer = nn.Linear(fusion.out_dim, width)
        got = fusion.fuse_subsets(x, subsets, Readout(layer.weight, layer.bias)).fused
        torch.testing.assert_close(got, layer(joined(one_by_one(lambda mask: fusion(x, mask), subsets), "fused")))


def test_gradients_are_those_of_the_loop(case: Any) -> None:
    fusion = spread(case.build()).eval()
    subsets, gradients = case.masks(), []
    for together in (True, False):
        x = {name: value.requires_grad_() for name, value in case.embeddings(ROWS).items()}
        loop = None if together else one_by_one(lambda mask, x=x: fusion(x, mask), subsets)
        fused = fusion.fuse_subsets(x, subsets).fused if loop is None else joined(loop, "fused")
        scale = torch.linspace(-1, 2, fused.numel()).view_as(fused)
        gradients.append(torch.autograd.grad((fused * scale).sum(), list(x.values())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_broken_modality_reaches_only_the_subsets_that_hold_it(case: Any) -> None:
    fusion = spread(case.build()).eval()
    x, subsets = case.embeddings(ROWS), case.masks()
    clean = fusion.fuse_subsets(x, subsets).fused.view(len(subsets), ROWS, -1)
    x["audio"] = x["audio"].index_fill(0, torch.tensor([4]), math.nan)
    broken = fusion.fuse_subsets(x, subsets).fused.view(len(subsets), ROWS, -1)
    without = ~subsets[:, 1]
    torch.testing.assert_close(broken[without], clean[without])
    assert not broken[subsets[:, 1], 4].isfinite().all()


def test_training_draws_for_every_pair(case: Any) -> None:
    fusion = case.build().train()
    x, subsets = case.embeddings(ROWS), case.masks()
    torch.manual_seed(5)
    got = fusion.fuse_subsets(x, subsets).fused
    torch.manual_seed(5)
    rows = {name: value.repeat(len(subsets), 1) for name, value in x.items()}
    torch.testing.assert_close(got, fusion(rows, subsets.repeat_interleave(ROWS, dim=0)).fused)


def test_subclass_with_its_own_forward_is_believed(case: Any) -> None:
    fusion = case.build().eval()
    base = type(fusion)

    def doubled(self: Any, embeddings: Any, present: Any = None) -> FusionOutput:
        out = base.forward(self, embeddings, present)
        return out._replace(fused=2 * out.fused)

    x, subsets = case.embeddings(ROWS), case.masks()
    want = 2 * fusion.fuse_subsets(x, subsets).fused
    fusion.__class__ = type("Doubled", (base,), {"forward": doubled})
    torch.testing.assert_close(fusion.fuse_subsets(x, subsets).fused, want)


@pytest.mark.parametrize("hidden", [None, 6])
@pytest.mark.parametrize("head", [ClassificationHead, MultilabelHead, RegressionHead])
def test_model_merges_its_head(case: Any, head: type, hidden: int | None) -> None:
    fusion = case.build()
    if fusion.decision_level:
        pytest.skip("a decision-level fusion has no head")
    outputs = {} if head is RegressionHead else {"num_classes" if head is ClassificationHead else "num_labels": 4}
    model = FusionModel(
        {n: nn.Identity() for n in fusion.modalities}, fusion, head(fusion.out_dim, hidden=hidden, **outputs)
    )
    spread(model).eval()
    x, subsets = case.embeddings(ROWS), case.masks()
    want = joined(one_by_one(lambda mask: model.fuse(x, mask), subsets), "logits")
    torch.testing.assert_close(model.fuse_subsets(x, subsets).logits, want)


def test_subsets_of_a_wrong_shape_are_refused(case: Any) -> None:
    with pytest.raises(ValueError, match=r"shape \(S, 3\), got torch.bool \(2, 4\)"):
        case.build().fuse_subsets(case.embeddings(ROWS), torch.ones(2, 4, dtype=torch.bool))
