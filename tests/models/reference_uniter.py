"""UNITER's forward pass, plain and slow, from the architecture's facts: one vector at a time, original names.

It shares no layer with the package. Rows are padded and then compacted with a gather index, as the authors' loaders do.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]
EPS = 1e-12

CONFIG: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 10,
    "initializer_range": 0.02,
    "intermediate_size": 13,
    "max_position_embeddings": 11,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 23,
}
REGION_DIM, CLASSES, ANSWERS = 17, 7, 19


def filled(name: str, *shape: int) -> Tensor:
    """Numbers that depend on the name alone; gains around 1."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.4
    gain = name.endswith("weight") and len(shape) == 1
    return numbers + 1 if gain else numbers


def original_state(config: Mapping[str, Any] = CONFIG, heads: Sequence[str] = ()) -> dict[str, Tensor]:
    """A checkpoint under the authors' names, row 0 of the mask table not zero (as a broken file may have it)."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, size: int = width) -> None:
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def linear(name: str, out: int, into: int = width) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def three(name: str, out: int, middle: int = width) -> None:
        linear(f"{name}.0", middle)
        norm(f"{name}.2", middle)
        linear(f"{name}.3", out, middle)

    for table, rows in (
        ("word", config["vocab_size"]),
        ("position", config["max_position_embeddings"]),
        ("token_type", config["type_vocab_size"]),
    ):
        shapes[f"uniter.embeddings.{table}_embeddings.weight"] = (rows, width)
    norm("uniter.embeddings.LayerNorm")
    linear("uniter.img_embeddings.img_linear", width, REGION_DIM)
    norm("uniter.img_embeddings.img_layer_norm")
    norm("uniter.img_embeddings.pos_layer_norm")
    linear("uniter.img_embeddings.pos_linear", width, 7)
    shapes["uniter.img_embeddings.mask_embedding.weight"] = (2, REGION_DIM)
    norm("uniter.img_embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"uniter.encoder.layer.{index}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width)
        linear(f"{layer}.attention.output.dense", width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner)
        linear(f"{layer}.output.dense", width, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("uniter.pooler.dense", width)
    if "mlm" in heads:
        shapes["cls.predictions.bias"] = (config["vocab_size"],)
        linear("cls.predictions.transform.dense", width)
        norm("cls.predictions.transform.LayerNorm")
    if "mrfr" in heads:
        shapes["feat_regress.bias"] = (REGION_DIM,)
        linear("feat_regress.net.0", width)
        norm("feat_regress.net.2")
    if "mrc" in heads:
        three("region_classifier.net", CLASSES)
    if "itm" in heads:
        linear("itm_output", 2)
    if "rank" in heads:
        linear("rank_output", 1)
    if "vqa" in heads:
        three("vqa_output", ANSWERS, 2 * width)
    if "vcr" in heads:
        three("vcr_output", 2, 2 * width)
    if "re" in heads:
        linear("re_output", 1)
    if "re2" in heads:
        three("re_output", 1)
    if "paired" in heads:
        linear("nlvr2_output", 2, 2 * width)
    if "triplet" in heads:
        linear("nlvr2_output", 2)
    if "paired_attention" in heads:
        for name in ("attn1", "attn2"):
            shapes.update({f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)})
            linear(f"{name}.out_proj", width)
        linear("fc.0", width, 2 * width)
        linear("attn_pool.fc.0", 1)
        linear("nlvr2_output", 2, 2 * width)
    state = {name: filled(name, *shape) for name, shape in shapes.items()}
    if "mlm" in heads:  # tied: the file holds the same tensor twice
        state["cls.predictions.decoder.weight"] = state["uniter.embeddings.word_embeddings.weight"]
    if "mrfr" in heads:
        state["feat_regress.weight"] = state["uniter.img_embeddings.img_linear.weight"]
    return state


@dataclass
class Row:
    """One text and one image: what a loader hands to the collating function, nothing padded."""

    words: list[int] = field(default_factory=list)
    types: list[int] | None = None
    features: list[Tensor] = field(default_factory=list)
    boxes: list[Tensor] = field(default_factory=list)
    hidden: list[bool] | None = None
    region_types: list[int] | None = None


@dataclass
class Result:
    """One list entry per row."""

    sequence: list[list[Tensor]]  # compact, padding behind
    text: list[list[Tensor]]
    regions: list[list[Tensor]]
    pooled: list[Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return state[f"{name}.weight"] @ x + state[f"{name}.bias"]


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.sum() / len(x)
    return (
        centred / torch.sqrt((centred * centred).sum() / len(x) + EPS) * state[f"{name}.weight"] + state[f"{name}.bias"]
    )


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


ACTIVATIONS = {"gelu": gelu, "relu": torch.relu, "swish": lambda x: x * torch.sigmoid(x)}


def softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    highest = max(float(score.detach()) for score in scores)
    powers = [torch.exp(score - highest) for score in scores]
    whole = torch.stack(powers).sum()
    return [power / whole for power in powers]


def word_embedding(state: State, word: int, place: int, kind: int) -> Tensor:
    table = "uniter.embeddings."
    x = state[table + "word_embeddings.weight"][word] + state[table + "position_embeddings.weight"][place]
    return layer_norm(state, table + "LayerNorm", x + state[table + "token_type_embeddings.weight"][kind])


def region_embedding(state: State, features: Tensor, box: Tensor, hidden: bool, kind: int) -> Tensor:
    image = "uniter.img_embeddings."
    if hidden:  # zeroed by the loader; row 1 of the table added, row 0 of it is zero
        features = torch.zeros_like(features) + state[image + "mask_embedding.weight"][1]
    seen = layer_norm(state, image + "img_layer_norm", linear(state, image + "img_linear", features))
    where = layer_norm(state, image + "pos_layer_norm", linear(state, image + "pos_linear", box))
    what = state["uniter.embeddings.token_type_embeddings.weight"][kind]
    return layer_norm(state, image + "LayerNorm", seen + where + what)


def attend(
    queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor], mask: Sequence[int], heads: int
) -> list[Tensor]:
    size = len(queries[0]) // heads
    read = []
    for query in queries:
        parts = []
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            scores = [
                (query[cut] * key[cut]).sum() / math.sqrt(size) + (1.0 - seen) * -10000.0
                for key, seen in zip(keys, mask, strict=True)
            ]
            weights = softmax(scores)
            parts.append(sum((w * value[cut] for w, value in zip(weights, values, strict=True)), torch.zeros(())))
        read.append(torch.cat(parts))
    return read


def encode(state: State, config: Mapping[str, Any], stream: list[Tensor], mask: Sequence[int]) -> list[Tensor]:
    for index in range(config["num_hidden_layers"]):
        layer = f"uniter.encoder.layer.{index}"
        q, k, v = ([linear(state, f"{layer}.attention.self.{p}", x) for x in stream] for p in ("query", "key", "value"))
        read = attend(q, k, v, mask, config["num_attention_heads"])
        after = []
        for x, got in zip(stream, read, strict=True):
            out = linear(state, f"{layer}.attention.output.dense", got)
            x = layer_norm(state, f"{layer}.attention.output.LayerNorm", out + x)
            up = ACTIVATIONS[config["hidden_act"]](linear(state, f"{layer}.intermediate.dense", x))
            after.append(layer_norm(state, f"{layer}.output.LayerNorm", linear(state, f"{layer}.output.dense", up) + x))
        stream = after
    return stream


def run(state: State, config: Mapping[str, Any], rows: Sequence[Row]) -> Result:
    """Pad, embed, compact by gather index, encode, pool position 0."""
    length = max(len(row.words) for row in rows)
    number = max(len(row.features) for row in rows)
    longest = max(len(row.words) + len(row.features) for row in rows)
    result = Result([], [], [], [])
    for row in rows:
        words, regions = len(row.words), len(row.features)
        types = row.types or [0] * words
        padded = []
        for place in range(length):
            word = row.words[place] if place < words else 0
            padded.append(word_embedding(state, word, place, types[place] if place < words else 0))
        for place in range(number):
            there = place < regions
            features = row.features[place] if there else torch.zeros(REGION_DIM, dtype=torch.float64)
            box = row.boxes[place] if there else torch.zeros(7, dtype=torch.float64)
            hidden = bool(there and row.hidden and row.hidden[place])
            kind = row.region_types[place] if there and row.region_types else 1
            padded.append(region_embedding(state, features, box, hidden, kind))
        index = list(range(longest))
        index[words : words + regions] = range(length, length + regions)
        stream = [padded[place] for place in index]
        mask = [1] * (words + regions) + [0] * (longest - words - regions)
        states = encode(state, config, stream, mask)
        result.sequence.append(states)
        result.text.append(states[:words])
        result.regions.append(states[words : words + regions])
        result.pooled.append(torch.tanh(linear(state, "uniter.pooler.dense", states[0])))
    return result


def mlm(state: State, config: Mapping[str, Any], x: Tensor) -> Tensor:
    hidden = ACTIVATIONS[config["hidden_act"]](linear(state, "cls.predictions.transform.dense", x))
    hidden = layer_norm(state, "cls.predictions.transform.LayerNorm", hidden)
    return state["uniter.embeddings.word_embeddings.weight"] @ hidden + state["cls.predictions.bias"]


def mrfr(state: State, x: Tensor) -> Tensor:
    hidden = layer_norm(state, "feat_regress.net.2", gelu(linear(state, "feat_regress.net.0", x)))
    matrix = state["uniter.img_embeddings.img_linear.weight"]  # (width, features): summed over the width
    return torch.stack([(matrix[:, j] * hidden).sum() for j in range(REGION_DIM)]) + state["feat_regress.bias"]


def three(state: State, name: str, x: Tensor) -> Tensor:
    inner = linear(state, f"{name}.0", x)
    inner = torch.relu(inner) if name == "vcr_output" else gelu(inner)
    return linear(state, f"{name}.3", layer_norm(state, f"{name}.2", inner))


def cosine_cost(x: Tensor, y: Tensor) -> Tensor:
    return 1 - (x * y).sum() / (torch.sqrt((x * x).sum()) * torch.sqrt((y * y).sum()))


def paired_attention(state: State, config: Mapping[str, Any], left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Streams without padding."""
    width = config["hidden_size"]
    pooled = []
    for name, own, other in (("attn1", left, right), ("attn2", right, left)):
        weight, bias = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
        q = [weight[:width] @ x + bias[:width] for x in own]
        k = [weight[width : 2 * width] @ x + bias[width : 2 * width] for x in other]
        v = [weight[2 * width :] @ x + bias[2 * width :] for x in other]
        read = attend(q, k, v, [1] * len(other), config["num_attention_heads"])
        read = [linear(state, f"{name}.out_proj", x) for x in read]
        mixed = [torch.relu(linear(state, "fc.0", torch.cat([r, x]))) for r, x in zip(read, own, strict=True)]
        weights = softmax([torch.relu(linear(state, "attn_pool.fc.0", x))[0] for x in mixed])
        pooled.append(sum((w * x for w, x in zip(weights, mixed, strict=True)), torch.zeros(())))
    return linear(state, "nlvr2_output", torch.cat(pooled))
