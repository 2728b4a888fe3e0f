"""MobileCLIP's checkpoints: Apple's names and open_clip's (with timm's image towers), settings told from shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from polyfuse.models.convert import Rule, rules_for
from polyfuse.models.fastvit import AttentionBlock, ConvFeedForward, FastViT, LargeKernelConv, RepMixerBlock
from polyfuse.models.reparameterized import ConvNorm, RepConv, SqueezeExcite

#: What distinguishes the published sizes; the towers' names are Apple's.
IMAGE_TOWERS: dict[str, dict[str, Any]] = {
    "mci0": {"image_depths": (2, 6, 10, 2), "image_dims": (64, 128, 256, 512)},
    "mci1": {"image_depths": (4, 12, 20, 4), "image_dims": (64, 128, 256, 512)},
    "mci2": {"image_depths": (4, 12, 24, 4), "image_dims": (80, 160, 320, 640)},
    "vit_b16": {"image_tower": "vit", "image_size": 224, "image_depths": (12,), "image_dims": (768,)},
}
SIZES: dict[str, dict[str, Any]] = {
    "mobileclip_s0": {**IMAGE_TOWERS["mci0"], "text_repmixer": True, "text_layers": 4},
    "mobileclip_s1": dict(IMAGE_TOWERS["mci1"]),
    "mobileclip_s2": dict(IMAGE_TOWERS["mci2"]),
    "mobileclip_b": {**IMAGE_TOWERS["vit_b16"], "causal": True},
}
_TIMM_TOWERS = {"fastvit_mci0": "mci0", "fastvit_mci1": "mci1", "fastvit_mci2": "mci2", "vit_base_mci_224": "vit_b16"}


def size_named(name: str) -> dict[str, Any] | None:
    """Arguments of a published size (``mobileclip_s1``, ``MobileCLIP-S1``); None = no such name."""
    return SIZES.get(name.lower().replace("-", "_"))


def layout_of(state: Mapping[str, Tensor]) -> str:
    """``apple`` or ``open_clip``.

    Raises:
        ValueError: If the names are neither's.
    """
    if any(key.startswith("image_encoder.model.") for key in state):
        return "apple"
    if any(key.startswith("visual.trunk.") for key in state):
        return "open_clip"
    shown = ", ".join(list(state)[:5])
    raise ValueError(
        f"expected MobileCLIP tensors under image_encoder.model. (Apple) or visual.trunk. (open_clip), got {shown}"
    )


def arguments_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from Apple's config, or from open_clip's (its wrapper ``model_cfg`` included).

    Raises:
        ValueError: If the config names an image tower that is not MobileCLIP's, or is of another kind.
    """
    config = config.get("model_cfg", config)
    text = config.get("text_cfg", {})
    if "image_cfg" in config:
        name, towers = config["image_cfg"].get("model_name"), {tower: tower for tower in IMAGE_TOWERS}
    elif "vision_cfg" in config:
        name, towers = config["vision_cfg"].get("timm_model_name"), _TIMM_TOWERS
    else:
        raise ValueError(f"expected Apple's config (image_cfg) or open_clip's (vision_cfg), got keys {sorted(config)}")
    if name not in towers:
        raise ValueError(f"the image tower must be one of {', '.join(towers)}, got {name!r}")
    found = {
        "embed_dim": config.get("embed_dim"),
        "vocab_size": text.get("vocab_size"),
        "context_length": text.get("context_length"),
        "text_dim": text.get("dim", text.get("width")),
        "text_layers": text.get("n_transformer_layers", text.get("layers")),
        "text_heads": text.get("n_heads_per_layer", text.get("heads")),
        "causal": text["causal_masking"] if "causal_masking" in text else not text.get("no_causal_mask", False),
        "text_repmixer": text.get("model_name") == "mct",
    }
    return {**IMAGE_TOWERS[towers[name]], **{key: value for key, value in found.items() if value is not None}}


def arguments_from_shapes(state: Mapping[str, Tensor], layout: str) -> dict[str, Any]:
    """Constructor arguments from names and shapes.

    Three things have no shape and follow the published models: heads are 64 wide, the text tower is causal beside a
    ViT and only there, and FastViT's images are 256 pixels wide.

    Raises:
        ValueError: If a tensor is missing that tells a width.
    """
    apple = layout == "apple"
    table = _shape(state, "text_encoder.embedding_layer.weight" if apple else "text.token_embedding.weight")
    places = "text_encoder.positional_embedding.pos_embed.pos_embed" if apple else "text.positional_embedding"
    layers = "text_encoder.transformer." if apple else "text.transformer.resblocks."
    mixed = any(key.startswith(layers) and ".token_mixer." in key for key in state)
    projection = _shape(state, "text_encoder.projection_layer" if apple else "text.text_projection")
    return {
        **_image_arguments(state, apple),
        "embed_dim": projection[1],
        "vocab_size": table[0],
        "context_length": _shape(state, places)[-2],
        "text_dim": table[1],
        "text_layers": _count(state, layers) - (2 if mixed else 0),
        "text_heads": max(1, table[1] // 64),
        "text_repmixer": mixed,
    }


def _image_arguments(state: Mapping[str, Tensor], apple: bool) -> dict[str, Any]:
    start = "image_encoder.model." if apple else "visual.trunk."
    if f"{start}cls_token" in state:
        dim = _shape(state, f"{start}cls_token")[-1]
        places = _shape(state, f"{start}{'pos_embed.pos_embed.pos_embed' if apple else 'pos_embed'}")[-2]
        depth = _count(state, f"{start}{'transformer' if apple else 'blocks'}.")
        size = {"image_tower": "vit", "image_size": 16 * round(places**0.5), "causal": True}
        return {**size, "image_depths": (depth,), "image_dims": (dim,), "image_heads": max(1, dim // 64)}
    depths, dims, ratio, stage, mlp = [], [], 3.0, 0, "convffn" if apple else "mlp"
    while True:
        # Apple numbers stages and the merges between them in one list; positions stand in before the last stage.
        numbers = [2 * stage, 2 * stage + 1] if apple else [stage]
        inside = [f"network.{n}." if apple else f"stages.{n}.blocks." for n in numbers]
        found = [start + name for name in inside if f"{start}{name}0.{mlp}.fc1.weight" in state]
        if not found:
            break
        hidden, dim = _shape(state, f"{found[0]}0.{mlp}.fc1.weight")[:2]
        depths.append(_count(state, found[0]))
        dims.append(dim)
        ratio, stage = hidden / dim, stage + 1
    return {"image_depths": tuple(depths), "image_dims": tuple(dims), "image_mlp_ratio": ratio, "causal": False}


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"this checkpoint does not fit MobileCLIP: missing {key}")
    return tuple(state[key].shape)


def _count(state: Mapping[str, Tensor], start: str) -> int:
    return len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)})


@dataclass(frozen=True)
class Names:
    """How one code base names the parts of FastViT."""

    conv: str
    scale: str
    skip: str
    large: str
    large_fused: str
    position: str
    squeeze: tuple[str, str]
    mlp: str
    gamma: str


_APPLE = Names(
    conv="rbr_conv.0",
    scale="rbr_scale",
    skip="rbr_skip",
    large="lkb_origin",
    large_fused="lkb_reparam",
    position="pe",
    squeeze=("reduce", "expand"),
    mlp="convffn",
    gamma="",
)
_TIMM = Names(
    conv="conv_kxk.0",
    scale="conv_scale",
    skip="identity",
    large="large_conv",
    large_fused="reparam_conv",
    position="pos_enc",
    squeeze=("fc1", "fc2"),
    mlp="mlp",
    gamma=".gamma",
)


def mobileclip_rules(model: Any, layout: str) -> list[Rule]:
    """Rules for the whole of a ``MobileCLIP``.

    Raises:
        ValueError: If the layout cannot hold the model.
    """
    apple, mixed = layout == "apple", model.config["text_repmixer"]
    if not apple and mixed:
        raise ValueError("open_clip has no text tower with RepMixer (MobileCLIP S0); use layout='apple'")
    if apple and model.config["image_bias"]:
        raise ValueError("Apple's layout has no bias on the image projection; use layout='open_clip'")
    rules = [Rule("logit_scale", ("logit_scale",))]
    if model.config["image_tower"] == "vit":
        rules += _vit_rules(model.image, apple)
    else:
        rules += _fastvit_rules(model.image.trunk, apple)
        head = Rule("image.projection.weight", ("image_encoder.model.head.proj",), transpose=True)
        rules.append(head if apple else Rule("image.projection.weight", ("visual.trunk.head.fc.weight",)))
    if model.config["image_bias"]:
        rules.append(Rule("image.projection.bias", (head_bias(model.config["image_tower"]),)))
    return rules + _text_rules(model.text, apple)


def head_bias(tower: str) -> str:
    """open_clip's bias on the image projection, zero in Apple's weights, which have none."""
    return "visual.trunk.head.bias" if tower == "vit" else "visual.trunk.head.fc.bias"


def _text_rules(text: Any, apple: bool) -> list[Rule]:
    length, dim = text.positions.shape
    if apple:
        rules = [
            Rule("text.tokens.weight", ("text_encoder.embedding_layer.weight",)),
            _reshaped("text.positions", "text_encoder.positional_embedding.pos_embed.pos_embed", (1, 1, length, dim)),
            Rule("text.projection.weight", ("text_encoder.projection_layer",), transpose=True),
            *rules_for("text.norm", "text_encoder.final_layer_norm"),
        ]
    else:
        rules = [
            Rule("text.tokens.weight", ("text.token_embedding.weight",)),
            Rule("text.positions", ("text.positional_embedding",)),
            Rule("text.projection.weight", ("text.text_projection",), transpose=True),
            *rules_for("text.norm", "text.ln_final"),
        ]
    for index, layer in enumerate(text.layers):
        ours = f"text.layers.{index}"
        theirs = f"text_encoder.transformer.{index}" if apple else f"text.transformer.resblocks.{index}"
        if isinstance(layer, RepMixerBlock):
            rules += _block_rules(layer, ours, theirs, _APPLE)
        else:
            rules += _apple_layer_rules(ours, theirs) if apple else _open_clip_layer_rules(ours, theirs)
    return rules


def _apple_layer_rules(ours: str, theirs: str) -> list[Rule]:
    return [
        *rules_for(f"{ours}.attention_norm", f"{theirs}.pre_norm_mha.0"),
        *rules_for(f"{ours}.attention.qkv", f"{theirs}.pre_norm_mha.1.qkv_proj"),
        *rules_for(f"{ours}.attention.out", f"{theirs}.pre_norm_mha.1.out_proj"),
        *rules_for(f"{ours}.mlp_norm", f"{theirs}.pre_norm_ffn.0"),
        *rules_for(f"{ours}.mlp.up", f"{theirs}.pre_norm_ffn.1"),
        *rules_for(f"{ours}.mlp.down", f"{theirs}.pre_norm_ffn.4"),
    ]


def _open_clip_layer_rules(ours: str, theirs: str) -> list[Rule]:
    return [
        *rules_for(f"{ours}.attention_norm", f"{theirs}.ln_1"),
        Rule(f"{ours}.attention.qkv.weight", (f"{theirs}.attn.in_proj_weight",)),
        Rule(f"{ours}.attention.qkv.bias", (f"{theirs}.attn.in_proj_bias",)),
        *rules_for(f"{ours}.attention.out", f"{theirs}.attn.out_proj"),
        *rules_for(f"{ours}.mlp_norm", f"{theirs}.ln_2"),
        *rules_for(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc"),
        *rules_for(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj"),
    ]


def _timm_layer_rules(ours: str, theirs: str) -> list[Rule]:
    return [
        *rules_for(f"{ours}.attention_norm", f"{theirs}.norm1"),
        *rules_for(f"{ours}.attention.qkv", f"{theirs}.attn.qkv"),
        *rules_for(f"{ours}.attention.out", f"{theirs}.attn.proj"),
        *rules_for(f"{ours}.mlp_norm", f"{theirs}.norm2"),
        *rules_for(f"{ours}.mlp.up", f"{theirs}.mlp.fc1"),
        *rules_for(f"{ours}.mlp.down", f"{theirs}.mlp.fc2"),
    ]


def _vit_rules(tower: Any, apple: bool) -> list[Rule]:
    start, (places, dim) = "image_encoder.model" if apple else "visual.trunk", tower.positions.shape
    rules = [_reshaped("image.class_token", f"{start}.cls_token", (1, 1, dim))]
    if apple:
        shape: tuple[int, ...] = (1, 1, places, dim)
        rules.append(_reshaped("image.positions", f"{start}.pos_embed.pos_embed.pos_embed", shape))
        rules += rules_for("image.norm", f"{start}.post_transformer_norm")
        rules.append(Rule("image.projection.weight", (f"{start}.classifier.proj",), transpose=True))
        stem, conv, norm = f"{start}.patch_emb", "block.conv", "block.norm"
    else:
        rules.append(_reshaped("image.positions", f"{start}.pos_embed", (1, places, dim)))
        rules += rules_for("image.norm", f"{start}.norm")
        rules.append(Rule("image.projection.weight", (f"{start}.head.weight",)))
        stem, conv, norm = f"{start}.patch_embed.backbone", "conv", "bn"
    for index, name in enumerate(("first", "second")):
        rules += rules_for(f"image.stem.{name}.conv", f"{stem}.{index}.{conv}", bias=False)
        rules += _batch_norm_rules(f"image.stem.{name}.norm", f"{stem}.{index}.{norm}")
    rules += rules_for("image.stem.third", f"{stem}.2.{conv}")
    for index in range(len(tower.layers)):
        ours, theirs = f"image.layers.{index}", f"{start}.{'transformer' if apple else 'blocks'}.{index}"
        rules += _apple_layer_rules(ours, theirs) if apple else _timm_layer_rules(ours, theirs)
    return rules


def _fastvit_rules(trunk: FastViT, apple: bool) -> list[Rule]:
    start, names = ("image_encoder.model", _APPLE) if apple else ("visual.trunk", _TIMM)
    rules: list[Rule] = []
    blocks: Any = trunk.stem
    for index, block in enumerate(blocks):
        theirs = f"{start}.{'patch_embed' if apple else 'stem'}.{index}"
        rules += _rep_conv_rules(block, f"image.trunk.stem.{index}", theirs, names)
    number = 0  # Apple's list of stages and what stands between them
    stages: Any = trunk.stages
    for index, stage in enumerate(stages):
        ours = f"image.trunk.stages.{index}"
        if stage.merge is not None:
            theirs = f"{start}.network.{number}" if apple else f"{start}.stages.{index}.downsample"
            rules += _large_rules(stage.merge.reduce, f"{ours}.merge.reduce", f"{theirs}.proj.0", names)
            rules += _rep_conv_rules(stage.merge.project, f"{ours}.merge.project", f"{theirs}.proj.1", names)
            number += 1
        if stage.position is not None:
            theirs = f"{start}.network.{number}" if apple else f"{start}.stages.{index}.pos_emb"
            fused = stage.position.fused is not None
            own, their = ("fused", "reparam_conv") if fused else ("conv", names.position)
            rules += rules_for(f"{ours}.position.{own}", f"{theirs}.{their}")
            number += 1
        for place, block in enumerate(stage.blocks):
            theirs = f"{start}.network.{number}.{place}" if apple else f"{start}.stages.{index}.blocks.{place}"
            rules += _block_rules(block, f"{ours}.blocks.{place}", theirs, names)
        number += 1
    theirs = f"{start}.{'conv_exp' if apple else 'final_conv'}"
    return rules + _rep_conv_rules(trunk.expand, "image.trunk.expand", theirs, names)


def _block_rules(block: nn.Module, ours: str, theirs: str, names: Names) -> list[Rule]:
    if isinstance(block, AttentionBlock):
        return [
            *_batch_norm_rules(f"{ours}.norm", f"{theirs}.norm"),
            *rules_for(f"{ours}.attention.qkv", f"{theirs}.token_mixer.qkv", bias=False),
            *rules_for(f"{ours}.attention.out", f"{theirs}.token_mixer.proj"),
            _scale_rule(block.attention_scale, f"{ours}.attention_scale", f"{theirs}.layer_scale_1", names),
            _scale_rule(block.mlp_scale, f"{ours}.mlp_scale", f"{theirs}.layer_scale_2", names),
            *_mlp_rules(block.mlp, f"{ours}.mlp", f"{theirs}.{names.mlp}"),
        ]
    if not isinstance(block, RepMixerBlock):
        raise TypeError(f"no names for a {type(block).__name__}")
    mixer, own, their = block.mixer, f"{ours}.mixer", f"{theirs}.token_mixer"
    rules = [_scale_rule(block.scale, f"{ours}.scale", f"{theirs}.layer_scale", names)]
    rules += _mlp_rules(block.mlp, f"{ours}.mlp", f"{theirs}.{names.mlp}")
    if mixer.fused is not None:
        return rules + rules_for(f"{own}.fused", f"{their}.reparam_conv")
    rules += _rep_conv_rules(mixer.norm, f"{own}.norm", f"{their}.norm", names)
    rules += _rep_conv_rules(mixer.mix, f"{own}.mix", f"{their}.mixer", names)
    return [*rules, _scale_rule(mixer.scale, f"{own}.scale", f"{their}.layer_scale", names)]


def _rep_conv_rules(block: RepConv, ours: str, theirs: str, names: Names) -> list[Rule]:
    rules = _squeeze_rules(block.squeeze, f"{ours}.squeeze", f"{theirs}.se", names.squeeze)
    if block.fused is not None:
        return rules + rules_for(f"{ours}.fused", f"{theirs}.reparam_conv")
    for part, own, their in ((block.conv, "conv", names.conv), (block.scale, "scale", names.scale)):
        rules += [] if part is None else _conv_norm_rules(part, f"{ours}.{own}", f"{theirs}.{their}")
    return rules + ([] if block.skip is None else _batch_norm_rules(f"{ours}.skip", f"{theirs}.{names.skip}"))


def _large_rules(block: LargeKernelConv, ours: str, theirs: str, names: Names) -> list[Rule]:
    rules = _squeeze_rules(block.squeeze, f"{ours}.squeeze", f"{theirs}.se", ("fc1", "fc2"))
    if block.fused is not None:
        return rules + rules_for(f"{ours}.fused", f"{theirs}.{names.large_fused}")
    rules += _conv_norm_rules(block.large, f"{ours}.large", f"{theirs}.{names.large}")
    return rules + _conv_norm_rules(block.small, f"{ours}.small", f"{theirs}.small_conv")


def _squeeze_rules(part: SqueezeExcite | None, ours: str, theirs: str, names: tuple[str, str]) -> list[Rule]:
    if part is None:
        return []
    return rules_for(f"{ours}.reduce", f"{theirs}.{names[0]}") + rules_for(f"{ours}.expand", f"{theirs}.{names[1]}")


def _mlp_rules(part: ConvFeedForward, ours: str, theirs: str) -> list[Rule]:
    rules = _conv_norm_rules(part.mix, f"{ours}.mix", f"{theirs}.conv")
    return rules + rules_for(f"{ours}.up", f"{theirs}.fc1") + rules_for(f"{ours}.down", f"{theirs}.fc2")


def _conv_norm_rules(part: ConvNorm, ours: str, theirs: str) -> list[Rule]:
    return [
        *rules_for(f"{ours}.conv", f"{theirs}.conv", bias=part.conv.bias is not None),
        *_batch_norm_rules(f"{ours}.norm", f"{theirs}.bn"),
    ]


def _batch_norm_rules(ours: str, theirs: str) -> list[Rule]:
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in kinds]


def _scale_rule(scale: Tensor, ours: str, theirs: str, names: Names) -> Rule:
    return _reshaped(ours, f"{theirs}{names.gamma}", (scale.shape[0], 1, 1))


def _reshaped(ours: str, theirs: str, original: tuple[int, ...]) -> Rule:
    return Rule(ours, (theirs,), shape=_squeezed(original), original_shape=original)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones; without the two behind a vector of scales."""
    shape = shape[:1] if shape[1:] == (1, 1) else shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
