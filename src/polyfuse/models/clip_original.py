"""CLIP's checkpoints: the names and configs of OpenAI, open_clip and Hugging Face."""

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from polyfuse.models.convert import Rule, read_tensors, rules_for, strip_prefix

#: What Hugging Face's config means where it says nothing.
_HF_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_HF_IMAGE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_HF_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
#: What open_clip's config may say of a tower that is CLIP's; anything else is another architecture.
_OPEN_CLIP_IMAGE = {
    "image_size",
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "norm_kwargs",
    "patch_dropout",
    "output_tokens",
}
_OPEN_CLIP_TEXT = {
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "norm_kwargs",
    "no_causal_mask",
    "pool_type",
    "eos_id",
    "pad_id",
    "output_tokens",
    "hf_tokenizer_name",
    "tokenizer_mode",
    "tokenizer_kwargs",
}
_OPEN_CLIP_DEFAULTS = {
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "proj_type": "linear",
    "block_type": "default",
    "timm_pool": "avg",
    "timm_proj": "linear",
}
#: Numbers that OpenAI's archives keep among the tensors.
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a file.

    Raises:
        ValueError: If it is a TorchScript archive (the files that OpenAI published are), or no file of tensors.
    """
    if path.is_file() and path.suffix != ".safetensors" and is_torchscript(path):
        raise ValueError(
            f"{path} is a TorchScript archive, a program and not only tensors, and is not run here; if you trust where "
            "it comes from, take the tensors out once: "
            f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'weights.pt')"
        )
    return read_tensors(path)


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip archive with code in it, as ``torch.jit.save`` writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        parts = [name.split("/") for name in archive.namelist()]
    return any(part[1:] == ["constants.pkl"] or part[1:2] == ["code"] for part in parts)


def prepared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of a parallel run or a compiled model."""
    return strip_prefix(state, "module.", "_orig_mod.")


def layout_of(state: Mapping[str, Tensor]) -> str:
    """The layout that the names are of.

    Raises:
        ValueError: If they are of none.
    """
    if "vision_model.embeddings.class_embedding" in state or "text_model.final_layer_norm.weight" in state:
        return "hf"
    if "text.token_embedding.weight" in state:
        return "open_clip_custom_text"
    if "token_embedding.weight" in state or "visual.class_embedding" in state:
        return "openai"
    shown = ", ".join(list(state)[:3])
    raise ValueError(f"these are no names of CLIP's in OpenAI's, open_clip's or Hugging Face's layout: {shown}, ...")


def arguments_from(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Constructor arguments of ``CLIP``.

    Raises:
        ValueError: If the Hugging Face layout comes without its config, the config is of another model, or it asks for
            an architecture that ``CLIP`` is not.
    """
    hf = layout_of(state) == "hf"
    if config is None:
        if hf:
            raise ValueError("a CLIP checkpoint in Hugging Face's layout needs its config (config.json), got None")
        if not any(name in state for name in OPENAI_NUMBERS):
            warnings.warn(
                "no config says which activation these weights were trained with; taking OpenAI's quick_gelu. Weights "
                "that open_clip trained mostly need gelu: give config={'quick_gelu': False}, or True to confirm",
                stacklevel=5,
            )
        return {**arguments_from_shapes(state), "activation": "quick_gelu"}
    if "vision_config" in config or "text_config" in config or "vision_config_dict" in config:
        return arguments_from_hf(config)
    settings = config.get("model_cfg", config)
    if "vision_cfg" in settings and "text_cfg" in settings:
        return arguments_from_open_clip(settings)
    if set(settings) == {"quick_gelu"} and not hf:
        return {**arguments_from_shapes(state), "activation": "quick_gelu" if settings["quick_gelu"] else "gelu"}
    shown = ", ".join(list(settings)[:6]) or "nothing"
    raise ValueError(f"this config is no CLIP config of Hugging Face or open_clip: it has {shown}")


def arguments_from_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of a checkpoint in OpenAI's layout; heads have 64 channels, as all of OpenAI's."""
    text = "text." if layout_of(state) == "open_clip_custom_text" else ""
    patches, positions = _shape(state, "visual.conv1.weight"), _shape(state, "visual.positional_embedding")
    vocab_size, text_dim = _shape(state, f"{text}token_embedding.weight")
    image_layer, text_layer = "visual.transformer.resblocks.", f"{text}transformer.resblocks."
    return {
        "image_size": round((positions[0] - 1) ** 0.5) * patches[-1],
        "patch_size": patches[-1],
        "image_dim": patches[0],
        "image_layers": _count(state, image_layer),
        "image_hidden_dim": _shape(state, f"{image_layer}0.mlp.c_fc.weight")[0],
        "vocab_size": vocab_size,
        "context_length": _shape(state, f"{text}positional_embedding")[0],
        "text_dim": text_dim,
        "text_layers": _count(state, text_layer),
        "text_hidden_dim": _shape(state, f"{text_layer}0.mlp.c_fc.weight")[0],
        "embed_dim": _shape(state, f"{text}text_projection")[1],
    }


def arguments_from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
    """From Hugging Face's ``config.json``; an end token of 2 means the highest id, as its code reads it."""
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise ValueError(f"model_type must be 'clip', got {kind!r}")
    text = {**_HF_TEXT, **(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
    image = {**_HF_IMAGE, **(config.get("vision_config") or {}), **(config.get("vision_config_dict") or {})}
    eos = text["eos_token_id"]
    if not isinstance(eos, int):
        raise ValueError(f"eos_token_id must be one id, got {eos}")
    return {
        "image_size": image["image_size"],
        "patch_size": image["patch_size"],
        "image_dim": image["hidden_size"],
        "image_layers": image["num_hidden_layers"],
        "image_heads": image["num_attention_heads"],
        "image_hidden_dim": image["intermediate_size"],
        "vocab_size": text["vocab_size"],
        "context_length": text["max_position_embeddings"],
        "text_dim": text["hidden_size"],
        "text_layers": text["num_hidden_layers"],
        "text_heads": text["num_attention_heads"],
        "text_hidden_dim": text["intermediate_size"],
        "embed_dim": config.get("projection_dim", 512),
        "activation": _activation(image["hidden_act"]),
        "text_activation": _activation(text["hidden_act"]),
        "eps": image["layer_norm_eps"],
        "text_eps": text["layer_norm_eps"],
        "pooling": "argmax" if eos == 2 else "eos",
        "eos_id": None if eos == 2 else eos,
    }


def _activation(name: str) -> str:
    if name not in _HF_ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(sorted(_HF_ACTIVATIONS))}, got {name!r}")
    return _HF_ACTIVATIONS[name]


def arguments_from_open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    """From open_clip's model config (``model_cfg`` of ``open_clip_config.json``).

    Raises:
        ValueError: If it asks for a tower that is not CLIP's, with what it asks for.
    """
    image, text = config["vision_cfg"], config["text_cfg"]
    _refuse("vision_cfg", image, _OPEN_CLIP_IMAGE)
    _refuse("text_cfg", text, _OPEN_CLIP_TEXT)
    layers, pooling = image.get("layers", 12), text.get("pool_type", "argmax")
    if not isinstance(layers, int):
        raise ValueError(f"vision_cfg.layers must be a number (a vision transformer), got {layers}: a ResNet")
    if pooling not in ("argmax", "eos"):
        raise ValueError(f"text_cfg.pool_type must be 'argmax' or 'eos', got {pooling!r}")
    size, width = image.get("image_size", 224), image.get("width", 768)
    if not isinstance(size, int) and len(set(size)) > 1:
        raise ValueError(f"vision_cfg.image_size must be a square, got {list(size)}")
    text_width = text.get("width", 512)
    return {
        "image_size": size if isinstance(size, int) else size[0],
        "patch_size": image.get("patch_size", 16),
        "image_dim": width,
        "image_layers": layers,
        "image_heads": width // image.get("head_width", 64),
        "image_hidden_dim": int(width * image.get("mlp_ratio", 4.0)),
        "vocab_size": text.get("vocab_size", 49408),
        "context_length": text.get("context_length", 77),
        "text_dim": text_width,
        "text_layers": text.get("layers", 12),
        "text_heads": text.get("heads", 8),
        "text_hidden_dim": int(text_width * text.get("mlp_ratio", 4.0)),
        "embed_dim": config.get("embed_dim", 512),
        "activation": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "eps": (image.get("norm_kwargs") or {}).get("eps", 1e-5),
        "text_eps": (text.get("norm_kwargs") or {}).get("eps", 1e-5),
        "causal": not text.get("no_causal_mask", False),
        "pooling": pooling,
        "eos_id": text.get("eos_id") if pooling == "eos" else None,
    }


def _refuse(part: str, settings: Mapping[str, Any], known: set[str]) -> None:
    if "timm_model_name" in settings or "hf_model_name" in settings:
        name = settings.get("timm_model_name") or settings.get("hf_model_name")
        raise ValueError(f"{part} asks for the tower {name!r}, which is not CLIP's own")
    asked = {
        key: value
        for key, value in settings.items()
        if key not in known and value not in (None, False) and value != _OPEN_CLIP_DEFAULTS.get(key)
    }
    inactive = {"attn_pooler_queries", "attn_pooler_heads", *(key for key in asked if key.startswith(("timm_", "hf_")))}
    asked = {key: value for key, value in asked.items() if key not in inactive}
    if asked:
        raise ValueError(f"{part} asks for what CLIP's own tower has not: {json.dumps(asked)}")


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"this checkpoint does not fit CLIP: missing {key}")
    return tuple(state[key].shape)


def _count(state: Mapping[str, Tensor], start: str) -> int:
    return len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)})


def clip_rules(model: Any, layout: str) -> list[Rule]:
    """Rules for the whole of a ``CLIP``."""
    if layout == "hf":
        return _hf_rules(model)
    text = "text." if layout == "open_clip_custom_text" else ""
    rules = [
        Rule("logit_scale", ("logit_scale",), shape=()),
        Rule("image.stem.weight", ("visual.conv1.weight",)),
        Rule("image.class_token", ("visual.class_embedding",)),
        Rule("image.positions", ("visual.positional_embedding",)),
        Rule("image.projection.weight", ("visual.proj",), transpose=True),
        *rules_for("image.pre_norm", "visual.ln_pre"),
        *rules_for("image.norm", "visual.ln_post"),
        Rule("text.tokens.weight", (f"{text}token_embedding.weight",)),
        Rule("text.positions", (f"{text}positional_embedding",)),
        Rule("text.projection.weight", (f"{text}text_projection",), transpose=True),
        *rules_for("text.norm", f"{text}ln_final"),
    ]
    for ours, theirs in (("image", "visual."), ("text", text)):
        for index in range(len(getattr(model, ours).layers)):
            a, b = f"{ours}.layers.{index}", f"{theirs}transformer.resblocks.{index}"
            rules += [
                Rule(f"{a}.attention.qkv.weight", (f"{b}.attn.in_proj_weight",)),
                Rule(f"{a}.attention.qkv.bias", (f"{b}.attn.in_proj_bias",)),
                *rules_for(f"{a}.attention.out", f"{b}.attn.out_proj"),
                *rules_for(f"{a}.attention_norm", f"{b}.ln_1"),
                *rules_for(f"{a}.mlp.up", f"{b}.mlp.c_fc"),
                *rules_for(f"{a}.mlp.down", f"{b}.mlp.c_proj"),
                *rules_for(f"{a}.mlp_norm", f"{b}.ln_2"),
            ]
    return rules


def _hf_rules(model: Any) -> list[Rule]:
    image, text = "vision_model.embeddings", "text_model.embeddings"
    rules = [
        Rule("logit_scale", ("logit_scale",), shape=()),
        Rule("image.stem.weight", (f"{image}.patch_embedding.weight",)),
        Rule("image.class_token", (f"{image}.class_embedding",)),
        Rule("image.positions", (f"{image}.position_embedding.weight",)),
        Rule("image.projection.weight", ("visual_projection.weight",)),
        *rules_for("image.pre_norm", "vision_model.pre_layrnorm"),  # their spelling
        *rules_for("image.norm", "vision_model.post_layernorm"),
        Rule("text.tokens.weight", (f"{text}.token_embedding.weight",)),
        Rule("text.positions", (f"{text}.position_embedding.weight",)),
        Rule("text.projection.weight", ("text_projection.weight",)),
        *rules_for("text.norm", "text_model.final_layer_norm"),
    ]
    for ours, theirs in (("image", "vision_model"), ("text", "text_model")):
        for index in range(len(getattr(model, ours).layers)):
            a, b = f"{ours}.layers.{index}", f"{theirs}.encoder.layers.{index}"
            parts = (f"{b}.self_attn.{part}_proj" for part in "qkv")
            rules += [
                *rules_for(f"{a}.attention.qkv", *parts),
                *rules_for(f"{a}.attention.out", f"{b}.self_attn.out_proj"),
                *rules_for(f"{a}.attention_norm", f"{b}.layer_norm1"),
                *rules_for(f"{a}.mlp.up", f"{b}.mlp.fc1"),
                *rules_for(f"{a}.mlp.down", f"{b}.mlp.fc2"),
                *rules_for(f"{a}.mlp_norm", f"{b}.layer_norm2"),
            ]
    return rules
