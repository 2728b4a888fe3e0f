"""ViLBERT once more, plain and slow: a dictionary of original tensors, the original config, loops over rows and heads.

Nothing of the package is used. ``wrong`` names one deliberate mistake, so that a test can show that it would be seen.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

WRONG = (
    "listed_layers_first",
    "regions_before_connection",
    "contexts_to_other_stream",
    "own_keys",
    "scale_of_regions",
    "q_dense",
    "co_attention_mask",
    "mask_queries",
    "no_area",
    "region_positions",
    "drop_region_0",
    "tanh_pooler",
    "pool_last",
    "sum_fusion",
    "swapped_labels",
    "task_in_front",
    "task_has_position",
    "task_not_normed",
    "gelu_tanh",
    "eps",
    "pre_norm",
    "first_position_2",
)


def filled(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Numbers that depend on the name and the place alone: the same on every machine, no two tensors alike."""
    state = {}
    for name, shape in shapes.items():
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        places = torch.arange(math.prod(shape), dtype=torch.float64)
        values = torch.sin(places * (0.7 + key % 1009 / 1009) + key % 7919) * 0.4
        if "LayerNorm.weight" in name or "LayerNorm1.weight" in name or "LayerNorm2.weight" in name:
            values = 1 + values
        state[name] = values.reshape(tuple(shape)).to(dtype)
    return state


def encoder_shapes(c: Mapping[str, Any], task_tokens: int = 0) -> dict[str, tuple[int, ...]]:
    """Every tensor of the original ``BertModel``, under ``bert.``."""
    h, v, b = c["hidden_size"], c["v_hidden_size"], c["bi_hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def layer(name: str, width: int, hidden: int) -> None:
        for part in ("query", "key", "value"):
            linear(f"{name}.attention.self.{part}", width, width)
        linear(f"{name}.attention.output.dense", width, width)
        norm(f"{name}.attention.output.LayerNorm", width)
        linear(f"{name}.intermediate.dense", width, hidden)
        linear(f"{name}.output.dense", hidden, width)
        norm(f"{name}.output.LayerNorm", width)

    shapes["bert.embeddings.word_embeddings.weight"] = (c["vocab_size"], h)
    shapes["bert.embeddings.position_embeddings.weight"] = (c["max_position_embeddings"], h)
    shapes["bert.embeddings.token_type_embeddings.weight"] = (c["type_vocab_size"], h)
    norm("bert.embeddings.LayerNorm", h)
    if task_tokens:
        shapes["bert.embeddings.task_embeddings.weight"] = (task_tokens, h)
    linear("bert.v_embeddings.image_embeddings", c["v_feature_size"], v)
    linear("bert.v_embeddings.image_location_embeddings", 5, v)
    norm("bert.v_embeddings.LayerNorm", v)
    for i in range(c["num_hidden_layers"]):
        layer(f"bert.encoder.layer.{i}", h, c["intermediate_size"])
    for i in range(c["v_num_hidden_layers"]):
        layer(f"bert.encoder.v_layer.{i}", v, c["v_intermediate_size"])
        if c.get("dynamic_attention"):
            linear(f"bert.encoder.v_layer.{i}.attention.self.dyLinear_q", h, v)
            linear(f"bert.encoder.v_layer.{i}.attention.self.dyLinear_k", h, v)
    for i in range(len(c["v_biattention_id"])):
        name = f"bert.encoder.c_layer.{i}"
        for number, width in ((1, v), (2, h)):
            for part in ("query", "key", "value"):
                linear(f"{name}.biattention.{part}{number}", width, b)
            linear(f"{name}.biOutput.dense{number}", b, width)
            linear(f"{name}.biOutput.q_dense{number}", b, width)
            norm(f"{name}.biOutput.LayerNorm{number}", width)
        for letter, width, hidden in (("v", v, c["v_intermediate_size"]), ("t", h, c["intermediate_size"])):
            linear(f"{name}.{letter}_intermediate.dense", width, hidden)
            linear(f"{name}.{letter}_output.dense", hidden, width)
            norm(f"{name}.{letter}_output.LayerNorm", width)
    linear("bert.t_pooler.dense", h, b)
    linear("bert.v_pooler.dense", v, b)
    return shapes


def head_shapes(c: Mapping[str, Any], kind: str) -> dict[str, tuple[int, ...]]:
    """Tensors of the heads: ``pretraining``, ``multi-task``, ``beta`` or ``mmf-classifier``."""
    h, v, b = c["hidden_size"], c["v_hidden_size"], c["bi_hidden_size"]
    if kind == "mmf-classifier":
        return {
            "classifier.0.dense.weight": (b, b),
            "classifier.0.dense.bias": (b,),
            "classifier.0.LayerNorm.weight": (b,),
            "classifier.0.LayerNorm.bias": (b,),
            "classifier.1.weight": (3, b),
            "classifier.1.bias": (3,),
        }
    shapes: dict[str, tuple[int, ...]] = {"cls.predictions.bias": (c["vocab_size"],)}
    for name, width in (("cls.predictions", h), ("cls.imagePredictions", v)):
        shapes[f"{name}.transform.dense.weight"] = (width, width)
        for part in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias"):
            shapes[f"{name}.transform.{part}"] = (width,)
    shapes["cls.imagePredictions.decoder.weight"] = (c["v_target_size"], v)
    shapes["cls.imagePredictions.decoder.bias"] = (c["v_target_size"],)
    linears = {"cls.bi_seq_relationship": (2, b)}
    if kind != "pretraining":
        linears |= {"vil_logit": (1, b), "vision_logit": (1, v), "linguisic_logit": (1, h)}
    if kind == "multi-task":
        linears["vil_tri_prediction"] = (3, b)
        for name, inputs, answers in (
            ("vil_prediction", b, 13),
            ("vil_prediction_gqa", b, 7),
            ("vil_binary_prediction", 2 * b, 2),
        ):
            linears[f"{name}.logit_fc.0"] = (2 * b, inputs)
            linears[f"{name}.logit_fc.3"] = (answers, 2 * b)
            shapes[f"{name}.logit_fc.2.weight"] = shapes[f"{name}.logit_fc.2.bias"] = (2 * b,)
    if kind == "beta":
        for place, inputs, outputs in ((0, b, 2 * b), (3, 2 * b, 13)):
            shapes[f"vil_prediction.main.{place}.bias"] = (outputs,)
            shapes[f"vil_prediction.main.{place}.weight_g"] = ()
            shapes[f"vil_prediction.main.{place}.weight_v"] = (outputs, inputs)
    for name, (outputs, inputs) in linears.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)
    return shapes


class Reference:
    """The original's numbers in evaluation mode."""

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any], wrong: str | None = None) -> None:
        assert wrong is None or wrong in WRONG, wrong
        self.s, self.c, self.wrong = state, config, wrong
        self.eps = 1e-5 if wrong == "eps" else 1e-12

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.s[f"{name}.weight"].T + self.s[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        spread = ((x - mean) ** 2).mean(-1, keepdim=True)
        return self.s[f"{name}.weight"] * (x - mean) / torch.sqrt(spread + self.eps) + self.s[f"{name}.bias"]

    def gelu(self, x: Tensor) -> Tensor:
        if self.wrong == "gelu_tanh":
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int, width: int | None = None) -> Tensor:
        """Row by row, head by head; ``mask`` (B, K) is 1 where present; ``width`` sets the scale."""
        size = q.shape[-1] // heads
        rows = []
        for b in range(q.shape[0]):
            read = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = q[b, :, part] @ k[b, :, part].T / math.sqrt(width or size)
                scores = scores + (1 - mask[b])[None, :] * -10000.0
                if self.wrong == "mask_queries" and q.shape[1] == k.shape[1]:
                    scores = scores * mask[b][:, None]
                weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
                read.append(weights / weights.sum(-1, keepdim=True) @ v[b, :, part])
            rows.append(torch.cat(read, dim=-1))
        return torch.stack(rows)

    def feed_forward(self, x: Tensor, up: str, down: str) -> Tensor:
        hidden = self.gelu(self.linear(x, f"{up}.dense"))
        return self.norm(self.linear(hidden, f"{down}.dense") + x, f"{down}.LayerNorm")

    def layer(self, x: Tensor, mask: Tensor, name: str, heads: int, gates: tuple[Tensor, ...] | None = None) -> Tensor:
        own = f"{name}.attention.self"
        inside = self.norm(x, f"{name}.attention.output.LayerNorm") if self.wrong == "pre_norm" else x
        q, k, v = (self.linear(inside, f"{own}.{part}") for part in ("query", "key", "value"))
        if gates is not None:
            q, k = q * gates[0][:, None], k * gates[1][:, None]
        added = x + self.linear(self.attend(q, k, v, mask, heads), f"{name}.attention.output.dense")
        if self.wrong != "pre_norm":
            added = self.norm(added, f"{name}.attention.output.LayerNorm")
        return self.feed_forward(added, f"{name}.intermediate", f"{name}.output")

    def connect(
        self, regions: Tensor, region_mask: Tensor, text: Tensor, text_mask: Tensor, number: int, co_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        name, heads = f"bert.encoder.c_layer.{number}", self.c["bi_num_attention_heads"]
        q1, k1, v1 = (self.linear(regions, f"{name}.biattention.{part}1") for part in ("query", "key", "value"))
        q2, k2, v2 = (self.linear(text, f"{name}.biattention.{part}2") for part in ("query", "key", "value"))
        width = self.c["v_hidden_size"] // self.c["v_num_attention_heads"] if self.wrong == "scale_of_regions" else None
        if self.wrong == "own_keys":
            k1, v1, k2, v2, region_mask, text_mask = k2, v2, k1, v1, text_mask, region_mask
        over_regions = self.attend(q2, k1, v1, region_mask, heads, width)
        over_text = self.attend(q1, k2, v2, text_mask, heads, width)
        if self.wrong == "co_attention_mask" and co_mask is not None:
            over_text = over_text * co_mask.amax(-1)[..., None]
        if self.wrong == "contexts_to_other_stream":
            over_regions, over_text = over_text, over_regions
        part = "q_dense" if self.wrong == "q_dense" else "dense"
        own = f"{name}.biOutput"
        regions = self.norm(self.linear(over_text, f"{own}.{part}1") + regions, f"{own}.LayerNorm1")
        text = self.norm(self.linear(over_regions, f"{own}.{part}2") + text, f"{own}.LayerNorm2")
        regions = self.feed_forward(regions, f"{name}.v_intermediate", f"{name}.v_output")
        return regions, self.feed_forward(text, f"{name}.t_intermediate", f"{name}.t_output")

    def embed_text(self, ids: Tensor, types: Tensor, tasks: Tensor | None) -> Tensor:
        words = self.s["bert.embeddings.word_embeddings.weight"]
        places = self.s["bert.embeddings.position_embeddings.weight"]
        kinds = self.s["bert.embeddings.token_type_embeddings.weight"]
        rows = []
        for b in range(ids.shape[0]):
            tokens = []
            for place, (word, kind) in enumerate(zip(ids[b].tolist(), types[b].tolist(), strict=True)):
                row = words[word].detach() if word == 0 else words[word]  # the padding row takes no gradient here
                shift = 2 if self.wrong == "first_position_2" else 0
                shift += self.wrong == "task_has_position" and tasks is not None and place > 0
                tokens.append(row + places[place + shift] + kinds[kind])
            if tasks is not None and self.wrong != "task_not_normed":
                task = self.s["bert.embeddings.task_embeddings.weight"][int(tasks[b])]
                tokens.insert(0 if self.wrong == "task_in_front" else 1, task)
            rows.append(torch.stack(tokens))
        x = self.norm(torch.stack(rows), "bert.embeddings.LayerNorm")
        if tasks is not None and self.wrong == "task_not_normed":
            task_rows = self.s["bert.embeddings.task_embeddings.weight"][tasks.reshape(-1)][:, None]
            x = torch.cat([x[:, :1], task_rows, x[:, 1:]], dim=1)
        return x

    def embed_regions(self, features: Tensor, boxes: Tensor) -> Tensor:
        if self.wrong == "no_area":
            boxes = boxes * boxes.new_tensor([1, 1, 1, 1, 0])
        name = "bert.v_embeddings"
        x = self.linear(features, f"{name}.image_embeddings") + self.linear(boxes, f"{name}.image_location_embeddings")
        if self.wrong == "region_positions":
            place = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
            x = x + torch.sin(place * torch.arange(1, x.shape[2] + 1, dtype=x.dtype) / x.shape[2])
        return self.norm(x, f"{name}.LayerNorm")

    def gates(self, text: Tensor, mask: Tensor, number: int) -> tuple[Tensor, ...] | None:
        if not self.c.get("dynamic_attention"):
            return None
        mean = (text * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        own = f"bert.encoder.v_layer.{number}.attention.self"
        return tuple(1 + torch.sigmoid(self.linear(mean, f"{own}.dyLinear_{part}")) for part in "qk")

    def encode(
        self, text: Tensor, regions: Tensor, text_mask: Tensor, region_mask: Tensor, co_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        c, shift = self.c, int(self.wrong == "listed_layers_first")
        t = v = 0
        for number, (v_id, t_id) in enumerate(zip(c["v_biattention_id"], c["t_biattention_id"], strict=True)):
            v_end = v_id + int(shift or self.wrong == "regions_before_connection")
            while t < t_id + shift:
                text = self.layer(text, text_mask, f"bert.encoder.layer.{t}", c["num_attention_heads"])
                t += 1
            while v < v_end:
                gates = self.gates(text, text_mask, v)
                regions = self.layer(
                    regions, region_mask, f"bert.encoder.v_layer.{v}", c["v_num_attention_heads"], gates
                )
                v += 1
            if c.get("with_coattention", True):
                regions, text = self.connect(regions, region_mask, text, text_mask, number, co_mask)
        for index in range(v, c["v_num_hidden_layers"]):
            gates = self.gates(text, text_mask, index)
            name = f"bert.encoder.v_layer.{index}"
            regions = self.layer(regions, region_mask, name, c["v_num_attention_heads"], gates)
        for index in range(t, c["num_hidden_layers"]):
            text = self.layer(text, text_mask, f"bert.encoder.layer.{index}", c["num_attention_heads"])
        return text, regions

    def transform(self, x: Tensor, name: str) -> Tensor:
        return self.norm(self.gelu(self.linear(x, f"{name}.dense")), f"{name}.LayerNorm")

    def answers(self, x: Tensor, name: str) -> Tensor:
        if f"{name}.logit_fc.0.weight" in self.s:
            hidden = self.gelu(self.linear(x, f"{name}.logit_fc.0"))
            return self.linear(self.norm(hidden, f"{name}.logit_fc.2"), f"{name}.logit_fc.3")
        for place in (0, 3):
            direction, length = self.s[f"{name}.main.{place}.weight_v"], self.s[f"{name}.main.{place}.weight_g"]
            x = x @ (direction * length / (direction**2).sum().sqrt()).T + self.s[f"{name}.main.{place}.bias"]
            x = torch.relu(x) if place == 0 else x
        return x

    def __call__(self, batch: Mapping[str, Tensor], co_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Everything that the checkpoint has heads for; ``batch`` with the keywords of our ``forward``."""
        dtype = self.s["bert.t_pooler.dense.weight"].dtype
        text_mask, region_mask = batch["text_mask"].to(dtype), batch["region_mask"].to(dtype)
        tasks = batch.get("task_ids")
        text = self.embed_text(batch["input_ids"], batch["token_type_ids"], tasks)
        if tasks is not None:
            text_mask = torch.cat([torch.ones_like(text_mask[:, :1]), text_mask], dim=1)
        regions = self.embed_regions(batch["region_features"], batch["region_boxes"])
        text, regions = self.encode(text, regions, text_mask, region_mask, co_mask)
        place = -1 if self.wrong == "pool_last" else 0
        act = torch.tanh if self.wrong == "tanh_pooler" else torch.relu
        pooled_text = act(self.linear(text[:, place], "bert.t_pooler.dense"))
        pooled_image = act(self.linear(regions[:, place], "bert.v_pooler.dense"))
        added = (self.c.get("fusion_method", "mul") == "sum") != (self.wrong == "sum_fusion")
        pooled = pooled_text + pooled_image if added else pooled_text * pooled_image
        out = {"text": text, "regions": regions, "pooled_text": pooled_text, "pooled_image": pooled_image}
        out["pooled"] = pooled
        if "cls.predictions.bias" in self.s:
            words = self.s["bert.embeddings.word_embeddings.weight"]
            out["mlm_logits"] = self.transform(text, "cls.predictions.transform") @ words.T
            out["mlm_logits"] = out["mlm_logits"] + self.s["cls.predictions.bias"]
            seen = self.transform(regions, "cls.imagePredictions.transform")
            out["region_logits"] = self.linear(seen, "cls.imagePredictions.decoder")
            if self.wrong == "drop_region_0":
                out["region_logits"] = torch.cat([out["region_logits"][:, 1:], out["region_logits"][:, :1]], dim=1)
            out["pair_logits"] = self.linear(pooled, "cls.bi_seq_relationship")
            if self.wrong == "swapped_labels":
                out["pair_logits"] = out["pair_logits"].flip(-1)
        if "vil_prediction.logit_fc.0.weight" in self.s:
            out["gqa_logits"] = self.answers(pooled, "vil_prediction_gqa")
            couples = [torch.cat([pooled[b], pooled[b + 1]]) for b in range(0, pooled.shape[0] - 1, 2)]
            out["binary_logits"] = self.answers(torch.stack(couples), "vil_binary_prediction")
            out["tri_logits"] = self.linear(pooled, "vil_tri_prediction")
        if "vil_logit.weight" in self.s:
            out["vqa_logits"] = self.answers(pooled, "vil_prediction")
            out["logit_logits"] = self.linear(pooled, "vil_logit")
            absent = (1 - region_mask)[..., None] * -10000.0
            out["vision_logit_logits"] = self.linear(regions, "vision_logit") + absent
            out["text_logit_logits"] = self.linear(text, "linguisic_logit")
        if "classifier.1.weight" in self.s:
            out["classifier_logits"] = self.linear(self.transform(pooled, "classifier.0"), "classifier.1")
        return out
