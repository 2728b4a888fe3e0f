import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyfuse.errors import UserError
from polyfuse.fusion import FUSIONS
from polyfuse.losses.task import task_loss
from polyfuse.models import ModelOutput
from polyfuse.train.objective import Objective, class_weight

TARGET = torch.tensor([0, 0, 0, 0, 1, 1, 2])


def test_balanced_classes_count_the_same_and_average_one() -> None:
    weight = class_weight("balanced", "classification", TARGET, "abc", 3)
    assert weight is not None
    totals = torch.stack([weight[TARGET][TARGET == c].sum() for c in range(3)])
    torch.testing.assert_close(totals, totals[:1].expand(3))
    torch.testing.assert_close(weight[TARGET].mean(), torch.tensor(1.0))


def test_a_class_without_rows_has_a_finite_weight() -> None:
    weight = class_weight("balanced", "classification", TARGET, "abcd", 4)
    assert weight is not None
    assert weight.isfinite().all()


def test_named_weights_keep_their_ratio() -> None:
    weight = class_weight({"c": 4.0}, "classification", TARGET, "abc", 3)
    assert weight is not None
    torch.testing.assert_close(weight / weight[0], torch.tensor([1.0, 1.0, 4.0]))
    torch.testing.assert_close(weight[TARGET].mean(), torch.tensor(1.0))


def test_labels_are_weighted_by_their_negatives() -> None:
    target = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    balanced = class_weight("balanced", "multilabel", target, "xy", 2)
    torch.testing.assert_close(balanced, torch.tensor([3.0, 1.0]))
    named = class_weight({"y": 2.0}, "multilabel", target, "xy", 2)
    torch.testing.assert_close(named, torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("setting", "task", "message"),
    [
        ({"z": 1.0}, "classification", "names 'z', which is no class; known: a, b, c"),
        ("balanced", "regression", "for classification and multilabel, got task regression"),
    ],
)
def test_weights_that_do_not_fit_are_refused(setting: object, task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_weight(setting, task, TARGET, "abc", 3)


def test_without_weights_the_sum_is_that_of_torch() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss, task = Objective("classification", None, None)(ModelOutput(logits, None, {}), TARGET)
    torch.testing.assert_close(loss, F.cross_entropy(logits, TARGET, reduction="sum"))
    assert torch.equal(task, loss)
    assert loss.requires_grad
    assert not task.requires_grad


def test_the_entropy_loss_of_aecf_reaches_its_pool() -> None:
    torch.manual_seed(0)
    fusion = FUSIONS["aecf"](("a", "b"), 4)
    head = nn.Linear(4, 3)
    fused, weights, info = fusion({"a": torch.randn(7, 4), "b": torch.randn(7, 4)})
    output = ModelOutput(head(fused), weights, info)
    plain, _ = Objective("classification", None, fusion)(output, TARGET)
    loss, task = Objective("classification", None, fusion, entropy_weight=0.5)(output, TARGET)
    own = fusion.masking.entropy_loss(info["entropy"], info["target_entropy"])
    torch.testing.assert_close(loss, plain + 0.5 * 7 * own)
    torch.testing.assert_close(task, task_loss("classification", output.logits, TARGET, reduction="sum").detach())


def test_a_fusion_without_an_entropy_loss_is_refused() -> None:
    with pytest.raises(UserError, match="needs a fusion with an entropy loss, such as aecf, got ConcatFusion"):
        Objective("classification", None, FUSIONS["concat"](("a",), 4), entropy_weight=0.1)
