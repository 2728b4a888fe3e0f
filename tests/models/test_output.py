"""ModelOutput: named tensors by attribute and by key."""

import copy
import pickle

import pytest
import torch

from polyfuse.models import ModelOutput

OUTPUT = ModelOutput(torch.zeros(2, 3), None, {"pooled": torch.ones(2), "vqa_logits": torch.zeros(2, 5)})


def test_reading() -> None:
    assert OUTPUT.pooled is OUTPUT["pooled"] is OUTPUT.info["pooled"]
    assert OUTPUT["logits"] is OUTPUT.logits is OUTPUT[0]
    assert OUTPUT.attentions is None
    logits, weights, info, attentions = OUTPUT
    assert logits is OUTPUT.logits
    assert (weights, attentions) == (None, None)
    assert info is OUTPUT.info
    assert OUTPUT[2:] == (info, None)


def test_unknown_names_say_what_exists() -> None:
    message = "has no 'poold'; it has: logits, weights, info, attentions, pooled, vqa_logits"
    with pytest.raises(AttributeError, match=message):
        _ = OUTPUT.poold
    with pytest.raises(AttributeError, match=message):
        _ = OUTPUT["poold"]
    assert not hasattr(OUTPUT, "__array__")
    assert not hasattr(OUTPUT, "other")


def test_copies_and_pickles() -> None:
    for other in (copy.copy(OUTPUT), copy.deepcopy(OUTPUT), pickle.loads(pickle.dumps(OUTPUT)), OUTPUT._replace()):  # noqa: S301 (our own bytes)
        assert torch.equal(other.pooled, OUTPUT.pooled)
        assert other._fields == OUTPUT._fields


def test_tree_functions_reach_the_tensors() -> None:
    doubled = torch.utils._pytree.tree_map(lambda x: x if x is None else 2 * x, OUTPUT)
    assert isinstance(doubled, ModelOutput)
    assert torch.equal(doubled.pooled, 2 * OUTPUT.pooled)
