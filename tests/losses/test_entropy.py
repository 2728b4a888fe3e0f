import math

import pytest
import torch

from polyfuse.layers import CurriculumMasking, FusionPool
from polyfuse.losses.entropy import EntropyRegularizer, entropy_bonus, unimodal_disagreement

PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
ENTROPY = torch.tensor([0.9, 0.3, 0.0, 0.0])


def test_bonus_equals_the_formula() -> None:
    expected = -(2.0 * 0.9 / math.log(3) + 2.0 * 0.3 / math.log(2)) / 4
    assert entropy_bonus(ENTROPY, PRESENT, 2.0).item() == pytest.approx(expected)
    repeated = ENTROPY[:, None].expand(-1, 5)
    assert entropy_bonus(repeated, PRESENT, 2.0).item() == pytest.approx(expected)
    per_row = torch.tensor([1.0, 3.0, 7.0, 7.0])
    expected = -(0.9 / math.log(3) + 3 * 0.3 / math.log(2)) / 4
    assert entropy_bonus(ENTROPY, PRESENT, per_row).item() == pytest.approx(expected)


def test_minimising_the_term_spreads_the_weights() -> None:
    """The sign: a published re-implementation adds the entropy instead and collapses."""
    torch.manual_seed(0)
    pool = FusionPool(8, 3, curriculum_masking=CurriculumMasking(apply_mask=False))
    x = 4 * torch.randn(13, 3, 8)
    regularizer = EntropyRegularizer(1.0)
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.02)
    entropies = []
    for _ in range(30):
        _, info = pool(x, return_info=True)
        loss = regularizer(info["entropy"], torch.ones(13, 3, dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        entropies.append(info["entropy"].mean().item())
    assert entropies[-1] > entropies[0] + 0.1


def test_schedule_follows_the_progress_set_from_outside() -> None:
    regularizer = EntropyRegularizer(0.4, mode="schedule", min_coefficient=0.2)
    for progress, coefficient in ((0.0, 0.2), (0.5, 0.3), (1.0, 0.4), (9.0, 0.4)):
        regularizer.set_progress(progress)
        torch.testing.assert_close(regularizer(ENTROPY, PRESENT), entropy_bonus(ENTROPY, PRESENT, coefficient))
    assert regularizer.state_dict() == {}
    with pytest.raises(ValueError, match="progress must be >= 0, got -1"):
        regularizer.set_progress(-1)


def test_instance_coefficient_follows_the_disagreement_without_gradient() -> None:
    regularizer = EntropyRegularizer(0.4, mode="instance", min_coefficient=0.2)
    disagreement = torch.tensor([0.0, 0.5, 1.0, 2.0], requires_grad=True)
    entropy = ENTROPY.clone().requires_grad_()
    loss = regularizer(entropy, PRESENT, disagreement)
    torch.testing.assert_close(loss, entropy_bonus(ENTROPY, PRESENT, torch.tensor([0.2, 0.3, 0.4, 0.4])))
    loss.backward()
    assert entropy.grad is not None
    assert entropy.grad[:2].all()
    assert disagreement.grad is None
    with pytest.raises(ValueError, match="mode='instance' needs disagreement"):
        regularizer(ENTROPY, PRESENT)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"coefficient": -1.0}, "got 0.0 and -1.0"),
        ({"coefficient": 0.1, "min_coefficient": 0.2}, "got 0.2 and 0.1"),
        ({"mode": "epoch"}, "mode must be one of constant, schedule, instance, got 'epoch'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        EntropyRegularizer(**arguments)  # type: ignore[arg-type]


def test_repr_shows_the_arguments() -> None:
    assert repr(EntropyRegularizer(0.1)) == "EntropyRegularizer(coefficient=0.1, mode=constant, min_coefficient=0.0)"


def test_disagreement_equals_jensen_shannon_in_plain_loops() -> None:
    torch.manual_seed(0)
    probabilities = torch.randn(4, 3, 5, dtype=torch.float64).softmax(-1)
    probabilities[~PRESENT] = math.nan
    found = unimodal_disagreement(probabilities, PRESENT)
    for row in range(4):
        here = probabilities[row, PRESENT[row]]
        if len(here) < 2:
            assert found[row] == 0
            continue
        mixture = here.mean(0)
        divergence = sum((p * (p / mixture).log()).sum() for p in here) / len(here)
        torch.testing.assert_close(found[row], divergence / math.log(len(here)))


def test_disagreement_reaches_its_bounds() -> None:
    here = torch.ones(2, 3, dtype=torch.bool)
    probabilities = torch.stack([torch.eye(3), torch.tensor([0.2, 0.3, 0.5]).expand(3, -1)]).requires_grad_()
    found = unimodal_disagreement(probabilities, here)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]), rtol=0, atol=1e-6)
    assert not found.requires_grad
