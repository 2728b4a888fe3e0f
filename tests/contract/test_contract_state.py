"""State dicts: a round trip to the same bits, through safetensors too, and no other order of modalities."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file


def test_round_trip(case: Any, tmp_path: Path) -> None:
    model, other = case.model(), case.model(seed=9)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    present = case.masks()
    inputs = {n: torch.randn(len(present), 2) for n in model.modalities}
    assert torch.equal(model.eval()(inputs, present).logits, other.eval()(inputs, present).logits)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def test_another_order_is_refused(case: Any) -> None:
    fusion = case.build()
    turned = case.build(fusion.modalities[::-1])
    with pytest.raises(ValueError, match=r"'text', 'audio', 'image'.*'image', 'audio', 'text'"):
        turned.load_state_dict(fusion.state_dict())


def test_other_names_are_refused(case: Any) -> None:
    other = case.build(("text", "audio", "video"), {"text": 7, "audio": 3, "video": 5})
    with pytest.raises((ValueError, RuntimeError), match="video"):
        other.load_state_dict(case.build().state_dict())


def test_survives_copy_and_torch_save(case: Any, tmp_path: Path) -> None:
    fusion = case.build().eval()
    x = case.embeddings(5)
    assert torch.equal(copy.deepcopy(fusion)(x).fused, fusion(x).fused)
    torch.save(fusion.state_dict(), tmp_path / "state.pt")
    other = case.build(seed=9).eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x).fused, fusion(x).fused)
