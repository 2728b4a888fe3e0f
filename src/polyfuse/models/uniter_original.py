"""UNITER's original names: what the authors' code (and MMF's) calls each tensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from polyfuse.models.bert_original import (
    bert_arguments,
    bert_embedding_rules,
    bert_layer_rules,
    gamma_beta_renamed,
    mlm_rules,
)
from polyfuse.models.convert import Rule, rules_for, strip_prefix

_TRUNK = ("embeddings.", "img_embeddings.", "encoder.", "pooler.")
_FEATURE = "uniter.img_embeddings.img_linear.weight"
_TO_MMF = {
    "uniter.embeddings.": "uniter.text_embeddings.",
    "uniter.img_embeddings.LayerNorm.": "uniter.img_embeddings.final_layer_norm.",
}
_STARTS = {
    "mlm": "cls.predictions.",
    "mrfr": "feat_regress.",
    "mrc": "region_classifier.",
    "itm": "itm_output.",
    "rank": "rank_output.",
    "vqa": "vqa_output.",
    "vcr": "vcr_output.",
    "re": "re_output.",
    "nlvr2": "nlvr2_output.",
}


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names: from old norms, parallel runs, MMF's trunk, or a trunk without ``uniter.`` in front."""
    state = strip_prefix(gamma_beta_renamed(state), "model.")
    if any(key.startswith("uniter.uniter.") for key in state):  # MMF: a model that holds a model
        state = {key.removeprefix("uniter."): value for key, value in state.items()}
    bare = not any(key.startswith("uniter.") for key in state)
    renamed = {}
    for key, value in state.items():
        name = f"uniter.{key}" if bare and key.startswith((*_TRUNK, "text_embeddings.")) else key
        for plain, mmf in _TO_MMF.items():
            name = plain + name.removeprefix(mmf) if name.startswith(mmf) else name
        renamed[name] = value
    return renamed


def config_of(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Our arguments. The authors append token types and words after reading their config: the tensors tell how many.

    A table of fewer words than the config says is left to be refused.
    """
    if config is None:
        raise ValueError("a UNITER checkpoint needs its config (uniter-base.json or uniter-large.json), got None")
    kwargs = bert_arguments(config)
    if kwargs.get("activation") == "swish":
        kwargs["activation"] = "silu"
    feature, types = state.get(_FEATURE), state.get("uniter.embeddings.token_type_embeddings.weight")
    words = state.get("uniter.embeddings.word_embeddings.weight")
    kwargs["region_dim"] = config.get("img_dim", 2048) if feature is None or feature.ndim != 2 else feature.shape[1]
    if types is not None and types.ndim == 2:
        kwargs["type_vocab_size"] = types.shape[0]
    if words is not None and words.ndim == 2:
        kwargs["vocab_size"] = max(words.shape[0], kwargs.get("vocab_size", 0))
    return kwargs


def heads_of(state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """``{task: options}`` of the heads whose tensors are there, ``itm`` before the head that starts from it."""
    found: dict[str, dict[str, Any]] = {
        task: {} for task, start in _STARTS.items() if any(key.startswith(start) for key in state)
    }
    sizes = {"mrc": ("num_classes", "region_classifier.net.3.weight"), "vqa": ("num_answers", "vqa_output.3.weight")}
    for task, (option, key) in sizes.items():
        if task in found and key in state:
            found[task] = {option: state[key].shape[0]}
    if any(key.startswith("re_output.0.") for key in state):
        found["re"] = {"num_layers": 2}
    if "nlvr2" in found:
        last, pooler = state.get("nlvr2_output.weight"), state.get("uniter.pooler.dense.weight")
        variant = "paired"
        if any(key.startswith(("attn1.", "attn2.", "attn_pool.")) for key in state):
            variant = "paired_attention"
        elif last is not None and pooler is not None and last.shape[-1] == pooler.shape[0]:
            variant = "triplet"
        found["nlvr2"] = {"variant": variant}
    return found


def rules_of(model: Any) -> list[Rule]:
    """Rules of the trunk and of every head that is attached."""
    rules = bert_embedding_rules("embeddings", "uniter.embeddings")
    image = "uniter.img_embeddings"
    rules += rules_for("regions.feature", f"{image}.img_linear")
    rules += rules_for("regions.feature_norm", f"{image}.img_layer_norm")
    rules += rules_for("regions.box", f"{image}.pos_linear")
    rules += rules_for("regions.box_norm", f"{image}.pos_layer_norm")
    rules += rules_for("regions.masked", f"{image}.mask_embedding", bias=False)
    rules += rules_for("regions.norm", f"{image}.LayerNorm")
    rules += bert_layer_rules("layers", "uniter.encoder.layer", len(model.layers))
    rules += rules_for("pooler.dense", "uniter.pooler.dense")
    for task in model.heads:
        if task == "mlm":
            found = mlm_rules("heads.mlm", "cls.predictions", "embeddings.words.weight", rules)
            # Files of later libraries repeat the bias, too; the authors' do not.
            rules += [replace(one, copies=()) for one in found]
        elif task == "mrfr":
            rules += _regression_rules(rules)
        else:
            rules += _head_rules(task, model.head_config[task])
    return rules


def _regression_rules(rules: list[Rule]) -> list[Rule]:
    """The regression's matrix is the feature matrix itself (transposed in use): a checked copy."""
    place = next(index for index, one in enumerate(rules) if one.ours == "regions.feature.weight")
    rules[place] = replace(rules[place], copies=("feat_regress.weight",))
    return [
        *rules_for("heads.mrfr.dense", "feat_regress.net.0"),
        *rules_for("heads.mrfr.norm", "feat_regress.net.2"),
        Rule("heads.mrfr.bias", ("feat_regress.bias",)),
    ]


def _head_rules(task: str, options: Mapping[str, Any]) -> list[Rule]:
    ours = f"heads.{task}"
    if task == "wra":
        return []
    if task == "mrc":
        return _three_layers(ours, "region_classifier.net")
    if task in ("vqa", "vcr") or (task == "re" and options.get("num_layers") == 2):
        return _three_layers(ours, f"{task}_output")
    if task == "nlvr2" and options.get("variant") == "paired_attention":
        rules = []
        for index, name in enumerate(("attn1", "attn2")):
            rules += [
                Rule(f"{ours}.attention.{index}.qkv.{kind}", (f"{name}.in_proj_{kind}",)) for kind in ("weight", "bias")
            ]
            rules += rules_for(f"{ours}.attention.{index}.out", f"{name}.out_proj")
        rules += rules_for(f"{ours}.mix", "fc.0") + rules_for(f"{ours}.score", "attn_pool.fc.0")
        return rules + rules_for(f"{ours}.decoder", "nlvr2_output")
    return rules_for(ours, f"{task}_output")


def _three_layers(ours: str, theirs: str) -> list[Rule]:
    return [
        *rules_for(f"{ours}.dense", f"{theirs}.0"),
        *rules_for(f"{ours}.norm", f"{theirs}.2"),
        *rules_for(f"{ours}.decoder", f"{theirs}.3"),
    ]


def mmf_rules(rules: list[Rule]) -> list[Rule]:
    """The same rules under MMF's names."""

    def renamed(key: str) -> str:
        for plain, mmf in _TO_MMF.items():
            key = mmf + key.removeprefix(plain) if key.startswith(plain) else key
        return f"uniter.{key}"

    return [replace(one, theirs=tuple(renamed(key) for key in one.theirs)) for one in rules]
