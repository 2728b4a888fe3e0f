"""MMBERT's original checkpoint: the names of the authors' ``Model`` (VirajBagal/MMBERT), read from its source.

``transformer.bert_embedding`` is a BERT's embeddings, ``transformer.trans`` the ResNet (``model``, torchvision's names,
classifier included) and its 1x1 convolutions (``conv2`` stage 4, ``conv3``, ``conv4``, ``conv5``, ``conv7`` the stem),
``transformer.blocks`` the layers with one pair of norms; ``fc1`` and ``classifier`` the head.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from polyfuse.models.bert_original import bert_embedding_rules
from polyfuse.models.convert import Rule, rules_for
from polyfuse.models.resnet import resnet_rules, resnet_sizes

if TYPE_CHECKING:
    from polyfuse.models.mmbert import MMBERT

#: Of the 1x1 convolutions, deepest map first.
CONVS = ("conv2", "conv3", "conv4", "conv5", "conv7")
#: What the authors' code does in every script.
DEFECTS = ("shared_norms", "idle_norm", "pool_padding", "count_padding_label", "five_passes")
_EMBEDDING, _TRANS, _BLOCKS = "transformer.bert_embedding", "transformer.trans", "transformer.blocks"


def config_of(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from the tensors and the authors' arguments; arguments of ours go before.

    Raises:
        ValueError: If the tensors are not MMBERT's, or an argument is unknown.
    """
    words, types = f"{_EMBEDDING}.word_embeddings.weight", f"{_EMBEDDING}.token_type_embeddings.weight"
    needed = [words, f"{_EMBEDDING}.position_embeddings.weight", types, "classifier.2.weight"]
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(f"this checkpoint does not fit MMBERT: missing {', '.join(missing)}")
    layers = sum(key.startswith(f"{_BLOCKS}.proj.") and key.endswith(".weight") for key in state)
    num_visual = sum(f"{_TRANS}.{name}.weight" in state for name in CONVS)
    positions = state[f"{_EMBEDDING}.position_embeddings.weight"].shape[0]
    up, fc = f"{_BLOCKS}.feedforward.0.fc1.weight", f"{_TRANS}.model.fc.weight"
    found: dict[str, Any] = {
        "vocab_size": state[words].shape[0],
        "dim": state[words].shape[1],
        "num_layers": layers,
        "num_heads": config.get("heads", 12),
        "hidden_dim": state[up].shape[0] if up in state else None,
        "max_length": config.get("max_position_embeddings", min(75, positions)),
        "positions": positions,
        "type_vocab_size": state[types].shape[0],
        "dropout": config.get("hidden_dropout_prob", 0.3),
        "resnet_classes": state[fc].shape[0] if fc in state else None,
        "num_visual": num_visual,
        "image_places": 5,
        "pooled_layers": "last" if "num_vis" in config else "all",
        **dict.fromkeys(DEFECTS, True),
    }
    sizes = resnet_sizes(state, f"{_TRANS}.model.")
    found |= {"depths": sizes["depths"], "resnet_width": sizes["width"]}
    ours = {*found, "embedding_dropout", "norm_mode", "cls_id", "sep_id"}
    return found | {key: value for key, value in config.items() if key in ours}


def heads_of(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``mlm`` where the head has one output per token id and nothing says otherwise, else ``vqa``."""
    outputs = state["classifier.2.weight"].shape[0]
    vocabulary = state[f"{_EMBEDDING}.word_embeddings.weight"].shape[0]
    task = config.get("task", "mlm" if outputs == vocabulary else "vqa")
    return {"mlm": {}} if task == "mlm" else {"vqa": {"num_classes": outputs}}


def rules_of(model: "MMBERT") -> list[Rule]:
    """All names both ways.

    Raises:
        ValueError: If the original has no names for what this model holds: norms per layer, or not exactly one head.
    """
    if len(model.norms) != 1 or len(model.heads) != 1:
        raise ValueError(
            "the original layout holds one pair of norms (shared_norms=True) and one head, "
            f"got {len(model.norms)} pairs and heads {list(model.heads)}"
        )
    rules = bert_embedding_rules("embeddings", _EMBEDDING)
    rules += resnet_rules(model.resnet, "resnet.", f"{_TRANS}.model.")
    for index in range(model.num_visual):
        rules += rules_for(f"visual.convs.{index}", f"{_TRANS}.{CONVS[index]}", bias=False)
    rules += rules_for("norms.0.first", f"{_BLOCKS}.norm1") + rules_for("norms.0.second", f"{_BLOCKS}.norm2")
    for index in range(len(model.layers)):
        own = f"{_BLOCKS}.attention.{index}.proj"
        rules += rules_for(f"layers.{index}.attention.qkv", f"{own}_q", f"{own}_k", f"{own}_v")
        rules += rules_for(f"layers.{index}.attention.out", f"{_BLOCKS}.proj.{index}")
        rules += rules_for(f"layers.{index}.mlp.up", f"{_BLOCKS}.feedforward.{index}.fc1")
        rules += rules_for(f"layers.{index}.mlp.down", f"{_BLOCKS}.feedforward.{index}.fc2")
    head = f"heads.{next(iter(model.heads))}"
    rules += rules_for(f"{head}.pooler", "fc1") + rules_for(f"{head}.dense", "classifier.0")
    return rules + rules_for(f"{head}.norm", "classifier.1") + rules_for(f"{head}.out", "classifier.2")
