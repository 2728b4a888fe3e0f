"""MobileCLIP: counts, an independent S0 text tower, padding, folding, layouts, folders, graphs."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyfuse.models import MODELS
from polyfuse.models.mobileclip import MobileCLIP, mobileclip_tiny

TINY_B = {
    "image_tower": "vit", "image_size": 32, "image_depths": (2,), "image_dims": (128,), "causal": True,
    "text_repmixer": False,
}  # fmt: skip
TINY_S1 = {"text_repmixer": False}
VARIANTS = {"s0": {}, "s1": TINY_S1, "b": TINY_B}


def lively(model: MobileCLIP, seed: int = 0) -> MobileCLIP:
    """Every tensor random and plausible: a tensor that goes to the wrong place shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.fill_(3)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1 and "norm" in name.split(".")[-2] and name.endswith("weight"):
                value.uniform_(0.5, 1.5)
            elif value.ndim < 2:
                value.normal_(mean=0.3, std=0.1)
    return model.eval()


def side(model: MobileCLIP) -> int:
    return 32 if model.config["image_tower"] == "vit" else 64


def texts() -> Tensor:
    return torch.tensor([[98, 5, 99, 0, 0], [98, 7, 11, 13, 99], [98, 99, 0, 0, 0]])


@pytest.mark.parametrize(
    ("name", "image", "text", "image_after", "text_after", "open_clip"),
    [
        ("mobileclip_s0", 11_406_464, 42_441_216, 11_356_992, 42_435_072, None),
        ("mobileclip_s1", 21_541_120, 63_428_096, 21_460_544, 63_428_096, 84_969_729),
        ("mobileclip_s2", 35_814_720, 63_428_096, 35_702_480, 63_428_096, 99_243_329),
        ("mobileclip_b", 86_348_544, 63_428_096, 86_348_544, 63_428_096, 149_777_153),
    ],
)
def test_counts_are_the_published_ones(
    name: str, image: int, text: int, image_after: int, text_after: int, open_clip: int | None
) -> None:
    with torch.device("meta"):
        model = MODELS[name]()

    def counts() -> tuple[int, int]:
        return tuple(sum(p.numel() for p in tower.parameters()) for tower in (model.image, model.text))

    assert counts() == (image, text)
    assert sum(p.numel() for p in model.parameters()) == image + text + 1
    buffers = {name.rsplit(".", 1)[-1] for name, _ in model.named_buffers()}
    assert buffers == {"running_mean", "running_var", "num_batches_tracked"}
    if open_clip is None:
        with pytest.raises(ValueError, match="no text tower with RepMixer"):
            model.to_original("open_clip")
    else:
        theirs = model.to_original("open_clip")
        assert sum(v.numel() for k, v in theirs.items() if k.rsplit(".", 1)[-1] not in buffers) == open_clip
    assert model.reparameterize() is model
    assert counts() == (image_after, text_after)


def plain_text_s0(state: dict[str, Tensor], ids: list[int], heads: int) -> Tensor:
    """Apple's S0 text tower for one padded text, in plain sums, under Apple's names."""
    width = state["text_encoder.embedding_layer.weight"].shape[1]
    places = state["text_encoder.positional_embedding.pos_embed.pos_embed"][0, 0]
    x = torch.stack([state["text_encoder.embedding_layer.weight"][i] + places[n] for n, i in enumerate(ids)])

    def get(name: str) -> Tensor:
        return state[f"text_encoder.{name}"]

    def batch_norm(x_LD: Tensor, name: str) -> Tensor:
        shifted = (x_LD - get(f"{name}.running_mean")) / (get(f"{name}.running_var") + 1e-5).sqrt()
        return shifted * get(f"{name}.weight") + get(f"{name}.bias")

    def along_text(x_LD: Tensor, name: str) -> Tensor:  # 11 taps, each channel for itself, zeros beyond the ends
        taps = get(name)[:, 0, 0]
        rows = []
        for place in range(len(x_LD)):
            total = torch.zeros(width, dtype=x_LD.dtype)
            for tap in range(11):
                if 0 <= place + tap - 5 < len(x_LD):
                    total = total + taps[:, tap] * x_LD[place + tap - 5]
            rows.append(total)
        return torch.stack(rows)

    def mixer_block(x_LD: Tensor, block: str) -> Tensor:
        mixed = batch_norm(along_text(x_LD, f"{block}.token_mixer.mixer.rbr_conv.0.conv.weight"),
                           f"{block}.token_mixer.mixer.rbr_conv.0.bn")  # fmt: skip
        mixed = mixed + batch_norm(x_LD, f"{block}.token_mixer.mixer.rbr_skip")
        less = batch_norm(x_LD, f"{block}.token_mixer.norm.rbr_skip")
        x_LD = x_LD + get(f"{block}.token_mixer.layer_scale").flatten() * (mixed - less)
        inner = batch_norm(along_text(x_LD, f"{block}.convffn.conv.conv.weight"), f"{block}.convffn.conv.bn")
        inner = F.gelu(inner @ get(f"{block}.convffn.fc1.weight")[:, :, 0, 0].t() + get(f"{block}.convffn.fc1.bias"))
        inner = inner @ get(f"{block}.convffn.fc2.weight")[:, :, 0, 0].t() + get(f"{block}.convffn.fc2.bias")
        return x_LD + get(f"{block}.layer_scale").flatten() * inner

    def norm(x_LD: Tensor, name: str) -> Tensor:
        centred = x_LD - x_LD.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * get(f"{name}.weight") + get(
            f"{name}.bias"
        )

    def linear(x_LD: Tensor, name: str) -> Tensor:
        return x_LD @ get(f"{name}.weight").t() + get(f"{name}.bias")

    def attention_layer(x_LD: Tensor, block: str) -> Tensor:
        query, key, value = linear(norm(x_LD, f"{block}.pre_norm_mha.0"), f"{block}.pre_norm_mha.1.qkv_proj").chunk(
            3, dim=-1
        )
        size, read = width // heads, []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            read.append((query[:, part] @ key[:, part].t() / math.sqrt(size)).softmax(-1) @ value[:, part])
        x_LD = x_LD + linear(torch.cat(read, dim=-1), f"{block}.pre_norm_mha.1.out_proj")
        hidden = F.gelu(linear(norm(x_LD, f"{block}.pre_norm_ffn.0"), f"{block}.pre_norm_ffn.1"))
        return x_LD + linear(hidden, f"{block}.pre_norm_ffn.4")

    x = mixer_block(x, "transformer.0")
    x = attention_layer(x, "transformer.1")
    x = attention_layer(x, "transformer.2")
    x = norm(mixer_block(x, "transformer.3"), "final_layer_norm")
    pooled = x[ids.index(max(ids))] @ get("projection_layer")
    return pooled / pooled.norm()


def test_s0_text_tower_equals_plain_sums_with_gradients() -> None:
    model = lively(mobileclip_tiny(text_heads=4)).double()
    state = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in model.to_original("apple").items()}
    probe = torch.randn(24, dtype=torch.float64)
    texts_of = [[98, 5, 99] + [0] * 10, [98, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 99]]
    plain = torch.stack([plain_text_s0(state, ids, heads=4) for ids in texts_of])
    (plain @ probe).sum().backward()
    for form in (model, copy.deepcopy(model).reparameterize()):
        torch.testing.assert_close(form.encode_text(torch.tensor(texts_of)), plain, rtol=1e-9, atol=1e-9)
    (model.encode_text(torch.tensor(texts_of)) @ probe).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    compared = 0
    for name, gradient in model.to_original("apple").items():
        if name.startswith("text_encoder.") and "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(gradient, state[name].grad, rtol=1e-7, atol=1e-9, msg=name)
            compared += 1
    assert compared > 50


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_an_embedding_does_not_depend_on_its_neighbours(variant: str) -> None:
    model = lively(mobileclip_tiny(**VARIANTS[variant]))
    with torch.no_grad():
        together = model.encode_text(texts())
        alone = torch.cat([model.encode_text(row[None, : int(row.argmax()) + 1]) for row in texts()])
        padded = model.encode_text(F.pad(texts(), (0, 8)))
        junk = texts().masked_fill(texts() == 0, 99)
        masked = model.encode_text(junk, texts() != 0)
    for other in (alone, padded, masked):
        torch.testing.assert_close(other, together, rtol=1e-5, atol=1e-6)


def test_towers_that_are_not_causal_attend_to_the_padding_as_in_training() -> None:
    model = lively(mobileclip_tiny(**TINY_S1))
    short = texts()[:1, :3]
    with torch.no_grad():
        bare = F.normalize(model.text(short), dim=-1)
    assert (bare - model.encode_text(short)).abs().max() > 1e-3


def test_what_is_absent_is_left_out() -> None:
    model = lively(mobileclip_tiny())
    images = torch.rand(2, 3, 64, 64)
    both = model(images, texts())
    assert set(both.info) == {
        "image_embedding", "text_embedding", "logit_scale", "logits_per_image", "logits_per_text"
    }  # fmt: skip
    torch.testing.assert_close(both.logits_per_text, both.logits_per_image.t())
    expected = both.logit_scale * both.image_embedding @ both.text_embedding.t()
    torch.testing.assert_close(both.logits_per_image, expected)
    assert set(model(images).info) == {"image_embedding", "logit_scale"}
    assert set(model(input_ids=texts()).info) == {"text_embedding", "logit_scale"}
    torch.testing.assert_close(model(images).image_embedding, both.image_embedding)
    torch.testing.assert_close(both.text_embedding.norm(dim=-1), torch.ones(3))
    with pytest.raises(ValueError, match="got neither"):
        model()


def test_the_scale_stays_below_a_hundred() -> None:
    model = mobileclip_tiny()
    assert model.scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert model.scale().item() == 100.0


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_parameter_trains(variant: str) -> None:
    model = lively(mobileclip_tiny(**VARIANTS[variant])).train()
    model.attach("classification", num_classes=3)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    output = model(torch.rand(3, 3, side(model), side(model)), texts())
    (F.cross_entropy(output.logits_per_image, torch.arange(3)) + output.classification_logits[:, 0].sum()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("layout", ["apple", "open_clip"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("fused", [False, True])
def test_original_layouts_round_trip(layout: str, variant: str, fused: bool) -> None:
    model = lively(mobileclip_tiny(**VARIANTS[variant]))
    if fused:
        model.reparameterize()
    if layout == "open_clip" and variant == "s0":
        pytest.skip("open_clip has no S0")
    theirs = model.to_original(layout)
    read = MobileCLIP.from_original({f"module.{name}": value for name, value in theirs.items()})
    told = {key: value for key, value in read.config.items() if key not in ("image_size", "image_heads")}
    assert told == {key: model.config[key] for key in told}
    again = read.to_original()
    assert set(again) == set(theirs)
    for name, value in theirs.items():
        assert torch.equal(again[name], value), name
        assert again[name].shape == value.shape
    images = torch.rand(2, 3, side(model), side(model))
    with torch.no_grad():
        one, other = model(images, texts()), read(images, texts())
    torch.testing.assert_close(one.logits_per_image, other.logits_per_image, rtol=0, atol=0)
    assert torch.equal(MobileCLIP.from_original(theirs).state_dict()["logit_scale"], model.logit_scale)


def test_names_are_apples() -> None:
    theirs = mobileclip_tiny().to_original()
    for name, shape in {
        "image_encoder.model.patch_embed.0.rbr_scale.bn.running_var": (8,),
        "image_encoder.model.network.1.proj.0.lkb_origin.conv.weight": (16, 1, 7, 7),
        "image_encoder.model.network.5.proj.0.se.fc1.weight": (16, 64, 1, 1),
        "image_encoder.model.network.6.pe.bias": (64,),
        "image_encoder.model.network.4.1.token_mixer.layer_scale": (32, 1, 1),
        "image_encoder.model.network.7.0.layer_scale_2": (64, 1, 1),
        "image_encoder.model.conv_exp.se.reduce.weight": (8, 128, 1, 1),
        "image_encoder.model.head.proj": (128, 24),
        "text_encoder.positional_embedding.pos_embed.pos_embed": (1, 1, 13, 64),
        "text_encoder.transformer.3.convffn.conv.conv.weight": (64, 1, 1, 11),
        "text_encoder.projection_layer": (64, 24),
    }.items():
        assert tuple(theirs[name].shape) == shape, name
    after = mobileclip_tiny().reparameterize().to_original()
    assert "image_encoder.model.network.1.proj.0.lkb_reparam.bias" in after
    assert "text_encoder.transformer.0.token_mixer.reparam_conv.weight" in after
    vit = mobileclip_tiny(**TINY_B).to_original()
    assert tuple(vit["image_encoder.model.cls_token"].shape) == (1, 1, 128)
    assert tuple(vit["image_encoder.model.pos_embed.pos_embed.pos_embed"].shape) == (1, 1, 4, 128)
    assert tuple(vit["image_encoder.model.patch_emb.2.block.conv.bias"].shape) == (128,)


def test_a_projection_bias_is_kept_where_it_says_something() -> None:
    model = lively(mobileclip_tiny(**TINY_S1))
    theirs = model.to_original("open_clip")
    assert not theirs["visual.trunk.head.fc.bias"].any()
    theirs["visual.trunk.head.fc.bias"] = torch.arange(24.0)
    read = MobileCLIP.from_original(theirs)
    assert read.config["image_bias"]
    assert torch.equal(read.to_original("open_clip")["visual.trunk.head.fc.bias"], torch.arange(24.0))
    with pytest.raises(ValueError, match="no bias on the image projection"):
        read.to_original("apple")


def test_what_does_not_fit_is_listed() -> None:
    theirs = lively(mobileclip_tiny()).to_original()
    del theirs["text_encoder.final_layer_norm.bias"]
    theirs["text_encoder.extra"] = torch.zeros(3)
    theirs["image_encoder.model.conv_exp.se.reduce.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match="does not fit MobileCLIP") as error:
        MobileCLIP.from_original(theirs)
    for part in ("missing text_encoder.final_layer_norm.bias", "cannot map text_encoder.extra", r"(5,), expected (8,)"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"image_encoder.model. \(Apple\).*got conv1.weight"):
        MobileCLIP.from_original({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="layout must be one of apple, open_clip, got 'hf'"):
        MobileCLIP.from_original(lively(mobileclip_tiny()).to_original(), layout="hf")
    with pytest.raises(ValueError, match=r"missing text_encoder.embedding_layer.weight"):
        MobileCLIP.from_original({"image_encoder.model.x": torch.zeros(1)})
    shifted = lively(mobileclip_tiny(**TINY_S1)).to_original("open_clip")
    MobileCLIP.from_original({**shifted, "logit_bias": torch.zeros(())})  # carries nothing
    with pytest.raises(ValueError, match="cannot map logit_bias"):
        MobileCLIP.from_original({**shifted, "logit_bias": torch.tensor(-10.0)})


APPLE_CONFIG = {
    "embed_dim": 512,
    "image_cfg": {"image_size": 256, "model_name": "mci0"},
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "dim": 512, "ffn_multiplier_per_layer": 4.0, "n_heads_per_layer": 8,
        "n_transformer_layers": 4, "norm_layer": "layer_norm_fp32", "causal_masking": False, "model_name": "mct",
    },
}  # fmt: skip
OPEN_CLIP_CONFIG = {
    "embed_dim": 512,
    "vision_cfg": {"timm_model_name": "vit_base_mci_224", "image_size": 224},
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "no_causal_mask": False
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config"), [("mobileclip_s0", APPLE_CONFIG), ("mobileclip_b", {"model_cfg": OPEN_CLIP_CONFIG})]
)
def test_configs_shapes_and_names_tell_the_same(name: str, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    state = model.to_original("apple")
    kwargs = MobileCLIP.original_config(state, config)
    for told in (kwargs, MobileCLIP.original_config(state, None), MobileCLIP.original_config(state, {"size": name})):
        with torch.device("meta"):
            built = MobileCLIP(**told)
        differing = {key for key, value in model.config.items() if built.config[key] != value} - {"image_heads"}
        assert differing == set()


def test_a_config_may_be_a_name_or_a_file(tmp_path: Path) -> None:
    theirs = lively(mobileclip_tiny(**TINY_S1)).to_original()
    with pytest.raises(ValueError, match="does not fit MobileCLIP"):
        MobileCLIP.from_original(theirs, "MobileCLIP-S1")
    with pytest.raises(ValueError, match=r"mobileclip_s0.*got 'mobileclip_s9'"):
        MobileCLIP.from_original(theirs, "mobileclip_s9")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**APPLE_CONFIG, "image_cfg": {"model_name": "mci9"}}))
    with pytest.raises(ValueError, match="mci0, mci1, mci2, vit_b16, got 'mci9'"):
        MobileCLIP.from_original(theirs, file)
    with pytest.raises(ValueError, match=r"got keys \['hidden_size'\]"):
        MobileCLIP.from_original(theirs, {"hidden_size": 3})


def test_vit_definitions() -> None:
    model = lively(mobileclip_tiny(**TINY_B))
    theirs = model.to_original()
    images = torch.rand(2, 3, 32, 32)
    timm = MobileCLIP.from_original(theirs, vit_definition="timm")
    assert timm.config["vit_definition"] == "timm"
    built = mobileclip_tiny(**TINY_B, vit_definition="timm").eval()
    built.load_state_dict(timm.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(timm.encode_image(images), built.encode_image(images), rtol=0, atol=0)
        assert (timm.encode_image(images) - model.encode_image(images)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="one of apple, timm, got 'hf'"):
        model.defined_by("hf")
    with pytest.raises(ValueError, match="only a ViT tower has two definitions"):
        MobileCLIP.from_original(lively(mobileclip_tiny()).to_original(), vit_definition="timm")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'fastvit' or 'vit', got 'resnet'"):
        mobileclip_tiny(image_tower="resnet")
    with pytest.raises(ValueError, match=r"one depth and one width, got \[1, 1, 2, 1\]"):
        mobileclip_tiny(image_tower="vit")
    model = mobileclip_tiny()
    with pytest.raises(ValueError, match=r"input_ids must be \(B, L\) with L up to 13, got \(1, 14\)"):
        model.encode_text(torch.zeros(1, 14, dtype=torch.long))
    with pytest.raises(ValueError, match=r"text_mask must be bool.*got \(1, 2\)"):
        model.encode_text(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(2, 1, 64, 64\)"):
        model.encode_image(torch.zeros(2, 1, 64, 64))


@pytest.mark.parametrize("fused", [False, True])
def test_folders_keep_the_form(fused: bool, tmp_path: Path) -> None:
    model = lively(mobileclip_tiny()).attach("classification", num_classes=3)
    if fused:
        model.reparameterize()
    read = MobileCLIP.from_pretrained(model.save_pretrained(tmp_path))
    assert read.config["reparameterized"] is fused
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        one, other = model(images, texts()), read(images, texts())
    assert all(torch.equal(one.info[name], other.info[name]) for name in one.info)


def test_reparameterizing_keeps_the_numbers_and_can_be_repeated() -> None:
    model = lively(mobileclip_tiny())
    fused = copy.deepcopy(model).reparameterize()
    kept = {name: id(value) for name, value in fused.named_parameters()}
    assert {name: id(value) for name, value in fused.reparameterize().named_parameters()} == kept
    assert len(kept) < len(list(model.parameters()))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        one, other = model(images, texts()), fused(images, texts())
    torch.testing.assert_close(other.image_embedding, one.image_embedding, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.text_embedding, one.text_embedding, rtol=0, atol=1e-6)


def test_attention_maps_of_both_towers() -> None:
    model = lively(mobileclip_tiny())
    output = model(torch.rand(2, 3, 64, 64), texts(), return_attention=True)
    assert output.attentions is not None
    shapes = {name: tuple(value.shape) for name, value in output.attentions.items()}
    assert shapes == {
        "image.trunk.stages.3.blocks.0.attention": (2, 2, 4, 4),
        "text.layers.1.attention": (3, 1, 13, 13),
        "text.layers.2.attention": (3, 1, 13, 13),
    }
    for weights in output.attentions.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize("variant", ["s0", "b"])
def test_the_reparameterized_form_exports(variant: str) -> None:
    model = lively(mobileclip_tiny(**VARIANTS[variant])).reparameterize()
    inputs = (torch.rand(2, 3, side(model), side(model)), F.pad(texts(), (0, 8)))
    program = torch.export.export(model, inputs)
    torch.testing.assert_close(
        program.module()(*inputs).info["logits_per_image"], model(*inputs).logits_per_image, rtol=1e-5, atol=1e-5
    )


def test_the_reparameterized_form_compiles() -> None:
    model = lively(mobileclip_tiny()).reparameterize()
    inputs = (torch.rand(2, 3, 64, 64), F.pad(texts(), (0, 8)))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found = compiled(*inputs).logits_per_image
        torch.testing.assert_close(found, model(*inputs).logits_per_image, rtol=1e-5, atol=1e-5)
