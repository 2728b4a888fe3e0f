"""ViLBERT's original checkpoints: two code bases of its authors, and MMF's.

Layouts: ``multi-task`` (vilbert-multi-task; its pretraining names are those of vilbert_beta too), ``beta``
(vilbert_beta, whose answer head is weight-normed), ``mmf`` (everything under ``model.``), ``bare`` (the encoder alone,
without ``bert.`` in front).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyfuse.models.bert_original import bert_embedding_rules, bert_layer_rules, gamma_beta_renamed, mlm_rules
from polyfuse.models.convert import Rule, rules_for
from polyfuse.models.vilbert_heads import REGION_MODES

if TYPE_CHECKING:
    from polyfuse.models.vilbert import ViLBERT

LAYOUTS = ("multi-task", "beta", "mmf", "bare")

_LINEAR = {
    "pair": "cls.bi_seq_relationship",
    "tri": "vil_tri_prediction",
    "logit": "vil_logit",
    "vision_logit": "vision_logit",
    "text_logit": "linguisic_logit",  # the original's spelling
}
_CLASSIFIER = {"vqa": "vil_prediction", "gqa": "vil_prediction_gqa", "binary": "vil_binary_prediction"}
_PRETRAINING = ("mlm", "region", "pair")
#: Heads that a layout has names for.
_HEADS = {
    "multi-task": (*_PRETRAINING, *_CLASSIFIER, *_LINEAR),
    "beta": (*_PRETRAINING, "vqa", "logit", "vision_logit", "text_logit"),
    "mmf": (*_PRETRAINING, "classifier"),
    "bare": (),
}
#: ``BertConfig``'s own defaults, for keys that a config leaves out; our defaults are the published base model's.
_DEFAULTS: dict[str, tuple[str, Any]] = {
    "hidden_size": ("dim", 768),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "intermediate_size": ("hidden_dim", 3072),
    "max_position_embeddings": ("max_length", 512),
    "type_vocab_size": ("type_vocab_size", 2),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "initializer_range": ("initializer_range", 0.02),
    "v_feature_size": ("feature_dim", 2048),
    "v_target_size": ("region_classes", 1601),
    "v_hidden_size": ("region_dim", 768),
    "v_num_hidden_layers": ("region_layers", 3),
    "v_num_attention_heads": ("region_heads", 12),
    "v_intermediate_size": ("region_hidden_dim", 3072),
    "v_hidden_dropout_prob": ("region_dropout", 0.1),
    "v_attention_probs_dropout_prob": ("region_attention_dropout", 0.1),
    "bi_hidden_size": ("co_dim", 1024),
    "bi_num_attention_heads": ("co_heads", 16),
    "v_biattention_id": ("region_connections", [0, 1]),
    "t_biattention_id": ("text_connections", [10, 11]),
    "with_coattention": ("co_attention", True),
    "fusion_method": ("fusion", "mul"),
    "fixed_t_layer": ("fixed_text_layers", 0),
    "fixed_v_layer": ("fixed_region_layers", 0),
}
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "swish": "silu"}


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without ``module.``, ``gamma``, ``beta``, and without MMF's older ``bert.`` before ``bert.`` and heads."""
    renamed = gamma_beta_renamed(state)
    if any(key.startswith("bert.bert.") for key in renamed):
        return {f"model.{key.removeprefix('bert.')}": value for key, value in renamed.items()}
    return renamed


def layout_of(state: Mapping[str, Tensor]) -> str:
    """The layout whose names these are."""
    if any(key.startswith("model.bert.") for key in state):
        return "mmf"
    if any(key.startswith("bert.") for key in state):
        return "beta" if any(key.startswith("vil_prediction.main.") for key in state) else "multi-task"
    return "bare"


def _spelled(key: str, layout: str) -> str:
    """A multi-task name as the layout spells it."""
    return {"mmf": f"model.{key}", "bare": key.removeprefix("bert.")}.get(layout, key)


def config_arguments(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """``ViLBERT``'s arguments from the original config and names.

    Raises:
        ValueError: If there is no config, or it asks for what is not supported.
    """
    if config is None:
        raise ValueError("a ViLBERT checkpoint needs its config (config/bert_base_6layer_6conect.json, say), got None")
    if config.get("in_batch_pairs"):
        raise ValueError(f"in_batch_pairs = {config['in_batch_pairs']!r} is not supported, expected False")
    if config.get("model", "bert") not in ("bert", "roberta"):
        raise ValueError(f"model = {config['model']!r} is not supported, expected 'bert' or 'roberta'")
    kwargs = {ours: config.get(theirs, default) for theirs, (ours, default) in _DEFAULTS.items()}
    for theirs, ours in (("hidden_act", "activation"), ("v_hidden_act", "region_activation")):
        name = config.get(theirs, "gelu")
        if name not in _ACTIVATIONS:
            raise ValueError(f"{theirs} = {name!r} is not supported, expected one of {', '.join(_ACTIVATIONS)}")
        kwargs[ours] = _ACTIVATIONS[name]
    layout = layout_of(state)
    words, tasks, gate = (
        _spelled(f"bert.{name}", layout)
        for name in (
            "embeddings.word_embeddings.weight",
            "embeddings.task_embeddings.weight",
            "encoder.v_layer.0.attention.self.dyLinear_q.weight",
        )
    )
    kwargs["vocab_size"] = config.get("vocab_size", state[words].shape[0] if words in state else 30522)
    known = state[tasks].shape[0] if tasks in state else 20  # scripts set the flag, so that files seldom have it
    kwargs["task_tokens"] = known if tasks in state or config.get("task_specific_tokens") else 0
    kwargs["dynamic_attention"] = gate in state or bool(config.get("dynamic_attention"))
    if layout == "mmf":
        kwargs["head_dropout"] = kwargs["dropout"]
    return kwargs


def heads_of(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``{task: arguments}`` of the heads whose names are there."""
    layout = layout_of(state)

    def tensor(key: str) -> Tensor | None:
        return state.get(_spelled(key, layout))

    heads: dict[str, dict[str, Any]] = {}
    words, decoder = tensor("bert.embeddings.word_embeddings.weight"), tensor("cls.predictions.decoder.weight")
    if tensor("cls.predictions.bias") is not None:
        tied = decoder is None or (words is not None and torch.equal(decoder, words))
        heads["mlm"] = {} if tied else {"tied": False}  # MMF's pretraining does not tie them
    regions = tensor("cls.imagePredictions.decoder.weight")
    if regions is not None:
        target = config.get("visual_target", int(bool(config.get("predict_feature"))))
        heads["region"] = {"mode": REGION_MODES[target], "width": regions.shape[0]}
    for task, name in _CLASSIFIER.items():
        plain, normed = tensor(f"{name}.logit_fc.3.weight"), tensor(f"{name}.main.3.weight_v")
        if plain is not None:
            heads[task] = {} if task == "binary" else {"num_answers": plain.shape[0]}
        elif task == "vqa" and normed is not None:
            heads[task] = {"num_answers": normed.shape[0], "weight_norm": True}
    for task, name in _LINEAR.items():
        if tensor(f"{name}.weight") is not None:
            heads[task] = {}
    last = tensor("classifier.1.weight")
    if last is not None:
        heads["classifier"] = {"num_classes": last.shape[0]}
        if config.get("training_head_type") == "nlvr2":
            heads["classifier"]["pairs"] = True
    return heads


def rules(
    model: "ViLBERT", state: Mapping[str, Tensor] | None, layout: str | None
) -> tuple[list[Rule], Callable[[str], bool]]:
    """Rules between our names and a layout's, and which names carry nothing.

    Raises:
        ValueError: If the layout is unknown, is not that of the names, or has no place for a head.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if state is not None:
        told = layout_of(state)
        same = {told, layout} <= {"multi-task", "beta"}  # told apart by one head alone
        if layout is not None and layout != told and not same:
            raise ValueError(f"layout = {layout!r}, but these are the names of {told!r}")
        layout = told
    else:
        layout = layout or _usual_layout(model)
        _check_heads(model, layout)
    found = _encoder_rules(model) + _connection_rules(model)
    found += _head_rules(model, layout, found)
    found = [
        replace(
            one,
            theirs=tuple(_spelled(key, layout) for key in one.theirs),
            copies=tuple(_spelled(key, layout) for key in one.copies),
        )
        for one in found
    ]
    return found, lambda key: key.endswith("embeddings.position_ids")


def _usual_layout(model: "ViLBERT") -> str:
    if "classifier" in model.heads:
        return "mmf"
    if model.head_config.get("vqa", {}).get("weight_norm"):
        return "beta"
    return "multi-task" if model.heads else "bare"


def _check_heads(model: "ViLBERT", layout: str) -> None:
    lost = [task for task in model.heads if task not in _HEADS[layout]]
    normed = bool(model.head_config.get("vqa", {}).get("weight_norm"))
    if "vqa" in model.heads and layout in ("multi-task", "beta") and normed != (layout == "beta"):
        lost.append(f"vqa (weight_norm={normed})")
    if lost:
        raise ValueError(f"layout {layout!r} has no names for the heads {', '.join(lost)}")


def _encoder_rules(model: "ViLBERT") -> list[Rule]:
    found = bert_embedding_rules("embeddings", "bert.embeddings")
    if model.embeddings.tasks is not None:
        found.append(Rule("embeddings.tasks.weight", ("bert.embeddings.task_embeddings.weight",)))
    found += rules_for("region_embeddings.features", "bert.v_embeddings.image_embeddings")
    found += rules_for("region_embeddings.boxes", "bert.v_embeddings.image_location_embeddings")
    found += rules_for("region_embeddings.norm", "bert.v_embeddings.LayerNorm")
    found += bert_layer_rules("text_layers", "bert.encoder.layer", len(model.text_layers))
    found += bert_layer_rules("region_layers", "bert.encoder.v_layer", len(model.region_layers))
    if model.config["dynamic_attention"]:
        for index in range(len(model.region_layers)):
            own = f"bert.encoder.v_layer.{index}.attention.self"
            found += rules_for(f"region_layers.{index}.gate", f"{own}.dyLinear_q", f"{own}.dyLinear_k")
    found += rules_for("text_pooler.dense", "bert.t_pooler.dense")
    return found + rules_for("region_pooler.dense", "bert.v_pooler.dense")


def _connection_rules(model: "ViLBERT") -> list[Rule]:
    """Stream 1 of the original is vision, our first; stream 2 is text."""
    found: list[Rule] = []
    for index in range(len(model.connections)):
        ours, theirs = f"connections.{index}", f"bert.encoder.c_layer.{index}"
        for stream, letter in ((0, "v"), (1, "t")):
            number, read = stream + 1, f"{theirs}.biattention"
            parts = (f"{read}.query{number}", f"{read}.key{number}", f"{read}.value{number}")
            found += rules_for(f"{ours}.co_attention.qkv.{stream}", *parts)
            found += rules_for(f"{ours}.co_attention.out.{stream}", f"{theirs}.biOutput.dense{number}")
            found += rules_for(f"{ours}.co_norm.{stream}", f"{theirs}.biOutput.LayerNorm{number}")
            found += rules_for(f"{ours}.unused.{stream}", f"{theirs}.biOutput.q_dense{number}")
            found += rules_for(f"{ours}.mlp.{stream}.up", f"{theirs}.{letter}_intermediate.dense")
            found += rules_for(f"{ours}.mlp.{stream}.down", f"{theirs}.{letter}_output.dense")
            found += rules_for(f"{ours}.mlp_norm.{stream}", f"{theirs}.{letter}_output.LayerNorm")
    return found


def _head_rules(model: "ViLBERT", layout: str, encoder: list[Rule]) -> list[Rule]:
    found: list[Rule] = []
    for task in model.heads:
        ours = f"heads.{task}"
        if task == "mlm":
            found += _mlm_rules(model, layout, encoder)
        elif task == "region":
            found += _transform_rules(ours, "cls.imagePredictions.transform", "cls.imagePredictions.decoder")
        elif task == "classifier":
            found += _transform_rules(ours, "classifier.0", "classifier.1")
        elif task in _LINEAR:
            found += rules_for(ours, _LINEAR[task])
        elif model.head_config[task].get("weight_norm"):
            for part, place in (("dense", "main.0"), ("out", "main.3")):
                name = f"{_CLASSIFIER[task]}.{place}"
                found.append(Rule(f"{ours}.{part}.bias", (f"{name}.bias",)))
                found.append(Rule(f"{ours}.{part}.scale", (f"{name}.weight_g",), shape=()))
                found.append(Rule(f"{ours}.{part}.direction", (f"{name}.weight_v",)))
        else:
            for part, place in (("dense", "0"), ("norm", "2"), ("out", "3")):
                found += rules_for(f"{ours}.{part}", f"{_CLASSIFIER[task]}.logit_fc.{place}")
    return found


def _transform_rules(ours: str, transform: str, decoder: str) -> list[Rule]:
    return [
        *rules_for(f"{ours}.dense", f"{transform}.dense"),
        *rules_for(f"{ours}.norm", f"{transform}.LayerNorm"),
        *rules_for(f"{ours}.decoder", decoder),
    ]


def _mlm_rules(model: "ViLBERT", layout: str, encoder: list[Rule]) -> list[Rule]:
    """The head's matrix is the word table again, unless it is not tied; MMF's library also repeats the bias."""
    name = "cls.predictions"
    again = (f"{name}.decoder.bias",) if layout == "mmf" else ()
    if model.head_config["mlm"].get("tied", True):
        found = mlm_rules("heads.mlm", name, "embeddings.words.weight", encoder)
        return [replace(one, copies=again) if one.ours == "heads.mlm.bias" else one for one in found]
    return [
        *rules_for("heads.mlm.dense", f"{name}.transform.dense"),
        *rules_for("heads.mlm.norm", f"{name}.transform.LayerNorm"),
        *rules_for("heads.mlm.decoder", f"{name}.decoder", bias=False),
        Rule("heads.mlm.decoder.bias", (f"{name}.bias",), copies=again),
    ]
