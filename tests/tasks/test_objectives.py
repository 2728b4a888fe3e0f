"""Every backbone under every objective: finite losses, absent content without a trace, every trained part trains."""

import math

import numpy as np
import pytest
import torch

from polyfuse.tasks.backbones import BACKBONES
from polyfuse.tasks.batch import Collator, Regions, TaskBatch, TaskData, answer_vocabulary
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import OBJECTIVES, Objective
from polyfuse.tasks.words import WordTokenizer

SIDE, PATCH, ROWS, F, CLASSES = 16, 8, 7, 11, 5
TEXTS = ["a red circle", "a blue square", "two green stars", "", "a red star", "a blue circle", "no cat"]
OPTIONS = {"masked_classes": {"num_classes": CLASSES}, "masked_classes_kl": {"num_classes": CLASSES}}
REGIONS_ONLY = {"masked_features", "masked_classes", "masked_classes_kl"}
EYES = {"clip", "mmbert", "mmbt", "mobileclip"}  # look at pixels themselves
SIZES = {"mobileclip": {"side": 64, "patch": 32, "dim": 64}, "mmbt": {"side": 32, "patch": 16}, "mmbert": {"side": 32}}
BOTH = sorted((b, o) for b in BACKBONES for o in OBJECTIVES if b not in EYES or o not in REGIONS_ONLY)
PIXELS = [(b, o) for b, o in BOTH if o not in REGIONS_ONLY and (b, o) != ("mmbert", "masked_patches")]


def task_data(*, regions: bool, side: int = SIDE) -> TaskData:
    rng = np.random.default_rng(3)
    image_of = np.arange(ROWS)
    image_of[5] = -1
    classes = rng.random((ROWS, 3, CLASSES), dtype=np.float32)
    found = Regions(
        rng.random((ROWS, 3, F), dtype=np.float32),
        np.tile(np.array([0.1, 0.2, 0.6, 0.9], dtype=np.float32), (ROWS, 3, 1)),
        np.array([[True, True, False]] * ROWS),
        classes / classes.sum(axis=-1, keepdims=True),
    )
    boxes = np.tile(np.array([0.25, 0.0, 0.75, 0.5], dtype=np.float32), (ROWS, 1))
    return TaskData(
        "toy",
        None if regions else rng.integers(0, 256, (ROWS, side, side, 3), dtype=np.uint8),
        image_of,
        TEXTS,
        np.zeros(ROWS, dtype=np.int8),
        np.arange(ROWS),
        answers=["yes", "no", "yes", "no", "yes", "no", "maybe"],
        boxes=boxes,
        values=np.array([0.5, -1.0, 2.0, np.nan, 0.0, 1.0, 1.5], dtype=np.float32),
        regions=found if regions else None,
    )


def build(backbone: str, objective: str, *, regions: bool) -> tuple[TaskModel, Objective, TaskBatch]:
    torch.manual_seed(0)
    sizes = {"side": SIDE, "patch": PATCH, "dim": 16, **SIZES.get(backbone, {})}
    data = task_data(regions=regions, side=sizes["side"])
    words = WordTokenizer.train(TEXTS, vocab_size=60)
    answers = answer_vocabulary(data)
    collate = Collator(data, words, max_length=8, answers=answers, captions=objective == "caption")
    model = TaskModel(
        vocab_size=len(words),
        backbone=backbone,
        backbone_options={"num_layers": 2, "num_heads": 2, **({} if "clip" in backbone else {"dropout": 0.0})},
        max_length=8,
        region_dim=F if regions else None,
        embed_dim=6,
        **sizes,
    )
    options = {"num_answers": len(answers)} if objective == "answer" else OPTIONS.get(objective, {})
    made = OBJECTIVES[objective](model, **options)
    return model, made, collate(np.arange(ROWS))


def tokens_of(model: TaskModel, batch: TaskBatch) -> int:
    return 3 if batch.regions is not None else (model.config["side"] // model.config["patch"]) ** 2


@pytest.mark.parametrize(("backbone", "objective"), [pair for pair in BOTH if pair != ("mmbert", "masked_patches")])
def test_losses_are_finite_and_train_their_heads(backbone: str, objective: str) -> None:
    regions = objective in REGIONS_ONLY
    model, made, batch = build(backbone, objective, regions=regions)
    draws = made.draws(batch, tokens_of(model, batch), 0, 1)
    loss, figures = made.loss(model, batch, draws)
    loss.backward()
    assert loss.isfinite()
    assert loss > 0
    assert all(figure.isfinite().all() and not figure.requires_grad for figure in figures.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for head in made.HEADS:
        if (head, objective) in (("contrast", "hard_match"),):
            continue  # read without a gradient
        assert any(p.grad is not None and p.grad.any() for p in model.heads[head].parameters()), head
    parts = (model.backbone, model.stem) if backbone in EYES else (model.backbone,)
    assert any(p.grad is not None and p.grad.any() for part in parts for p in part.parameters())


@pytest.mark.parametrize(("backbone", "objective"), PIXELS)
def test_absent_pictures_and_texts_leave_no_trace(backbone: str, objective: str) -> None:
    model, made, batch = build(backbone, objective, regions=False)
    model.eval()  # heads drop out
    draws = made.draws(batch, tokens_of(model, batch), 0, 1)
    loss, _ = made.loss(model, batch, draws)
    assert batch.image is not None
    batch.image[5] = math.nan
    batch.text[3] = 9
    again, _ = made.loss(model, batch, draws)
    assert torch.equal(loss, again)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_the_picture_changes_the_answer(backbone: str) -> None:
    model, _, batch = build(backbone, "answer", regions=False)
    model.eval()
    with torch.no_grad():
        seen = model(batch, tasks=("answer",)).answer_logits
        blind = model(batch.without("image"), tasks=("answer",)).answer_logits
        deaf = model(batch.without("text"), tasks=("answer",)).answer_logits
    assert not torch.allclose(seen[0], blind[0])
    assert not torch.allclose(seen[0], deaf[0])
    torch.testing.assert_close(seen[5], blind[5])  # had no picture
    torch.testing.assert_close(seen[3], deaf[3])  # had no text


def test_draws_belong_to_rows() -> None:
    _, made, batch = build("multimodal", "masked_words", regions=False)
    whole = made.draws(batch, 4, 0, 3)["words"]
    part = TaskBatch(batch.ids[2:], batch.keys[2:], batch.text[2:], batch.text_mask[2:], batch.present[2:])
    assert torch.equal(made.draws(part, 4, 0, 3)["words"], whole[2:])


def test_hidden_patches_do_not_leak() -> None:
    model, made, batch = build("multimodal", "masked_patches", regions=False)
    draws = made.draws(batch, 4, 0, 1)
    hide = draws["patches"].argsort(dim=1).argsort(dim=1) < 2
    model.eval()
    with torch.no_grad():
        first = model.encode(batch, hide=hide).states.image
        assert batch.image is not None
        cells = hide.view(-1, 1, 2, 2).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        batch.image[cells.expand_as(batch.image)] = 0.123
        torch.testing.assert_close(model.encode(batch, hide=hide).states.image, first)


@pytest.mark.parametrize("backbone", sorted({"uniter"} | EYES))
def test_a_saved_model_answers_the_same(backbone: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, _, batch = build(backbone, "grounding", regions=False)
    model.eval().save_pretrained(tmp_path)
    again = TaskModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(batch, tasks=("box",)).box, model(batch, tasks=("box",)).box)
