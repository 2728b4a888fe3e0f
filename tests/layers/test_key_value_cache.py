"""The cache of keys and values: growth in place, order of rows, and where it ends."""

import pytest
import torch

from polyfuse.layers.key_value_cache import KeyValueCache, caches

B, H, T, W = 3, 2, 5, 7


def test_what_was_appended_can_be_read_and_nothing_is_copied() -> None:
    torch.manual_seed(0)
    key, value = torch.randn(B, H, T, W), torch.randn(B, H, T, 11)
    cache = KeyValueCache(max_length=T)
    assert not cache.filled
    cache.append(key[:, :, :2], value[:, :, :2])
    place = cache.read()[0].data_ptr()
    found = cache.append(key[:, :, 2:], value[:, :, 2:])
    assert torch.equal(found[0], key)
    assert torch.equal(found[1], value)
    assert cache.read()[0].data_ptr() == place
    assert cache.length == T


def test_rows_are_reordered_repeated_and_dropped() -> None:
    torch.manual_seed(0)
    key, value, more = torch.randn(B, H, 2, W), torch.randn(B, H, 2, W), torch.randn(4, H, 1, W)
    cache = KeyValueCache(max_length=T)
    cache.append(key, value)
    rows = torch.tensor([2, 2, 0, 1])
    cache.reorder(rows)
    found = cache.append(more, more)
    assert torch.equal(found[0], torch.cat((key[rows], more), dim=2))
    assert torch.equal(found[1], torch.cat((value[rows], more), dim=2))
    KeyValueCache().reorder(rows)  # nothing in it, nothing to do


def test_there_is_an_end() -> None:
    cache = KeyValueCache(max_length=3)
    with pytest.raises(ValueError, match="the cache is empty"):
        cache.read()
    cache.append(torch.zeros(B, H, 2, W), torch.zeros(B, H, 2, W))
    with pytest.raises(ValueError, match="room for 3 tokens, got 4"):
        cache.append(torch.zeros(B, H, 2, W), torch.zeros(B, H, 2, W))
    fixed = KeyValueCache()
    fixed.append(torch.zeros(B, H, 2, W), torch.zeros(B, H, 2, W))
    with pytest.raises(ValueError, match="room for 2 tokens, got 3"):
        fixed.append(torch.zeros(B, H, 1, W), torch.zeros(B, H, 1, W))
    made = caches(3, max_length=5)
    assert [cache.max_length for cache in made] == [5, 5, 5]
    assert len({id(cache) for cache in made}) == 3


def test_other_rows_heads_or_widths_are_refused() -> None:
    cache = KeyValueCache(max_length=T)
    cache.append(torch.zeros(B, H, 1, W), torch.zeros(B, H, 1, W))
    with pytest.raises(ValueError, match=r"keys of \(3, 2, \*, 7\), got \(1, 2, 1, 7\)"):
        cache.append(torch.zeros(1, H, 1, W), torch.zeros(1, H, 1, W))  # would broadcast over all rows
