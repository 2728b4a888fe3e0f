"""Every strategy against its formula in plain loops: row by row, head by head, over present tokens alone, no mask."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfuse.models.multimodal_transformer import MultimodalTransformer

WIDTHS = {"text": 7, "audio": 3, "image": 5}
LENGTHS = {"text": 5, "audio": 3, "image": 2}
NAMES = sorted(WIDTHS)
HEADS, DIM = 2, 6

Row = dict[str, Tensor | None]  # (T_m, D) of the present tokens; None = the modality is absent


class Plain:
    """The model's numbers, used without the model."""

    def __init__(self, model: MultimodalTransformer) -> None:
        self.w = dict(model.named_parameters())
        self.pre = model.config["norm_first"]
        self.model = model

    def linear(self, x: Tensor, key: str) -> Tensor:
        y = x @ self.w[f"{key}.weight"].T
        return y + self.w[f"{key}.bias"] if f"{key}.bias" in self.w else y

    def norm(self, x: Tensor, key: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return (
            centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * self.w[f"{key}.weight"]
            + self.w[f"{key}.bias"]
        )

    def end(self, x: Tensor, key: str) -> Tensor:
        return self.norm(x, key) if self.pre else x

    def residual(self, x: Tensor, part: Callable[[Tensor], Tensor], norm: str) -> Tensor:
        return x + part(self.norm(x, norm)) if self.pre else self.norm(x + part(x), norm)

    @staticmethod
    def read(q: Tensor, k: Tensor, v: Tensor, allowed: list[list[int]] | None = None) -> Tensor:
        """One query and one head at a time; ``allowed[i]`` = keys of query i."""
        width = q.shape[1] // HEADS
        rows = []
        for i in range(len(q)):
            keys = list(range(len(k))) if allowed is None else allowed[i]
            heads = []
            for h in range(HEADS):
                part = slice(h * width, (h + 1) * width)
                scores = torch.stack([(q[i, part] * k[j, part]).sum() / width**0.5 for j in keys])
                share = scores.exp() / scores.exp().sum()
                heads.append(sum(share[n] * v[j, part] for n, j in enumerate(keys)))
            rows.append(torch.cat(heads))
        return torch.stack(rows)

    def self_read(self, x: Tensor, key: str, allowed: list[list[int]] | None = None) -> Tensor:
        q, k, v = self.linear(x, f"{key}.qkv").chunk(3, dim=1)
        return self.linear(self.read(q, k, v, allowed), f"{key}.out")

    def context_read(self, x: Tensor, context: Tensor, key: str) -> Tensor:
        k, v = self.linear(context, f"{key}.key_value").chunk(2, dim=1)
        return self.linear(self.read(self.linear(x, f"{key}.query"), k, v), f"{key}.out")

    def mlp(self, x: Tensor, key: str) -> Tensor:
        return self.linear(torch.nn.functional.gelu(self.linear(x, f"{key}.up")), f"{key}.down")

    def layer(self, x: Tensor, key: str, allowed: list[list[int]] | None = None) -> Tensor:
        x = self.residual(x, lambda y: self.self_read(y, f"{key}.attention", allowed), f"{key}.attention_norm")
        return self.residual(x, lambda y: self.mlp(y, f"{key}.mlp"), f"{key}.mlp_norm")

    def cross_layer(self, x: Tensor, context: Tensor, key: str) -> Tensor:
        x = self.residual(x, lambda y: self.context_read(y, context, f"{key}.context_attention"), f"{key}.context_norm")
        return self.residual(x, lambda y: self.mlp(y, f"{key}.mlp"), f"{key}.mlp_norm")

    def co_layer(self, x: Tensor, y: Tensor, key: str) -> list[Tensor]:
        streams, last = [x, y], int(f"{key}.co_attention.qkv.1.weight" in self.w)
        inside = [self.norm(s, f"{key}.co_norm.{i * last}") if self.pre else s for i, s in enumerate(streams)]
        parts = [self.linear(s, f"{key}.co_attention.qkv.{i * last}").chunk(3, dim=1) for i, s in enumerate(inside)]
        out = []
        for i, s in enumerate(streams):
            read = self.read(parts[i][0], parts[1 - i][1], parts[1 - i][2])
            s = s + self.linear(read, f"{key}.co_attention.out.{i * last}")
            s = s if self.pre else self.norm(s, f"{key}.co_norm.{i * last}")
            out.append(self.residual(s, lambda z, i=i: self.mlp(z, f"{key}.mlp.{i}"), f"{key}.mlp_norm.{i}"))
        return out

    def depth(self, key: str) -> int:
        """Layers under a key."""
        found = {name[len(key) + 1 :].split(".")[0] for name in self.w if name.startswith(f"{key}.")}
        return len(found)

    def towers(self, x: Tensor, name: str) -> Tensor:
        for n in range(self.depth(f"towers.layers.{name}")):
            x = self.layer(x, f"towers.layers.{name}.{n}")
        return x

    def embed(self, x: Tensor, places: Tensor, name: str) -> Tensor:
        at = self.w[f"embedding.positions.{name}.weight"][places]
        return self.norm(self.linear(x, f"embedding.project.{name}") + at, f"embedding.norm.{name}")

    def combine(self, vectors: dict[str, Tensor | None]) -> Tensor:
        fusion: Any = self.model.strategy.combine
        filled = {n: torch.zeros(1, DIM).double() if v is None else v[None] for n, v in vectors.items()}
        here = torch.tensor([[vectors[n] is not None for n in fusion.modalities]])
        return fusion(filled, here).fused[0]

    def mean_of_means(self, row: Row) -> Tensor:
        means = [x.mean(dim=0) for x in row.values() if x is not None]
        return sum(means) / len(means) if means else torch.zeros(DIM).double()

    def finish(self, row: Row) -> Row:
        return {n: None if x is None else self.end(x, f"strategy.end.{n}") for n, x in row.items()}


def joined(row: Row) -> tuple[Tensor, list[str]]:
    parts = [(n, x) for n, x in row.items() if x is not None]
    return torch.cat([x for _, x in parts]), [n for n, x in parts for _ in range(len(x))]


def parted(x: Tensor, owner: list[str], row: Row) -> Row:
    return {n: None if row[n] is None else x[[i for i, o in enumerate(owner) if o == n]] for n in row}


def run_joint(p: Plain, row: Row, allowed: Callable[[list[str]], list[list[int]] | None] = lambda owner: None) -> Row:
    if all(x is None for x in row.values()):
        return row
    x, owner = joined(row)
    for n in range(p.depth("strategy.layers")):
        x = p.layer(x, f"strategy.layers.{n}", allowed(owner))
    return parted(x, owner, row)


def early(p: Plain, row: Row) -> tuple[Row, Tensor]:
    row = p.finish(run_joint(p, row))
    return row, p.mean_of_means(row)


def late(p: Plain, row: Row) -> tuple[Row, Tensor]:
    row = p.finish(row)
    return row, p.combine({n: None if x is None else x.mean(dim=0) for n, x in row.items()})


def hybrid(p: Plain, row: Row) -> tuple[Row, Tensor]:
    alone = {n: None if x is None else p.end(x, f"strategy.tower_end.{n}").mean(dim=0) for n, x in row.items()}
    states, pooled = early(p, row)
    return states, pooled + p.combine(alone)


def bottleneck(p: Plain, row: Row) -> tuple[Row, Tensor]:
    row, shared = dict(row), p.w["strategy.bottleneck"]
    for n in range(p.depth(f"strategy.layers.{NAMES[0]}")):
        updates = []
        for name, x in row.items():
            if x is not None:
                both = p.layer(torch.cat([x, shared]), f"strategy.layers.{name}.{n}")
                row[name] = both[: len(x)]
                updates.append(both[len(x) :])
        if updates:
            shared = sum(updates) / len(updates)
    row = p.finish(row)
    return row, p.mean_of_means(row)


def graph(p: Plain, row: Row) -> tuple[Row, Tensor]:
    edges = p.model.config["edges"] or list(combinations(NAMES, 2))
    near = {(a, b) for a, b in edges} | {(b, a) for a, b in edges}

    def allowed(owner: list[str]) -> list[list[int]]:
        return [[j for j, b in enumerate(owner) if i == j or (a, b) in near] for i, a in enumerate(owner)]

    if p.model.config["nodes"] == "tokens":
        row = run_joint(p, row, allowed)
    else:
        before = {n: None if x is None else x.mean(dim=0)[None] for n, x in row.items()}
        after = run_joint(p, before, allowed)
        row = {n: None if x is None else x + after[n] - before[n] for n, x in row.items()}
    row = p.finish(row)
    return row, p.mean_of_means(row)


def adaptive(p: Plain, row: Row) -> tuple[Row, Tensor]:
    for n in range(p.depth("strategy.layers")) if any(x is not None for x in row.values()) else []:
        key, (x, owner) = f"strategy.layers.{n}", joined(row)

        def mix(y: Tensor, key: str = key, owner: list[str] = owner, row: Row = row) -> Tensor:
            inside, new = parted(y, owner, row), []
            reads = {
                name: p.context_read(y, part, f"{key}.read.{name}") for name, part in inside.items() if part is not None
            }
            for i in range(len(y)):
                state = p.linear(y[i], f"{key}.state")
                energy = {
                    m: p.linear(torch.tanh(state + p.linear(c[i], f"{key}.seen.{m}")), f"{key}.score").exp()
                    for m, c in reads.items()
                }
                total = sum(energy.values())
                new.append(sum(energy[m] / total * c[i] for m, c in reads.items()))
            return torch.stack(new)

        x = p.residual(x, mix, f"{key}.norm")
        x = p.residual(x, lambda y, key=key: p.mlp(y, f"{key}.mlp"), f"{key}.mlp_norm")
        row = parted(x, owner, row)
    row = p.finish(row)
    return row, p.mean_of_means(row)


def cross(p: Plain, row: Row) -> tuple[Row, Tensor]:
    chosen = p.model.config["directions"] or [[s, t] for s in NAMES for t in NAMES if s != t]
    after: Row = {}
    for target, x in row.items():
        if x is None:
            after[target] = None
            continue
        reads = []
        for source, context in row.items():
            if [source, target] not in chosen or context is None:
                continue
            z, base = x, f"{source}.{target}"
            for n in range(p.depth(f"strategy.layers.{base}")):
                z = p.cross_layer(z, p.end(context, f"strategy.source_norm.{base}"), f"strategy.layers.{base}.{n}")
            reads.append(z)
        after[target] = p.layer(sum(reads) / len(reads) if reads else x, f"strategy.after.{target}.0")
    after = p.finish(after)
    return after, p.mean_of_means(after)


def co(p: Plain, row: Row) -> tuple[Row, Tensor]:
    row = dict(row)
    for n in range(p.depth("strategy.co_layers")):
        reads: dict[str, list[Tensor]] = {name: [] for name in NAMES}
        for a, b in combinations(NAMES, 2):
            if row[a] is not None and row[b] is not None:
                for name, new in zip(
                    (a, b), p.co_layer(row[a], row[b], f"strategy.co_layers.{n}.{a}.{b}"), strict=True
                ):
                    reads[name].append(new)
        for name, x in row.items():
            if x is not None:
                x = sum(reads[name]) / len(reads[name]) if reads[name] else x
                row[name] = p.layer(x, f"strategy.layers.{name}.{n}")
    row = p.finish(row)
    return row, p.mean_of_means(row)


def pairwise(p: Plain, row: Row) -> tuple[Row, Tensor]:
    vectors: dict[str, Tensor | None] = {}
    reads: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for a, b in combinations(NAMES, 2):
        x, y = row[a], row[b]
        if x is not None and y is not None:
            for n in range(p.depth(f"strategy.layers.{a}.{b}")):
                x, y = p.co_layer(x, y, f"strategy.layers.{a}.{b}.{n}")
        sides = {name: p.end(z, f"strategy.end.{name}") for name, z in ((a, x), (b, y)) if z is not None}
        means = [side.mean(dim=0) for side in sides.values()]
        vectors[f"{a}+{b}"] = sum(means) / len(means) if means else None
        if len(sides) == 2:
            for name, side in sides.items():
                reads[name].append(side)
    alone = p.finish(row)
    states = {n: sum(reads[n]) / len(reads[n]) if reads[n] else alone[n] for n in row}
    return states, p.combine(vectors)


FORMULAS = {
    "early": early, "late": late, "hybrid": hybrid, "cross": cross, "co": co, "pairwise": pairwise,
    "adaptive": adaptive, "bottleneck": bottleneck, "graph": graph,
}  # fmt: skip
CASES: list[dict[str, Any]] = [{"fusion": name} for name in FORMULAS] + [
    {"fusion": "adaptive", "norm_first": False},
    {"fusion": "co", "norm_first": False, "shared": True},
    {"fusion": "cross", "directions": [["text", "image"], ["audio", "image"], ["image", "text"]]},
    {"fusion": "graph", "nodes": "modalities"},
    {"fusion": "graph", "edges": [["text", "image"], ["audio", "audio"]]},
    {"fusion": "hybrid", "fusion_depth": 1, "norm_first": False, "combine": "gated"},
    {"fusion": "pairwise", "combine": "attention_pool", "fusion_depth": 3},
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_equals_the_formula_in_loops(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    settings = {"dim": DIM, "num_heads": HEADS, "num_layers": 4, "hidden_dim": 5, "max_length": 5, "num_classes": 3}
    order = ("text", "audio", "image")
    model = MultimodalTransformer(order, WIDTHS, **{**settings, **options}, dtype=torch.float64).eval()
    for parameter in model.parameters():  # biases, norms and tables too
        torch.nn.init.normal_(parameter, std=0.4)
    present = torch.cartesian_prod(*[torch.tensor([True, False])] * 3)
    size = {n: (len(present), LENGTHS[n]) for n in order}
    tokens = {n: torch.randn(*size[n], WIDTHS[n], dtype=torch.float64).requires_grad_() for n in order}
    mask = {n: torch.rand(size[n]) < 0.7 for n in order}
    for one in mask.values():
        one[:, 0] |= ~one.any(dim=1)
    out = model(tokens, mask, present)
    results = [out.logits, *(out[f"{n}_tokens"] for n in NAMES)]

    plain = Plain(model)
    expected = [torch.zeros_like(value) for value in results]
    for b in range(len(present)):
        row: Row = {}
        for name in NAMES:
            places = mask[name][b].nonzero()[:, 0]
            here = bool(present[b, order.index(name)])
            row[name] = plain.towers(plain.embed(tokens[name][b, places], places, name), name) if here else None
        states, pooled = FORMULAS[options["fusion"]](plain, row)
        expected[0][b] = plain.linear(pooled, "heads.classification.layers.1")
        for value, name in zip(expected[1:], NAMES, strict=True):
            if states[name] is not None:
                value[b, mask[name][b]] = states[name]
    for value, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-9, rtol=1e-9)

    leaves = [*tokens.values(), *model.parameters()]
    losses = [sum((v * torch.linspace(-1, 2, v.numel()).view_as(v)).sum() for v in vs) for vs in (results, expected)]
    pairs = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses]
    for got, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if wanted is None else wanted, atol=1e-8, rtol=1e-8)
