"""SlotsFusion against its formula, its two paths apart, and dropout of features in training alone."""

import pytest
import torch
from torch.nn import functional as F

from polyfuse.fusion import ConcatFusion, SlotsFusion

WIDTHS = {"a": 2, "b": 3, "c": 5}
NAMES = ("c", "a", "b")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])


def make(**kwargs: object) -> tuple[SlotsFusion, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    fusion = SlotsFusion(NAMES, WIDTHS, 7, **kwargs).eval()
    if fusion.film is not None:
        torch.nn.init.normal_(fusion.film.by_absence.weight)
    return fusion, {name: torch.randn(4, width) for name, width in WIDTHS.items()}


@pytest.mark.parametrize("film", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_equals_the_formula(film: bool, alone: bool) -> None:
    fusion, x = make(film=film, alone=alone)
    fused = fusion(x, PRESENT).fused
    first, last = fusion.mlp[0], fusion.mlp[-1]
    for row in range(4):
        here = {name: bool(PRESENT[row, NAMES.index(name)]) for name in "abc"}
        slots = {
            n: fusion.norm[n](fusion.project[n](x[n][row])) if here[n] else fusion.token[n].weight[0] for n in "abc"
        }
        hidden = first.weight @ torch.cat(list(slots.values())) + first.bias
        if film:
            scale, shift = (
                fusion.film.by_absence.weight @ torch.tensor([0.0 if here[n] else 1.0 for n in "abc"])
            ).chunk(2)
            hidden = hidden * (1 + scale) + shift
        expected = last.weight @ F.gelu(hidden) + last.bias
        terms = [fusion.alone[n](slots[n]) for n in "abc" if here[n]] if alone else []
        if terms:
            expected = expected + torch.stack(terms).mean(dim=0)
        torch.testing.assert_close(fused[row], expected)


def test_without_its_additions_it_is_concat() -> None:
    fusion, x = make(film=False, alone=False, slot_dropout=0.0)
    concat = ConcatFusion(NAMES, WIDTHS, 7)
    concat.load_state_dict(fusion.state_dict())
    assert torch.equal(fusion.train()(x, PRESENT).fused, concat(x, PRESENT).fused)


def test_slot_dropout_drops_features_in_training_and_keeps_their_mean() -> None:
    fusion, x = make(slot_dropout=0.75)
    x = {name: value[:1].expand(20_000, -1) for name, value in x.items()}
    seen: list[torch.Tensor] = []
    fusion.mlp[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    fusion(x), fusion.train()(x)
    whole, dropped = seen
    assert 0.24 < dropped.ne(0).float().mean() < 0.26
    torch.testing.assert_close(dropped[dropped != 0], 4 * whole[dropped != 0])
    torch.testing.assert_close(dropped.mean(dim=0), whole.mean(dim=0), atol=0.1, rtol=0)
    each = dropped.ne(0).float()
    assert (each[:, 0] * each[:, 1]).mean() < 0.08  # features fall one by one, not slot by slot


def test_every_subset_at_once_in_training_only_without_draws() -> None:
    fusion, x = make()
    expected = torch.cat([fusion(x, row.expand(4, -1)).fused for row in PRESENT])
    torch.testing.assert_close(fusion.fuse_subsets(x, PRESENT).fused, expected)
    torch.manual_seed(0)
    assert not torch.equal(fusion.train().fuse_subsets(x, PRESENT).fused, fusion.fuse_subsets(x, PRESENT).fused)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_slot_dropout_is_a_probability(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"slot_dropout must be in \[0, 1\), got {rate}"):
        make(slot_dropout=rate)
