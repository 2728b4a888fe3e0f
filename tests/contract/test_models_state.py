"""Token-level models: a state dict and a folder round trip to the same bits, and no other order of modalities."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfuse.models.multimodal_transformer import MultimodalTransformer


def test_save_and_load_a_folder(token_case: Any, tmp_path: Path) -> None:
    model = token_case.build().eval().attach("regression")
    model.save_pretrained(tmp_path)
    other = MultimodalTransformer.from_pretrained(tmp_path)
    x, present = token_case.tokens(8), token_case.masks()
    out, again = model(x, present=present), other(x, present=present)
    assert out.logits is None  # two heads ran
    assert {p.device.type for p in other.parameters()} == {"cpu"}
    for task in ("classification", "regression"):
        assert torch.equal(out[f"{task}_logits"], again[f"{task}_logits"])
    assert other.config == model.config
    assert list(other.state_dict()) == list(model.state_dict())


def test_keys_do_not_depend_on_the_order_of_modalities(token_case: Any) -> None:
    shapes = {k: v.shape for k, v in token_case.build().state_dict().items()}
    turned = token_case.build(("image", "text", "audio"))
    assert {k: v.shape for k, v in turned.state_dict().items()} == shapes


def test_another_order_is_refused(token_case: Any) -> None:
    model = token_case.build()
    turned = token_case.build(model.modalities[::-1])
    with pytest.raises(ValueError, match=r"'text', 'audio', 'image'.*'image', 'audio', 'text'"):
        turned.load_state_dict(model.state_dict())


def test_survives_copy_and_torch_save(token_case: Any, tmp_path: Path) -> None:
    model, x = token_case.build().eval(), token_case.tokens(5)
    assert torch.equal(copy.deepcopy(model)(x).logits, model(x).logits)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = token_case.build(seed=9).eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x).logits, model(x).logits)
