"""MMBT's original checkpoints: MMF's names and Hugging Face's.

MMF: ``model.bert.mmbt.transformer`` is the BERT, ``model.bert.mmbt.modal_encoder`` holds ``proj_embeddings``, the image
encoder (``encoder.model``, a Sequential of torchvision's ResNet without its classifier) and the shared tables again;
``model.classifier`` or ``model.cls`` the heads. Hugging Face's class starts with ``mmbt.`` and has a plain
``classifier``; its example's image encoder is the same Sequential.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from polyfuse.models.bert_original import bert_embedding_rules, bert_layer_rules, mlm_rules
from polyfuse.models.convert import Rule, rules_for
from polyfuse.models.resnet import resnet_rules, resnet_sizes

if TYPE_CHECKING:
    from polyfuse.models.mmbt import MMBT

#: A Sequential of torchvision's children: conv1, bn1, relu, maxpool, layer1 to layer4.
CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
PREFIXES = {"mmf": "model.bert.mmbt", "hf": "mmbt"}
_HEADS = {"mmf": "model.", "hf": ""}


def new_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMF once said ``base`` where it now says ``model``."""
    return {f"model.{key.removeprefix('base.')}" if key.startswith("base.") else key: v for key, v in state.items()}


def layout_of(state: Mapping[str, Tensor]) -> str:
    """Told from the names: ``hf`` where they start with ``mmbt.``."""
    return "hf" if any(key.startswith("mmbt.") for key in state) else "mmf"


def config_of(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments; arguments of ours in ``config`` go before.

    Raises:
        ValueError: If the tensors are not MMBT's.
    """
    layout = layout_of(state)
    start = PREFIXES[layout]
    tables = {name: f"{start}.transformer.embeddings.{name}_embeddings.weight" for name in ("word", "position")}
    tables |= {"type": f"{start}.transformer.embeddings.token_type_embeddings.weight"}
    missing = [key for key in tables.values() if key not in state]
    if missing:
        raise ValueError(f"this checkpoint does not fit MMBT: missing {', '.join(missing)}")
    layers = sum(
        key.startswith(f"{start}.transformer.encoder.layer.") and key.endswith(".intermediate.dense.weight")
        for key in state
    )
    up = f"{start}.transformer.encoder.layer.0.intermediate.dense.weight"
    sizes = resnet_sizes(state, f"{start}.modal_encoder.encoder.model.", ("4", "5", "6", "7"))
    found: dict[str, Any] = {
        "vocab_size": state[tables["word"]].shape[0],
        "dim": state[tables["word"]].shape[1],
        "num_layers": layers,
        "num_heads": config.get("num_attention_heads", 12),
        "max_length": state[tables["position"]].shape[0],
        "type_vocab_size": state[tables["type"]].shape[0],
        "activation": config.get("hidden_act", "gelu"),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "eps": config.get("layer_norm_eps", 1e-12),
        "num_image_tokens": config.get("num_image_embeds", config.get("num_output_features", 1)),
        "pool": config.get("pool_type", "avg"),
        # MMF gives the image the segment that the text (all 0) leaves free.
        "image_type": 1 if layout == "mmf" else 0,
        "text_type": 0 if layout == "mmf" else 1,
        "depths": sizes["depths"],
        "resnet_width": sizes["width"],
    }
    if up in state:
        found["hidden_dim"] = state[up].shape[0]
    ours = {*found, "norm_mode", "cls_id", "sep_id"}
    return found | {key: value for key, value in config.items() if key in ours}


def heads_of(state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The heads and their arguments."""
    start = _HEADS[layout_of(state)]
    heads: dict[str, dict[str, Any]] = {}
    for last, transform in (("classifier.1.weight", True), ("classifier.weight", False)):
        if f"{start}{last}" in state:
            heads["classification"] = {"num_classes": state[f"{start}{last}"].shape[0], "transform": transform}
    if f"{start}cls.predictions.bias" in state:
        heads["mlm"] = {}
    if f"{start}cls.seq_relationship.weight" in state:
        heads["alignment"] = {}
    return heads


def rules_of(model: "MMBT", layout: str) -> list[Rule]:
    """All names both ways; the shared tables stand in a file twice."""
    if layout not in PREFIXES:
        raise ValueError(f"layout must be one of {', '.join(PREFIXES)}, got {layout!r}")
    start, before = PREFIXES[layout], _HEADS[layout]
    bert, modal = f"{start}.transformer", f"{start}.modal_encoder"
    rules = [
        replace(one, copies=(one.theirs[0].replace(f"{bert}.embeddings.", f"{modal}."),))
        for one in bert_embedding_rules("embeddings", f"{bert}.embeddings")
    ]
    rules += bert_layer_rules("layers", f"{bert}.encoder.layer", len(model.layers))
    rules += rules_for("pooler.dense", f"{bert}.pooler.dense") + rules_for("image_proj", f"{modal}.proj_embeddings")
    rules += resnet_rules(model.resnet, "resnet.", f"{modal}.encoder.model.", CHILDREN)
    if "classification" in model.heads:
        ours, theirs = "heads.classification.classifier", f"{before}classifier"
        if model.head_config["classification"].get("transform"):
            rules += rules_for(f"{ours}.dense", f"{theirs}.0.dense") + rules_for(
                f"{ours}.norm", f"{theirs}.0.LayerNorm"
            )
            rules += rules_for(f"{ours}.decoder", f"{theirs}.1")
        else:
            rules += rules_for(ours, theirs)
    if "mlm" in model.heads:
        own = f"{before}cls.predictions"
        bias, *others = mlm_rules("heads.mlm", own, "embeddings.words.weight", rules)
        rules += [replace(bias, copies=(f"{own}.decoder.bias",)), *others]
    if "alignment" in model.heads:
        rules += rules_for("heads.alignment", f"{before}cls.seq_relationship")
    return rules
