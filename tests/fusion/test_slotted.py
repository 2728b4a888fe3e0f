"""FiLM by the mask: the identity at initialisation, then one scale and shift per absent modality."""

import copy

import torch

from polyfuse.fusion import ConcatFusion
from polyfuse.fusion.slotted import MaskFiLM

PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])


def test_film_is_the_identity_at_first_and_always_on_complete_rows() -> None:
    torch.manual_seed(0)
    film, hidden = MaskFiLM(3, 5), torch.randn(4, 5)
    assert torch.equal(film(hidden, PRESENT), hidden)
    torch.nn.init.normal_(film.by_absence.weight)
    out = film(hidden, PRESENT)
    assert torch.equal(out[0], hidden[0])
    scale, shift = film.by_absence.weight[:5], film.by_absence.weight[5:]
    torch.testing.assert_close(out[1], hidden[1] * (1 + scale[:, 1]) + shift[:, 1])
    torch.testing.assert_close(out[3], hidden[3] * (1 + scale.sum(dim=1)) + shift.sum(dim=1))


def test_concat_with_film_starts_as_concat_and_learns_per_absence() -> None:
    widths = {"a": 2, "b": 3, "c": 5}
    torch.manual_seed(0)
    plain = ConcatFusion(("c", "a", "b"), widths, 7)
    torch.manual_seed(0)
    fusion = ConcatFusion(("c", "a", "b"), widths, 7, film=True)
    x = {name: torch.randn(4, width) for name, width in widths.items()}
    assert torch.equal(fusion(x, PRESENT).fused, plain(x, PRESENT).fused)
    fusion(x, PRESENT[:2].repeat(2, 1)).fused.square().sum().backward()
    gradient = fusion.film.by_absence.weight.grad
    assert gradient[:, 0].any()  # a, absent in row 1; sorted names
    assert not gradient[:, 1:].any()
    assert torch.compile(copy.deepcopy(fusion), fullgraph=True, backend="aot_eager")(x, PRESENT).fused.isfinite().all()
