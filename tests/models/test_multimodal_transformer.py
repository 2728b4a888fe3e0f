"""MultimodalTransformer: what it refuses, builders, heads, special cases, and that every strategy learns."""

import inspect
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers import capture_attention
from polyfuse.models import MODELS
from polyfuse.models.multimodal_transformer import STRATEGIES, MultimodalTransformer

WIDTHS = {"image": 5, "text": 7}
PAIRED = ("cross", "co", "pairwise")


def make(fusion: str = "early", names: tuple[str, ...] = ("image", "text"), **kwargs: Any) -> MultimodalTransformer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 4, "dropout": 0.0}
    return MultimodalTransformer(names, 5, fusion=fusion, **{**settings, **kwargs})


def tokens(batch: int = 3, names: tuple[str, ...] = ("image", "text")) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(batch, 2 + m, 5, generator=generator) for m, name in enumerate(names)}


def test_every_strategy_has_the_same_inputs_and_outputs() -> None:
    shapes = set()
    for fusion in STRATEGIES:
        out = make(fusion, num_classes=3)(tokens())
        required = ("pooled", "empty", "image_tokens", "text_tokens", "classification_logits")
        shapes.add((tuple(out.logits.shape), *(tuple(out[name].shape) for name in required)))
    assert shapes == {((3, 3), (3, 8), (3,), (3, 2, 8), (3, 3, 8), (3, 3))}


def test_swapping_strategies_takes_the_same_arguments() -> None:
    settings = {
        "combine": "gated",
        "shared": True,
        "bottlenecks": 2,
        "nodes": "modalities",
        "edges": [("image", "text")],
    }
    for fusion in STRATEGIES:
        assert make(fusion, **settings)(tokens()).pooled.isfinite().all()


@pytest.mark.parametrize("fusion", sorted(set(STRATEGIES) - set(PAIRED)))
def test_one_modality_is_enough_where_no_pair_is_needed(fusion: str) -> None:
    assert make(fusion, ("image",))(tokens()).pooled.isfinite().all()


@pytest.mark.parametrize("fusion", PAIRED)
def test_one_modality_makes_no_pair(fusion: str) -> None:
    with pytest.raises(ValueError, match=rf"fusion='{fusion}' .* at least 2 modalities, got \('image',\)"):
        make(fusion, ("image",))


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_number_of_pairs(number: int) -> None:
    names = tuple("abcde"[:number])
    count = number * (number - 1) // 2
    pairwise: Any = make("pairwise", names).strategy
    assert len(pairwise.pairs) == len(pairwise.combine.modalities) == count
    cross: Any = make("cross", names).strategy
    assert cross.directions == list(permutations(names, 2))
    co: Any = make("co", names).strategy
    assert len(co.pairs) == count


def test_late_never_mixes_tokens_and_early_always_does() -> None:
    x = tokens()
    changed = {**x, "text": x["text"] + 1.0}
    for fusion in STRATEGIES:
        model = make(fusion).eval()
        moved = not torch.equal(model(x)["image_tokens"], model(changed)["image_tokens"])
        assert moved == (fusion != "late"), fusion


def test_directions_say_who_reads_whom() -> None:
    x = tokens()
    changed = {**x, "text": x["text"] + 1.0}
    for source, target in permutations(("image", "text")):
        model = make("cross", directions=[(source, target)]).eval()
        moved = not torch.equal(model(x)["image_tokens"], model(changed)["image_tokens"])
        assert moved == (target == "image")


def what_enters(model: MultimodalTransformer, layer: nn.Module, x: dict[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """The arguments of one layer's call."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    model(x)
    handle.remove()
    return calls[0]


def test_cross_reads_the_tower_at_every_depth() -> None:
    model, x = make("cross").eval(), tokens()
    strategy: Any = model.strategy
    tower = strategy.source_norm["text"]["image"](model.towers(_embedded(model, x)).states[1])
    for layer in strategy.layers["text"]["image"]:
        assert torch.equal(what_enters(model, layer, x)[1]["context"], tower)


def test_co_reads_the_stream_as_it_is_by_then() -> None:
    model, x = make("co").eval(), tokens()
    changed = {**x, "text": x["text"] + 1.0}
    for depth, layers in enumerate(model.strategy.co_layers):  # type: ignore[arg-type]
        image = [what_enters(model, layers["image"]["text"], given)[0][0] for given in (x, changed)]
        assert torch.equal(*image) == (depth == 0)


def _embedded(model: MultimodalTransformer, x: dict[str, Tensor]) -> Any:
    from polyfuse.models.multimodal_streams import read_tokens

    streams = read_tokens(x, None, None, model.modalities, model.input_dims)
    return streams._replace(states=model.embedding(streams.states))


def test_bottleneck_is_the_only_way() -> None:
    """Image tokens see text from the second bottleneck layer on, not in the first."""
    model = make("bottleneck", num_layers=3, fusion_depth=0).eval()
    x = tokens()
    changed = {**x, "text": x["text"] + 1.0}
    strategy: Any = model.strategy
    seen: list[list[Tensor]] = [[], []]
    handles = [
        layer.register_forward_hook(lambda _, __, out, depth=depth: seen[depth].append(out[:, :2].detach()))
        for depth, layer in enumerate(list(strategy.layers["image"].children())[:2])
    ]
    for given in (x, changed):
        model(given)
    for handle in handles:
        handle.remove()
    assert torch.equal(*seen[0])
    assert not torch.equal(*seen[1])


def test_edges_isolate() -> None:
    names = ("a", "b", "c")
    x = tokens(names=names)
    for nodes in ("tokens", "modalities"):
        model = make("graph", names, edges=[("a", "b")], nodes=nodes).eval()
        changed = {**x, "c": x["c"] + 1.0}
        assert torch.equal(model(x)["a_tokens"], model(changed)["a_tokens"])
        changed = {**x, "b": x["b"] + 1.0}
        assert not torch.equal(model(x)["a_tokens"], model(changed)["a_tokens"])
        assert torch.equal(model(x)["c_tokens"], model(changed)["c_tokens"])


def test_hybrid_is_the_sum_of_both_paths() -> None:
    model = make("hybrid").eval()
    strategy: Any = model.strategy
    kept: list[Tensor] = []
    strategy.combine.register_forward_hook(lambda _, __, out: kept.append(out.fused))
    out = model(tokens())
    early = torch.stack([out["image_tokens"].mean(dim=1), out["text_tokens"].mean(dim=1)]).mean(dim=0)
    torch.testing.assert_close(out.pooled, early + kept[0])


def test_gates_follow_the_context_per_token() -> None:
    out = make("adaptive").eval()(tokens(), None, torch.tensor([[True, True], [True, False], [False, False]]))
    gates = out["text_gates"]
    assert gates.shape == (3, 3, 2)
    torch.testing.assert_close(gates[0].sum(dim=-1), torch.ones(3))
    assert gates[0, :, 0].std() > 1e-4  # one weight per token, not one per row
    assert torch.equal(out["image_gates"][1], torch.tensor([[1.0, 0.0]] * 2))
    assert not out["image_gates"][2].any()


def test_pair_with_an_absent_member_is_the_others_own_tokens() -> None:
    names = ("a", "b")
    model = make("pairwise", names, combine="late", combine_options={"hidden": 0}).eval()
    strategy: Any = model.strategy
    kept: list[Tensor] = []
    strategy.combine.register_forward_pre_hook(lambda _, args: kept.append(args[0]["a+b"]))
    x = tokens(names=names)
    out = model(x, None, torch.tensor([[True, False]] * 3))
    own = strategy.end["a"](model.towers(_embedded(model, x)).states[0]).mean(dim=1)
    torch.testing.assert_close(kept[0], own)
    assert not out["b_tokens"].any()


def test_weights_of_pairs_go_to_their_present_members() -> None:
    names = ("c", "a", "b")
    model = make("pairwise", names, combine="attention_pool").eval()
    out = model(
        tokens(names=names), None, torch.tensor([[True, True, True], [False, True, True], [True, False, False]])
    )
    ab, ac, bc = out["pair_weights"].unbind(dim=1)
    wanted = torch.stack([(ac + bc) / 2, (ab + ac) / 2, (ab + bc) / 2], dim=1)[0]
    torch.testing.assert_close(out.weights[0], wanted)
    torch.testing.assert_close(out.weights[1], torch.stack([torch.zeros(()), ab[1] / 2 + ac[1], ab[1] / 2 + bc[1]]))
    torch.testing.assert_close(out.weights[2], torch.tensor([1.0, 0.0, 0.0]))


def test_names_that_would_collide_as_pairs() -> None:
    names = ("a+b", "c", "a", "b+c")
    strategy: Any = make("pairwise", names).strategy
    assert len(set(strategy.pair_names)) == 6


def test_heads_and_tasks() -> None:
    model = make(num_classes=3).attach("multilabel", num_labels=2).attach("regression")
    out = model(tokens())
    assert out.logits is None
    assert out["multilabel_logits"].shape == (3, 2)
    only = model(tokens(), tasks=["classification"])
    assert torch.equal(only.logits, only["classification_logits"])
    assert "regression_logits" not in only.info
    assert model(tokens(), tasks=()).logits is None
    assert make()(tokens()).logits is None
    with pytest.raises(ValueError, match="no head for 'vqa'; it has: classification, multilabel, regression"):
        model.attach("vqa")
    with pytest.raises(ValueError, match=r"\['caption'\]"):
        model(tokens(), tasks=["caption"])


def test_encode_is_forward_without_heads() -> None:
    model = make("co", num_classes=3).eval()
    encoded, out = model.encode(tokens()), model(tokens())
    assert torch.equal(encoded.pooled, out.pooled)
    assert encoded.logits is None


def test_captured_maps_are_the_same_from_outside() -> None:
    model = make("adaptive").eval()
    with capture_attention(model) as maps:
        model(tokens())
    asked = model(tokens(), return_attention=True).attentions
    assert list(maps) == list(asked)
    assert all(torch.equal(maps[name], asked[name]) for name in maps)


def test_positions() -> None:
    model = make(max_length={"text": 4}).eval()
    x = tokens()
    turned = {n: v.flip(1) for n, v in x.items()}
    torch.testing.assert_close(model({**x, "image": turned["image"]}).pooled, model(x).pooled)  # a set of regions
    assert not torch.allclose(model({**x, "text": turned["text"]}).pooled, model(x).pooled)  # an ordered text
    with pytest.raises(ValueError, match="'text' may have at most 2 tokens, got 3"):
        make(max_length=2)(x)
    with pytest.raises(ValueError, match=r"max_length names \['txt'\]"):
        make(max_length={"txt": 4})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": {"image": torch.zeros(3, 2, 5)}}, r"tokens lack 'text', got \['image'\]"),
        ({"tokens": {**tokens(), "text": torch.zeros(3, 5)}}, r"'text' must be .*\(3, 1 or more, 5\), got \(3, 5\)"),
        ({"tokens": {**tokens(), "text": torch.zeros(3, 0, 5)}}, r"'text' must be .* got \(3, 0, 5\)"),
        ({"tokens": {**tokens(), "text": torch.zeros(2, 3, 5)}}, r"'text' must be .* got \(2, 3, 5\)"),
        ({"token_mask": {"txt": torch.ones(3, 3, dtype=torch.bool)}}, r"token_mask names \['txt'\]"),
        ({"token_mask": {"text": torch.ones(3, 3)}}, r"bool of shape \(3, 3\), got torch.float32 \(3, 3\)"),
        ({"token_mask": {"text": torch.ones(3, 2, dtype=torch.bool)}}, r"got torch.bool \(3, 2\)"),
        ({"present": torch.ones(3, 2)}, "present must be bool .* got torch.float32"),
        ({"present": torch.ones(3, 3, dtype=torch.bool)}, r"\(3, 2\), got \(3, 3\)"),
    ],
)
def test_wrong_inputs_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(**{"tokens": tokens(), **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        (
            {"fusion": "co", "fusion_depth": 4},
            "'co' needs 1 or more layers after fusion_depth, got fusion_depth = 4 of",
        ),
        (
            {"fusion": "bottleneck", "num_layers": 2, "fusion_depth": 1},
            "'bottleneck' needs 2 or more .* fusion_depth = 1 of num_layers = 2",
        ),
        ({"fusion": "bottleneck", "bottlenecks": 0}, "bottlenecks must be at least 1, got 0"),
        ({"fusion": "graph", "nodes": "rows"}, "nodes must be 'tokens' or 'modalities', got 'rows'"),
        ({"fusion": "graph", "edges": [("image", "sound")]}, r"edges must be pairs .* got \('image', 'sound'\)"),
        ({"fusion": "graph", "edges": [("image", "text"), ("text", "image")]}, "edges must name .* each once"),
        ({"fusion": "cross", "directions": [("text", "text")]}, r"pairs of different names .* got \('text', 'text'\)"),
        ({"fusion": "cross", "directions": []}, r"directions must name at least one pair and each once, got \[\]"),
        ({"num_heads": 3}, "num_heads must divide the width 8, got 3"),
        ({"activation": "gleu"}, "'gleu'"),
        ({"names": ("a", "a")}, "distinct"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_unknown_names_are_refused_with_a_hint() -> None:
    with pytest.raises(KeyError, match=r"unknown fusion strategy 'erly'; did you mean 'early'\?"):
        make("erly")
    with pytest.raises(KeyError, match=r"unknown fusion 'conct'; did you mean 'concat'\?"):
        make("late", combine="conct")


def test_builders() -> None:
    tiny = MODELS["multimodal_transformer_tiny"](fusion="bottleneck", num_classes=3)
    assert tiny.fusion == "bottleneck"
    assert tiny({"image": torch.zeros(2, 3, 16), "text": torch.zeros(2, 5, 16)}).logits.shape == (2, 3)
    with torch.device("meta"):
        base, chapter = MODELS["multimodal_transformer_base"](), MODELS["mmbert_chapter"]()
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    inputs = (2048 + 1) * 768 + (768 + 1) * 768 + 4 * 768
    assert sum(p.numel() for p in base.parameters()) == 12 * layer + inputs + 4 * 768
    assert chapter.fusion == "co"
    # Two towers of 6; 6 co-attention layers with a feed-forward part per stream and a layer of each stream behind them.
    assert sum(p.numel() for p in chapter.parameters()) == (12 + 12 + 12) * layer + inputs + 512 * 768
    for name in ("multimodal_transformer_tiny", "multimodal_transformer_base", "mmbert_chapter"):
        assert inspect.getdoc(MODELS[name])


def test_chapter_runs_small() -> None:
    model = MODELS["mmbert_chapter"](dim=8, num_heads=2, num_layers=2, input_dim=5, max_length={"text": 6}).eval()
    x = tokens()
    out = model(x)
    assert not torch.equal(out.image_tokens, model({**x, "text": x["text"] + 1}).image_tokens)
    assert out.pooled.shape == (3, 8)


PAGE = (Path(__file__).parents[2] / "docs" / "multimodal-transformer.md").read_text(encoding="utf-8")


def test_the_page_has_the_right_sizes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert [name for name, *_ in rows] == list(STRATEGIES)
    for name, *counts in rows:
        for number, count in zip((2, 3, 5), counts, strict=True):
            with torch.device("meta"):
                build = MODELS["multimodal_transformer_base"]
                model = build(fusion=name, modalities=tuple("abcde")[:number], input_dim=768)
            assert f"{sum(p.numel() for p in model.parameters()):,}" == count


def test_the_page_runs() -> None:
    names: dict[str, Any] = {}
    exec(PAGE.split("```python\n")[1].split("```")[0], names)  # noqa: S102 - our own page
    output = names["output"]
    assert output.logits.shape == (2, 3)
    assert output.text_tokens.shape == (2, 20, 32)
    assert not output.text_tokens[1, 7:].any()


def exclusive_or(rows: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Each sequence hides one bit in one of its tokens, at a random place; the target is whether the bits differ."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (rows, 2), generator=generator)
    x = {}
    for m, name in enumerate(("image", "text")):
        x[name] = 0.3 * torch.randn(rows, 3 + m, 5, generator=generator)
        place = torch.randint(0, 3 + m, (rows,), generator=generator)
        x[name][torch.arange(rows), place, 0] += 2.0 * (2 * bits[:, m] - 1)
    return x, bits.sum(dim=1) % 2


def learnt(fusion: str, present: Tensor | None) -> float:
    """Accuracy on fresh rows after a short training; ``present (1, 2)`` hides a modality from training and test."""
    torch.manual_seed(0)
    model = MultimodalTransformer(
        ("image", "text"), 5, fusion=fusion, dim=16, num_layers=2, fusion_depth=0, num_heads=2, hidden_dim=32,
        num_classes=2, dropout=0.0,
    )  # fmt: skip
    x, target = exclusive_or(256, seed=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        out = model(x, present=None if present is None else present.expand(256, 2))
        nn.functional.cross_entropy(out.logits, target).backward()
        optimiser.step()
    x, target = exclusive_or(512, seed=2)
    with torch.no_grad():
        out = model.eval()(x, present=None if present is None else present.expand(512, 2))
    return float((out.logits.argmax(dim=1) == target).float().mean())


@pytest.fixture(scope="module")
def best_single() -> float:
    """By construction exactly one half is what either modality can tell; measured all the same."""
    return max(learnt("early", torch.tensor([here])) for here in ([True, False], [False, True]))


@pytest.mark.parametrize("fusion", sorted(STRATEGIES))
def test_every_strategy_learns_what_no_single_modality_tells(fusion: str, best_single: float) -> None:
    assert best_single < 0.6
    assert learnt(fusion, None) > max(best_single, 0.5) + 0.25
