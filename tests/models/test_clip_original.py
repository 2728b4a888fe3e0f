"""CLIP's three key layouts, both ways, and what is refused."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from polyfuse.models.clip import CLIP, clip_tiny

OPEN_CLIP = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 24, "heads": 3, "layers": 2},
}


def tiny(**kwargs: object) -> CLIP:
    torch.manual_seed(0)
    model = clip_tiny(**kwargs).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def logits(model: CLIP) -> Tensor:
    torch.manual_seed(5)
    return model(
        torch.randn(2, 3, 32, 32), torch.tensor([[62, 5, 63, 0], [62, 9, 8, 63], [62, 63, 0, 0]])
    ).logits_per_image


def same(first: CLIP, second: CLIP) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


def test_hugging_face_to_ours_to_open_clip_to_ours_is_exact() -> None:
    torch.manual_seed(0)
    text = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 3, "max_position_embeddings": 16, "eos_token_id": 63}
    image = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    image |= {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=20)
    peer = transformers.CLIPModel(config).eval()
    state = peer.state_dict()
    model = CLIP.from_original(state, config.to_dict())
    assert not model.training
    back = model.to_original("hf")
    assert set(back) == {key for key in state if not key.endswith("position_ids")}
    assert all(torch.equal(back[key], state[key]) and back[key].shape == state[key].shape for key in back)
    for layout in ("openai", "open_clip_custom_text"):
        original = model.to_original(layout)
        again = CLIP.from_original(original, OPEN_CLIP)
        assert same(again, model)
        assert torch.equal(logits(again), logits(model))
        assert all(torch.equal(value, original[key]) for key, value in again.to_original(layout).items())


def test_names_and_shapes_of_the_openai_layout() -> None:
    state = tiny().to_original()
    assert state["visual.conv1.weight"].shape == (32, 3, 8, 8)
    assert state["visual.proj"].shape == (32, 20)
    assert state["text_projection"].shape == (24, 20)
    assert state["transformer.resblocks.1.attn.in_proj_weight"].shape == (72, 24)
    assert state["logit_scale"].shape == ()
    assert {"token_embedding.weight", "positional_embedding", "ln_final.bias", "visual.ln_pre.weight"} <= set(state)
    assert "text.ln_final.bias" in tiny().to_original("open_clip_custom_text")


def test_query_key_and_value_are_stacked_in_that_order() -> None:
    model = tiny()
    hf = model.to_original("hf")
    stacked = torch.cat([hf[f"text_model.encoder.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(stacked, model.to_original()["transformer.resblocks.0.attn.in_proj_weight"])


def test_sizes_are_told_from_shapes_and_the_activation_is_not() -> None:
    model = tiny(image_heads=None, text_heads=None, image_dim=64, text_dim=128)
    state = model.to_original()
    with pytest.warns(UserWarning, match="quick_gelu"):
        again = CLIP.from_original(state)
    assert same(again, model)
    assert torch.equal(logits(again), logits(model))
    assert again.config["activation"] == "quick_gelu"
    exact = CLIP.from_original(state, {"quick_gelu": False})
    assert exact.config["activation"] == "gelu"
    assert (logits(exact) - logits(model)).abs().max() > 1e-5
    # OpenAI's own archives keep these numbers, which says whose weights they are: no warning.
    numbers = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(64)}
    assert same(CLIP.from_original({**state, **numbers}), model)


def test_open_clip_without_quick_gelu_is_exact_gelu() -> None:
    model = tiny(activation="gelu")
    config = {key: value for key, value in OPEN_CLIP.items() if key != "quick_gelu"}
    again = CLIP.from_original(model.to_original(), {"model_cfg": config, "preprocess_cfg": {"size": 32}})
    assert torch.equal(logits(again), logits(model))


def test_settings_of_open_clip_that_shapes_do_not_show() -> None:
    vision = {**OPEN_CLIP["vision_cfg"], "norm_kwargs": {"eps": 1e-6}}  # type: ignore[dict-item]
    text = {**OPEN_CLIP["text_cfg"], "no_causal_mask": True, "pool_type": "eos", "eos_id": 61}  # type: ignore[dict-item]
    model = CLIP.from_original(tiny().to_original(), {**OPEN_CLIP, "vision_cfg": vision, "text_cfg": text})
    assert model.image.norm.eps == model.image.layers[0].mlp_norm.eps == 1e-6
    assert model.text.norm.eps == 1e-5
    assert (model.text.causal, model.text.pooling, model.text.eos_id) == (False, "eos", 61)


@pytest.mark.parametrize(
    ("part", "change", "match"),
    [
        ("vision_cfg", {"timm_model_name": "fastvit_mci1"}, "'fastvit_mci1'"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "a ResNet"),
        ("vision_cfg", {"pool_type": "avg"}, "avg"),
        ("vision_cfg", {"ls_init_value": 0.1}, "ls_init_value"),
        ("vision_cfg", {"image_size": [32, 40]}, "square"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "roberta-base"),
        ("text_cfg", {"pool_type": "last"}, "got 'last'"),
        ("text_cfg", {"embed_cls": True}, "embed_cls"),
    ],
)
def test_another_architecture_is_refused(part: str, change: dict[str, object], match: str) -> None:
    config = {**OPEN_CLIP, part: {**OPEN_CLIP[part], **change}}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=match):
        CLIP.from_original(tiny().to_original(), config)


def test_faults_are_listed() -> None:
    state = tiny().to_original()
    del state["ln_final.bias"]
    state["visual.attn_pool.query"] = torch.zeros(3)
    state["visual.proj"] = torch.zeros(32, 19)
    expected = (
        r"visual.proj is \(19, 32\), expected \(20, 32\); missing ln_final.bias; cannot map visual.attn_pool.query"
    )
    with pytest.raises(ValueError, match=expected):
        CLIP.from_original(state, OPEN_CLIP)
    with pytest.raises(ValueError, match="cannot map logit_bias"):
        CLIP.from_original({**tiny().to_original(), "logit_bias": torch.zeros(())}, OPEN_CLIP)
    with pytest.raises(ValueError, match="no names of CLIP's"):
        CLIP.from_original({"encoder.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"needs its config \(config.json\)"):
        CLIP.from_original(tiny().to_original("hf"))
    with pytest.raises(ValueError, match="'siglip'"):
        CLIP.from_original(tiny().to_original("hf"), {"model_type": "siglip", "text_config": {}, "vision_config": {}})
    with pytest.raises(ValueError, match="got 'mish'"):
        CLIP.from_original(tiny().to_original("hf"), {"text_config": {}, "vision_config": {"hidden_act": "mish"}})
    with pytest.raises(ValueError, match="it has epochs"):
        CLIP.from_original(tiny().to_original(), {"epochs": 3})
    with pytest.raises(ValueError, match="got 'clip'"):
        tiny().to_original("clip")


def test_parts_in_half_precision_and_a_prefix_of_a_parallel_run() -> None:
    model = tiny()
    state = model.to_original()
    mixed = {f"module.{k}": v.half() if "ln_" not in k else v for k, v in state.items()}
    got = CLIP.from_original(mixed, OPEN_CLIP)
    assert {parameter.dtype for parameter in got.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(got), logits(model), atol=2e-2, rtol=0)
    half = CLIP.from_original({key: value.half() for key, value in state.items()}, OPEN_CLIP)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}


def test_files(tmp_path: Path) -> None:
    model = tiny()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP}))
    save_file(model.to_original(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": model.to_original(), "epoch": torch.tensor(3)}, tmp_path / "weights.pt")
    for name in ("weights.safetensors", "weights.pt"):
        assert same(CLIP.from_original(tmp_path / name, tmp_path / "open_clip_config.json"), model)


def test_a_torchscript_archive_is_named_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save lays it out
        for name in ("data.pkl", "constants.pkl", "code/__torch__/model.py", "version"):
            archive.writestr(f"ViT-B-32/{name}", b"")
    with pytest.raises(ValueError, match=r"TorchScript archive.*torch.jit.load\('.*ViT-B-32.pt'"):
        CLIP.from_original(path)
