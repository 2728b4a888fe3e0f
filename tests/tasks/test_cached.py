"""Frozen parts compute once, and the numbers are those without a cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from polyfuse.tasks.batch import Collator, TaskData, answer_vocabulary
from polyfuse.tasks.cached import FrozenEncoder, frozen_features
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.sources import load_source
from polyfuse.tasks.words import WordTokenizer
from polyfuse.train.finetune import TASKS, FineTune, fine_tune
from polyfuse.train.task_loop import LoopSettings

SCENES = {"train": 23, "validation": 7, "test": 5, "side": 32}
SOURCES = {
    "vqa": "scene_questions",
    "captioning": "scene_captions",
    "retrieval": "scene_captions",
    "grounding": "scene_phrases",
}


def rows_and_words(task: str, **more: object) -> tuple[TaskData, WordTokenizer]:
    data = load_source(SOURCES[task], **SCENES, **more)
    return data, WordTokenizer.train(data.texts, 200)


def new_model(words: WordTokenizer, **options: object) -> TaskModel:
    torch.manual_seed(0)
    sizes = {"dim": 8, "side": 32, "patch": 8, "max_length": 40, **options}
    return TaskModel(vocab_size=len(words), backbone_options={"num_layers": 1, "num_heads": 2}, **sizes)


@pytest.mark.parametrize("task", sorted(SOURCES))
@pytest.mark.parametrize("freeze", [("stem",), ("stem", "backbone")])
def test_a_run_on_cached_features_is_the_run_without(task: str, freeze: tuple[str, ...]) -> None:
    data, words = rows_and_words(task)
    found = {}
    for cache in (True, False):
        model = new_model(words)
        options = FineTune(task, LoopSettings(steps=7, batch_size=11, evaluations=2), freeze=freeze, cache=cache)
        result = fine_tune(model, data, words, options)
        found[cache] = (result, {name: value.clone() for name, value in model.state_dict().items()})
    (one, weights), (other, plain) = found[True], found[False]
    for mine, theirs in zip(one.fit.history, other.fit.history, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        assert mine["validation"] == pytest.approx(theirs["validation"], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(weights, plain, rtol=1e-3, atol=1e-5)
    assert one.judgements["test"].figures == pytest.approx(
        other.judgements["test"].figures, rel=1e-4, abs=1e-5, nan_ok=True
    )
    assert list(weights) == list(plain)  # the stem is back in its place


def test_the_stem_runs_once_per_picture_and_the_encoder_once_per_row() -> None:
    data, words = rows_and_words("vqa")
    model = new_model(words).attach("answer", num_answers=3).eval().requires_grad_(False)
    model.backbone.requires_grad_(True)
    calls = []
    model.stem.register_forward_hook(lambda module, args, out: calls.append(len(out.states)))
    with frozen_features(model, data) as seen:
        assert calls == [35]
        collate = Collator(seen, words, max_length=40)
        for _ in range(3):
            model(collate(np.arange(9)))
        assert calls == [35]
    keep = FrozenEncoder(model, wide=True)
    batch = Collator(data, words, max_length=40)(np.arange(9))
    for _ in range(2):
        keep.encode(batch)
    assert keep.computed == 9
    keep.encode(batch.without("text"))  # another set of modalities is another row
    assert keep.computed == 18


def test_what_the_cache_gives_is_what_the_model_gives() -> None:
    data, words = rows_and_words("grounding")
    holes = replace(data, image_of=np.where(np.arange(len(data)) % 5 == 0, -1, data.image_of))
    model = new_model(words).attach("box", "contrast").eval()
    collate = Collator(holes, words, max_length=40)
    batch = collate(np.arange(len(holes)))
    with torch.no_grad():
        plain = model(batch)
    model.requires_grad_(False)
    for part in ("stem", "backbone"):
        model.requires_grad_(False)
        model.backbone.requires_grad_(part == "stem")
        with frozen_features(model, holes) as seen, torch.no_grad():
            again = Collator(seen, words, max_length=40)(np.arange(len(holes)))
            cached = model(again)
        for name in ("box", "box_scores", "image_embedding", "text_embedding", "pooled"):
            torch.testing.assert_close(cached.info[name], plain.info[name], rtol=1e-4, atol=1e-5)


def test_regions_are_cached_alike() -> None:
    data, words = rows_and_words("grounding", regions=True, pixels=False)
    assert data.regions is not None
    model = new_model(words, region_dim=data.regions.features.shape[2]).attach("box").eval()
    collate = Collator(data, words, max_length=40)
    with torch.no_grad():
        plain = model(collate(np.arange(13))).info["box"]
    model.stem.requires_grad_(False)
    with frozen_features(model, data) as seen, torch.no_grad():
        assert seen.regions is not None
        assert seen.regions.features.shape[2] == 8
        cached = model(Collator(seen, words, max_length=40)(np.arange(13))).info["box"]
    torch.testing.assert_close(cached, plain)


def test_nothing_is_kept_that_does_not_fit_or_trains() -> None:
    data, words = rows_and_words("vqa")
    model = new_model(words).attach("answer", num_answers=3)
    with frozen_features(model, data) as seen:
        assert seen is data
    model.stem.requires_grad_(False)
    with frozen_features(model, data, most_bytes=99) as seen:
        assert seen is data
    with frozen_features(model, data) as seen, pytest.raises(ValueError, match="cannot hide patches"):
        model.stem(Collator(seen, words)(np.arange(3)), torch.zeros(3, 16, dtype=torch.bool))


def test_every_task_has_its_judge_and_objective() -> None:
    from polyfuse.tasks.judge import JUDGES
    from polyfuse.tasks.objectives import OBJECTIVES

    for aim in TASKS.values():
        assert aim.judge in JUDGES
        assert set(aim.objectives) <= set(OBJECTIVES)
        assert aim.head in TaskModel.HEADS
    assert answer_vocabulary(rows_and_words("vqa")[0])
