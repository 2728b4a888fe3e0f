"""BottleneckFusion: its equations in plain loops, the mean over the present modalities only."""

import pytest
import torch

from polyfuse.fusion import BottleneckFusion

WIDTHS = {"a": 2, "b": 3, "c": 5}
NAMES = ("c", "a", "b")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])


def make(**kwargs: object) -> tuple[BottleneckFusion, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    fusion = BottleneckFusion(NAMES, WIDTHS, 12, **{"num_heads": 3, "bottlenecks": 5, **kwargs}).eval()
    torch.nn.init.normal_(fusion.bottleneck.weight)
    return fusion, {name: torch.randn(4, width) for name, width in WIDTHS.items()}


@pytest.mark.parametrize(("tokens", "num_layers"), [(1, 2), (3, 4)])
def test_equals_the_equations(tokens: int, num_layers: int) -> None:
    fusion, x = make(tokens=tokens, num_layers=num_layers)
    fused = fusion(x, PRESENT).fused
    for row in range(3):
        here = [name for name in "abc" if PRESENT[row, NAMES.index(name)]]
        z = {n: fusion.norm[n](fusion.project[n](x[n][row]).reshape(1, tokens, 12)) for n in here}
        shared = fusion.bottleneck.weight[None]
        for depth in range(num_layers):
            after = {n: fusion.layers[n][depth](*[torch.cat([z[n], shared], dim=1)] * 2) for n in here}
            z = {n: after[n][:, :tokens] for n in here}
            shared = torch.stack([after[n][:, tokens:] for n in here]).mean(dim=0)
        expected = torch.stack([fusion.final[n](z[n].mean(dim=1)) for n in here]).mean(dim=0)
        torch.testing.assert_close(fused[row], expected[0], atol=1e-5, rtol=1e-5)
    assert not fused[3].any()


def test_modalities_meet_in_the_bottlenecks_alone() -> None:
    fusion, x = make()
    other = {**x, "a": torch.randn_like(x["a"])}
    seen: list[torch.Tensor] = []
    fusion.final["b"].register_forward_hook(lambda module, inputs, output: seen.append(output))
    fusion(x), fusion(other)
    assert not torch.equal(seen[0], seen[1])  # a reaches b's token ...
    with torch.no_grad():  # ... but not if layer 1 of a writes nothing into the bottlenecks
        for layer in (fusion.layers["a"][0].out, fusion.layers["a"][0].mlp[3]):
            layer.weight.zero_()
            layer.bias.zero_()
    fusion(x), fusion(other)
    assert torch.equal(seen[2], seen[3])


@pytest.mark.parametrize(("name", "value"), [("tokens", 0), ("bottlenecks", 0), ("num_layers", 1)])
def test_numbers_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        make(**{name: value})
