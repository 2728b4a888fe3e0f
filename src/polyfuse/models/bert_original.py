"""BERT's original names and config keys: shared by every model that is made of its parts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from polyfuse.models.convert import Rule, rules_for, strip_prefix

# What configs call activations that are known here under another name.
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}


def bert_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from a BERT config's keys, those that are there."""
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "hidden_dim",
        "max_position_embeddings": "max_length",
        "type_vocab_size": "type_vocab_size",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "eps",
    }
    kwargs = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    if "activation" in kwargs:
        kwargs["activation"] = _ACTIVATIONS.get(kwargs["activation"], kwargs["activation"])
    return kwargs


def check_bert_config(config: Mapping[str, Any]) -> None:
    """Refuse a config whose model computes something else than ours.

    Raises:
        ValueError: If it asks for relative positions or for a decoder.
    """
    for key, value in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        if config.get(key, value) != value:
            raise ValueError(f"{key} must be {value!r}, got {config[key]!r}")


def bert_embedding_rules(ours: str, theirs: str) -> list[Rule]:
    """Word, position and type tables and their norm."""
    tables = {"words": "word_embeddings", "positions": "position_embeddings", "types": "token_type_embeddings"}
    rules = [Rule(f"{ours}.{mine}.weight", (f"{theirs}.{name}.weight",)) for mine, name in tables.items()]
    return rules + rules_for(f"{ours}.norm", f"{theirs}.LayerNorm")


def bert_layer_rules(ours: str, theirs: str, number: int) -> list[Rule]:
    """Layers ``0`` to ``number - 1`` of an encoder."""
    rules: list[Rule] = []
    for index in range(number):
        a, b = f"{ours}.{index}", f"{theirs}.{index}"
        own = f"{b}.attention.self"
        rules += rules_for(f"{a}.attention.qkv", f"{own}.query", f"{own}.key", f"{own}.value")
        rules += rules_for(f"{a}.attention.out", f"{b}.attention.output.dense")
        rules += rules_for(f"{a}.attention_norm", f"{b}.attention.output.LayerNorm")
        rules += rules_for(f"{a}.mlp.up", f"{b}.intermediate.dense")
        rules += rules_for(f"{a}.mlp.down", f"{b}.output.dense")
        rules += rules_for(f"{a}.mlp_norm", f"{b}.output.LayerNorm")
    return rules


def mlm_rules(ours: str, theirs: str, words: str, rules: list[Rule]) -> list[Rule]:
    """The masked-language head; its tied matrix becomes a checked copy of the word table's rule, which is changed."""
    place = next(index for index, one in enumerate(rules) if one.ours == words)
    rules[place] = replace(rules[place], copies=(*rules[place].copies, f"{theirs}.decoder.weight"))
    return [
        Rule(f"{ours}.bias", (f"{theirs}.bias",), copies=(f"{theirs}.decoder.bias",)),
        *rules_for(f"{ours}.dense", f"{theirs}.transform.dense"),
        *rules_for(f"{ours}.norm", f"{theirs}.transform.LayerNorm"),
    ]


def gamma_beta_renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old norms call their parameters ``gamma`` and ``beta``; parallel runs and compiled models put a name in front."""
    renamed = {
        key.removesuffix(".gamma") + ".weight"
        if key.endswith(".gamma")
        else key.removesuffix(".beta") + ".bias"
        if key.endswith(".beta")
        else key: value
        for key, value in state.items()
    }
    return strip_prefix(renamed, "module.", "_orig_mod.")


def gamma_beta_written(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: norms under their old names."""
    return {
        f"{key.removesuffix('weight')}gamma"
        if key.endswith("LayerNorm.weight")
        else f"{key.removesuffix('bias')}beta"
        if key.endswith("LayerNorm.bias")
        else key: value
        for key, value in state.items()
    }
