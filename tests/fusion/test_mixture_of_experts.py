"""MixtureOfExpertsFusion: a mixture, as its formula says, routed by the mask."""

import pytest
import torch
from torch.nn import functional as F

from polyfuse.fusion import MixtureOfExpertsFusion

WIDTHS = {"a": 2, "b": 3, "c": 5}
NAMES = ("c", "a", "b")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])


def make(**kwargs: object) -> tuple[MixtureOfExpertsFusion, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    fusion = MixtureOfExpertsFusion(NAMES, WIDTHS, 7, **{"experts": 3, "hidden": 11, **kwargs})
    return fusion, {name: torch.randn(4, width) for name, width in WIDTHS.items()}


@pytest.mark.parametrize("content", [False, True])
def test_equals_the_mixture_in_plain_loops(content: bool) -> None:
    fusion, x = make(content=content)
    out = fusion(x, PRESENT)
    for row in range(4):
        slots = []
        for name in "abc":
            here = PRESENT[row, NAMES.index(name)]
            slots.append(
                fusion.norm[name](fusion.project[name](x[name][row])) if here else fusion.token[name].weight[0]
            )
        s = torch.cat(slots)
        mask = PRESENT[row, [1, 2, 0]].float()  # sorted names
        scores = fusion.router(mask) + (fusion.content(s) if content else 0.0)
        fused = fusion.last.bias
        for e, share in enumerate(scores.softmax(dim=0)):
            rows = slice(11 * e, 11 * (e + 1))
            hidden = F.gelu(fusion.first.weight[rows] @ s + fusion.first.bias[rows])
            fused = fused + share * (fusion.last.weight[:, rows] @ hidden)
        torch.testing.assert_close(out.fused[row], fused)
        torch.testing.assert_close(out.info["routing"][row], scores.softmax(dim=0))


def test_the_router_depends_on_the_mask_and_on_content_only_if_asked() -> None:
    fusion, x = make()
    routing = fusion(x, PRESENT).info["routing"]
    assert len(routing.unique(dim=0)) == 4
    other = {name: torch.randn_like(value) for name, value in x.items()}
    assert torch.equal(fusion(other, PRESENT).info["routing"], routing)
    fusion, x = make(content=True)
    assert not torch.equal(fusion(other).info["routing"], fusion(x).info["routing"])


def test_size_does_not_grow_with_the_number_of_subsets() -> None:
    def size(number: int) -> int:
        names = tuple(f"m{i}" for i in range(number))
        return sum(p.numel() for p in MixtureOfExpertsFusion(names, 8).parameters())

    assert size(12) < 2.2 * size(6)


def test_experts_must_be_positive() -> None:
    with pytest.raises(ValueError, match="experts must be positive, got 0"):
        make(experts=0)
