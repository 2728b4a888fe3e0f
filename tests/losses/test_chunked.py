"""Tiled contrastive losses: equal to the dense ones, and of a memory that does not grow with the batch."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polyfuse.losses import chunked_info_nce, chunked_siglip, distributed_info_nce, info_nce, siglip_loss

CHUNK, WIDTH = 32, 16


class Peak(TorchDispatchMode):
    """Largest sum of bytes in storages that live at once, of those made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in inputs | self.known:
                self.add(x.untyped_storage())
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata
        self.known.add(key)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def sides(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, WIDTH, generator=generator, dtype=dtype) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


def measure(loss: Callable[..., Tensor], count: int, **settings: Any) -> tuple[int, int]:
    """Peak bytes and the largest tensor of a forward and a backward pass, the gradients of the inputs taken off."""
    first, second = sides(count)
    scale = torch.tensor(3.0, requires_grad=True)
    with Peak() as peak:
        gradients = torch.autograd.grad(loss(first, second, scale, **settings), (first, second, scale))
    kept = sum(g.untyped_storage().nbytes() for g in gradients)
    return peak.peak - kept, peak.largest


@pytest.mark.parametrize("loss", [chunked_info_nce, chunked_siglip])
def test_memory_is_flat_in_the_batch(loss: Callable[..., Tensor]) -> None:
    found = {count: measure(loss, count, chunk=CHUNK) for count in (128, 512, 1024)}
    assert len({peak for peak, _ in found.values()}) == 1, found  # to the byte
    assert found[1024][1] == 1024 * WIDTH * 4  # nothing made is larger than a gradient


def test_the_measure_sees_the_table_of_the_dense_form() -> None:
    """The dense form grows with the square: the measure can fail."""
    small, large = (measure(info_nce, count)[0] for count in (128, 512))
    assert large > 10 * small
    assert large > 512 * 512 * 4


def test_ids_and_presence_cost_nothing_per_row() -> None:
    found = []
    for count in (128, 512, 1024):
        ids, present = torch.arange(count) // 3, torch.arange(count) % 7 > 0
        found.append(measure(chunked_info_nce, count, chunk=CHUNK, ids=ids, present=present)[0])
    assert len(set(found)) == 1, found


@pytest.mark.parametrize("chunk", [3, 11, 64])
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("with_present", [False, True])
def test_value_and_gradient_are_the_dense_ones(chunk: int, with_ids: bool, with_present: bool) -> None:
    first, second = sides(23, dtype=torch.float64)
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.7, -0.6))
    generator = torch.Generator().manual_seed(1)
    rows = {
        "ids": torch.randint(0, 11, (23,), generator=generator) if with_ids else None,
        "present": torch.rand(23, generator=generator) < 0.7 if with_present else None,
    }
    cases = [
        (
            chunked_siglip(first, second, scale, bias, chunk=chunk, **rows),
            siglip_loss(first, second, scale, bias, **rows),
        )
    ]
    for smoothing in (0.0, 0.1):
        dense = info_nce(first, second, scale, label_smoothing=smoothing, **rows)
        settings = {"label_smoothing": smoothing, "chunk": chunk, **rows}
        cases.append((chunked_info_nce(first, second, scale, **settings), dense))
        cases.append((distributed_info_nce(first, second, scale, mode="ring", **settings), dense))  # a ring of one
    for ours, theirs in cases:
        torch.testing.assert_close(ours, theirs)
        inputs = (first, second, scale, bias)
        for got, wanted in zip(
            torch.autograd.grad(ours, inputs, allow_unused=True),
            torch.autograd.grad(theirs, inputs, allow_unused=True, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(got, wanted)


def test_number_of_torchmultimodal() -> None:
    torch.manual_seed(1234)
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    assert chunked_info_nce(first, second, 1 / 0.07, chunk=2).item() == pytest.approx(9.875298, abs=1e-5)
    smoothed = chunked_info_nce(first, second, 1 / 0.07, chunk=2, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(10.252399, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_in_the_gradient(dtype: torch.dtype) -> None:
    first, second = (x.detach().to(dtype).requires_grad_() for x in sides(23))
    loss = chunked_info_nce(first, second, 2.0, chunk=7)
    wide = info_nce(first.float(), second.float(), 2.0)
    torch.testing.assert_close(loss, wide)
    for got, wanted in zip(
        torch.autograd.grad(loss, (first, second)), torch.autograd.grad(wide, (first, second)), strict=True
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got, wanted)
