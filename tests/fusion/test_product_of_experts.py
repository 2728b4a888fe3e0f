"""ProductOfExpertsFusion is Bayes' rule where modalities are independent given the class."""

import math

import pytest
import torch
from torch.nn import functional as F

from polyfuse.fusion import LateFusion, ProductOfExpertsFusion

WIDTHS = {"a": 3, "b": 5, "c": 2}
NAMES = ("c", "a", "b")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])


def make(**kwargs: object) -> tuple[ProductOfExpertsFusion, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    fusion = ProductOfExpertsFusion(NAMES, WIDTHS, **{"out_dim": 7, **kwargs}).eval()
    torch.nn.init.normal_(fusion.prior.weight)
    return fusion, {name: torch.randn(4, width) for name, width in WIDTHS.items()}


def test_is_the_posterior_of_conditionally_independent_gaussians() -> None:
    """Classes with unequal priors, unit Gaussians around a mean per class and modality: experts are then linear."""
    torch.manual_seed(1)
    fusion = ProductOfExpertsFusion(NAMES, WIDTHS, 4, hidden=0, dtype=torch.float64)
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    means = {name: torch.randn(4, width, dtype=torch.float64) for name, width in WIDTHS.items()}
    with torch.no_grad():
        fusion.prior.weight.copy_(prior.log())
        for name, mean in means.items():  # log p(y) + log N(x; mean_y, 1), what y shares left out
            fusion.heads[name].get_parameter("weight").copy_(mean)
            fusion.heads[name].get_parameter("bias").copy_(prior.log() - mean.square().sum(dim=1) / 2)
    x = {name: torch.randn(4, width, dtype=torch.float64) for name, width in WIDTHS.items()}
    found = fusion(x, PRESENT).fused.softmax(dim=1)
    for row in range(4):
        joint = prior.clone()
        for m, name in enumerate(NAMES):
            if PRESENT[row, m]:
                joint *= torch.exp(-(x[name][row] - means[name]).square().sum(dim=1) / 2)
        torch.testing.assert_close(found[row], joint / joint.sum())


def test_one_expert_is_itself_and_none_is_the_prior() -> None:
    fusion, x = make()
    out = fusion(x, PRESENT)
    torch.testing.assert_close(out.fused[2], fusion.heads["b"](x["b"][2]))
    torch.testing.assert_close(out.fused[3], fusion.prior.weight[0])
    torch.testing.assert_close(out.info["modality_logits"][1, 2], fusion.heads["b"](x["b"])[1])
    assert not out.info["modality_logits"][~PRESENT].any()


def test_with_a_flat_prior_it_is_the_sum_of_logits() -> None:
    fusion, x = make()
    torch.nn.init.zeros_(fusion.prior.weight)
    late = LateFusion(NAMES, WIDTHS, 7, reduction="sum").eval()
    late.heads.load_state_dict(fusion.heads.state_dict())
    torch.testing.assert_close(fusion(x, PRESENT).fused, late(x, PRESENT).fused)


def test_prior_is_counted_once_in_multilabel_odds() -> None:
    fusion, x = make(hidden=0, dtype=torch.float32)
    fused = fusion(x).fused
    alone = torch.stack([fusion.heads[name](x[name]) for name in NAMES])
    odds = alone.exp().prod(dim=0) / fusion.prior.weight.exp() ** 2
    torch.testing.assert_close(fused.sigmoid(), odds / (1 + odds))


def test_gaussian_experts_multiply_their_densities() -> None:
    fusion, x = make(family="gaussian", out_dim=2, dtype=torch.float64)
    x = {name: value.double() for name, value in x.items()}
    fused = fusion(x, PRESENT).fused
    grid = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    for row in range(4):
        parts = [fusion.prior.weight[0]]
        parts += [fusion.heads[n](x[n][row]) for m, n in enumerate(NAMES) if PRESENT[row, m]]
        log_density = -sum(F.gaussian_nll_loss(grid, mean.expand_as(grid), (log_variance.exp()).expand_as(grid),
                                               reduction="none") for mean, log_variance in parts)  # fmt: skip
        density = log_density.softmax(dim=0)
        mean = (density * grid).sum()
        variance = (density * (grid - mean).square()).sum()
        torch.testing.assert_close(fused[row], torch.stack([mean, variance.log()]), atol=1e-5, rtol=1e-5)
    assert (fused[:3, 1] < fused[3, 1]).all()  # every expert narrows the prior


def test_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'poisson'"):
        make(family="poisson")
    with pytest.raises(ValueError, match=r"out_dim = 2 .* got 7"):
        make(family="gaussian")
    assert ProductOfExpertsFusion.decision_level
    assert math.isclose(ProductOfExpertsFusion(NAMES, WIDTHS, 3).prior.weight.abs().sum().item(), 0.0)
