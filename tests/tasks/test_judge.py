"""Judges: figures equal plain loops over what the model says, baselines are what they are named."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from polyfuse.evaluate.grounding import iou
from polyfuse.tasks.batch import Collator, TaskData, answer_vocabulary
from polyfuse.tasks.judge import JUDGES, chance_recall, commonest_answer, judge, references_of
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.sources import load_source
from polyfuse.tasks.words import WordTokenizer

SCENES = {"train": 11, "validation": 3, "test": 7, "side": 16 * 2}


def fitted(name: str, head: str, **options: object) -> tuple[TaskData, WordTokenizer, TaskModel, tuple[str, ...]]:
    data = load_source(name, **SCENES)
    words = WordTokenizer.train(data.texts, 200)
    torch.manual_seed(0)
    model = TaskModel(
        vocab_size=len(words),
        dim=8,
        side=32,
        patch=8,
        max_length=40,
        backbone_options={"num_layers": 1, "num_heads": 2},
    )
    answers = answer_vocabulary(data) if data.answers else ()
    model.attach(head, **({"num_answers": len(answers)} if head == "answer" else {}))
    return data, words, model.eval(), answers


def test_accuracy_equals_a_plain_loop_and_single_modalities_withhold_the_other() -> None:
    data, words, model, answers = fitted("scene_questions", "answer")
    found = judge(model, data, words, task="answers", answers=answers, max_length=40, batch_size=5)
    collate = Collator(data, words, max_length=40)
    right = {"accuracy": 0, "text_only": 0, "image_only": 0}
    rows = data.rows("test")
    for row in rows:
        batch = collate(np.array([row]))
        for name, seen in (
            ("accuracy", batch),
            ("text_only", batch.without("image")),
            ("image_only", batch.without("text")),
        ):
            with torch.no_grad():
                best = answers[int(model(seen, tasks=("answer",)).answer_logits.argmax())]
            right[name] += data.answers[row] == best
    for name, count in right.items():
        assert found.figures[name] == pytest.approx(count / len(rows))
    common = commonest_answer(data)
    assert found.figures["commonest"] == pytest.approx(np.mean([data.answers[row] == common for row in rows]))
    assert found.by_kind[0]["accuracy"] == found.figures["accuracy"]
    assert found.predictions["row"] == rows.tolist()
    assert found.predictions["score"] == [
        float(said == wanted)
        for said, wanted in zip(found.predictions["predicted"], found.predictions["answer"], strict=True)
    ]


def test_votes_score_softly_and_an_answer_out_of_reach_is_told() -> None:
    data, words, model, answers = fitted("scene_questions", "answer")
    votes = [{answers[0]: 0.3, answers[1]: 0.9}] * (len(data) - 1) + [{"never said": 1.0}]
    voted = replace(data, votes=votes)
    found = judge(model, voted, words, task="answers", answers=answers, max_length=40)
    credit = {answers[0]: 0.3, answers[1]: 0.9}
    wanted = [credit.get(said, 0.0) for said in found.predictions["predicted"]]
    wanted[-1] = 0.0
    assert found.figures["accuracy"] == pytest.approx(np.mean(wanted))
    n = len(voted.rows("test"))
    assert found.figures["reachable"] == pytest.approx(0.9 * (n - 1) / n)


def test_values_stand_in_their_own_unit() -> None:
    data, words, model, _ = fitted("scene_questions", "value")
    values = np.linspace(10, 30, len(data)).astype(np.float32)
    values[data.rows("test")[0]] = np.nan
    numbered = replace(data, values=values)
    found = judge(model, numbered, words, task="values", max_length=40, shift=(20.0, 5.0))
    rows = data.rows("test")[1:]
    collate = Collator(data, words, max_length=40)
    with torch.no_grad():
        said = np.array([float(model(collate(np.array([row])), tasks=("value",)).value) * 5 + 20 for row in rows])
    assert found.figures["mae"] == pytest.approx(np.abs(said - values[rows]).mean(), rel=1e-5)
    assert found.figures["rmse"] == pytest.approx(math.sqrt(np.square(said - values[rows]).mean()), rel=1e-5)
    train = values[data.rows("train")].mean()
    assert found.figures["mean_mae"] == pytest.approx(np.abs(train - values[rows]).mean(), rel=1e-5)
    assert found.predictions["row"] == rows.tolist()


def test_captions_come_once_per_picture_with_all_its_references() -> None:
    data, words, model, _ = fitted("scene_captions", "caption")
    twice = replace(data, references=None).take(np.repeat(np.arange(len(data)), 2))
    texts = list(twice.texts)
    texts[1::2] = [f"again {text}" for text in texts[1::2]]
    twice = replace(twice, texts=texts)
    found = judge(model, twice, words, task="captioning", max_length=40, length=5)
    assert found.predictions["picture"] == sorted(set(twice.image_of[twice.rows("test")].tolist()))
    assert all(len(known) == 2 for known in found.predictions["references"])
    assert {"bleu_4", "rouge_l", "cider_d", "nll", "human_nll", "shuffled_cider_d"} <= set(found.figures)
    beams = judge(model, twice, words, task="captioning", max_length=40, length=5, beams=3)
    assert len(beams.predictions["caption"]) == 7


def test_perfect_captions_score_above_shuffled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    data, words, model, _ = fitted("scene_captions", "caption")
    known = references_of(data, data.rows("test"))
    monkeypatch.setattr(
        "polyfuse.tasks.judge.write_captions", lambda exam, rows: [known[int(data.image_of[row])][0] for row in rows]
    )
    figures = judge(model, data, words, task="captioning").figures
    assert figures["bleu_4"] == pytest.approx(1.0)
    assert figures["cider_d"] > 2 * figures["shuffled_cider_d"]
    assert figures["nll"] == pytest.approx(figures["human_nll"])


def test_recall_finds_what_belongs_by_id_and_chance_is_that_of_a_random_order() -> None:
    data, words, model, _ = fitted("scene_captions", "contrast")
    found = judge(model, data, words, task="retrieval", max_length=40)
    rows = data.rows("test")
    batch = Collator(data, words, max_length=40)(rows)
    with torch.no_grad():
        scores = model.embed_text(batch) @ model.embed_image(batch).t()
    ranks = [1 + int((scores[i] > scores[i, i]).sum()) for i in range(len(rows))]
    assert found.predictions["rank"] == ranks
    assert found.figures["text_to_image_R@1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert found.figures["chance_text_to_image_R@5"] == pytest.approx(5 / 7)
    ids, gallery = torch.tensor([0, 1]), torch.tensor([0, 0, 1, 2])
    hits = [[gallery[list(order[:2])].eq(one).any().item() for order in permutations(range(4))] for one in ids]
    assert chance_recall(ids, gallery, 2) == pytest.approx(np.mean(hits))


def test_boxes_equal_a_plain_loop() -> None:
    data, words, model, _ = fitted("scene_phrases", "box")
    found = judge(model, data, words, task="grounding", max_length=40, batch_size=3)
    rows, collate = data.rows("test"), Collator(data, words, max_length=40)
    with torch.no_grad():
        said = [model(collate(np.array([row])), tasks=("box",)).info["box"][0].numpy() for row in rows]
    overlap = [float(iou(box, data.boxes[row])) for box, row in zip(said, rows, strict=True)]
    assert found.figures["mean_iou"] == pytest.approx(np.mean(overlap), abs=1e-5)
    assert found.figures["accuracy"] == pytest.approx(np.mean(np.array(overlap) >= 0.5))
    assert {line["kind"] for line in found.by_kind} == {"all", "attribute", "relation"}


def test_a_modality_that_the_model_never_had_is_withheld() -> None:
    data, words, model, answers = fitted("scene_questions", "answer")
    hidden = judge(model, data, words, task="answers", answers=answers, max_length=40, hide="image")
    whole = judge(model, data, words, task="answers", answers=answers, max_length=40)
    assert hidden.predictions["predicted"] == whole.predictions["text_only"]
    assert "text_only" not in hidden.figures


@pytest.mark.parametrize("task", sorted(JUDGES))
def test_what_is_lacking_is_named(task: str) -> None:
    data, words, model, _ = fitted("scene_questions", "value")
    bare = replace(data, answers=None, values=None, boxes=None, image_of=np.full(len(data), -1))
    with pytest.raises(ValueError, match="has no"):
        judge(model, bare, words, task=task)
    with pytest.raises(ValueError, match="no rows in part"):
        judge(model, data.take(data.rows("train")), words, task=task)


def test_a_judged_model_is_left_as_it_was() -> None:
    data, words, model, answers = fitted("scene_questions", "answer")
    model.train()
    judge(model, data, words, task="answers", answers=answers, max_length=40)
    assert model.training
