"""TensorFusion equals the outer product in plain loops."""

import itertools

import pytest
import torch

from polyfuse.fusion import TensorFusion
from polyfuse.fusion.tensor import DEFAULT_PRODUCTS, PRODUCT_LIMIT

WIDTHS = {"a": 2, "b": 3, "c": 5}
NAMES = ("c", "a", "b")
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])


def make(**kwargs: object) -> tuple[TensorFusion, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    fusion = TensorFusion(NAMES, WIDTHS, 7, **kwargs)
    return fusion, {name: torch.randn(4, width) for name, width in WIDTHS.items()}


def test_equals_the_outer_product() -> None:
    fusion, x = make(width=2)
    products, _ = fusion.products(x, PRESENT)
    for row in range(4):
        z = {name: torch.cat([torch.ones(1), fusion.factor[name](x[name][row]).tanh()]) for name in WIDTHS}
        for m, name in enumerate(NAMES):
            if not PRESENT[row, m]:
                z[name] = torch.tensor([1.0, 0.0, 0.0])
        expected = [z["a"][i] * z["b"][j] * z["c"][k] for i, j, k in itertools.product(range(3), repeat=3)]
        torch.testing.assert_close(products[row], torch.stack(expected))
    torch.testing.assert_close(fusion(x, PRESENT).fused, fusion.mlp(products))


def test_absent_modality_leaves_the_product_of_the_others() -> None:
    fusion, x = make(width=4)
    pair = TensorFusion(("b", "c"), WIDTHS, 7, width=4)
    pair.factor.load_state_dict({k: v for k, v in fusion.factor.state_dict().items() if not k.startswith("a.")})
    products, _ = fusion.products(x, torch.tensor([[True, False, True]] * 4))
    products = products.unflatten(1, (5, 25))  # a is first among the sorted names
    torch.testing.assert_close(products[:, 0], pair.products(x)[0])
    assert not products[:, 1:].any()


@pytest.mark.parametrize(("number", "width"), [(2, 31), (3, 9), (4, 4), (8, 1), (16, 1)])
def test_default_width_keeps_the_product_small(number: int, width: int) -> None:
    fusion = TensorFusion(tuple(f"m{i}" for i in range(number)), 3, 64)
    assert fusion.width == width
    assert (1 + width) ** number <= (DEFAULT_PRODUCTS if number <= 10 else PRODUCT_LIMIT)
    assert TensorFusion(("a", "b"), 3, 5).width == 5


def test_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1 \+ 64\)\^3 = 274625 entries, the limit is 65536"):
        make(width=64)
    with pytest.raises(ValueError, match=r"17 modalities of width 1 .* 131072"):
        TensorFusion(tuple(f"m{i}" for i in range(17)), 3)
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        make(width=0)


def test_hidden_and_dropout() -> None:
    fusion, x = make(hidden=11, dropout=0.5)
    assert fusion.mlp[1].out_features == 11
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
