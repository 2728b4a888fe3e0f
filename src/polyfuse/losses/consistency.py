"""What a prediction from fewer inputs owes to one from more: distillation, martingale consistency, confidence order.

Every function compares a *richer* prediction (more inputs) with a *poorer* one (some of them lost) row by row.
Shapes: B rows, C logits (regression: mean and log-variance).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.heads import gaussian_parameters


def divergence(task: str, richer: Tensor, poorer: Tensor) -> Tensor:
    """KL(richer || poorer) in nats, per row; labels are averaged within a row, regression compares the two Gaussians.

    Shape:
        richer, poorer: ``(B, C)``; returns ``(B,)``, at least 0.

    Raises:
        ValueError: If the task is unknown or shapes differ.

    Example:
        >>> divergence("classification", torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([0.])
    """
    if richer.shape != poorer.shape:
        raise ValueError(f"both predictions must have one shape, got {tuple(richer.shape)} and {tuple(poorer.shape)}")
    richer, poorer = _at_least_fp32(richer), _at_least_fp32(poorer)
    if task == "classification":
        log_p, log_q = richer.log_softmax(dim=1), poorer.log_softmax(dim=1)
        return (log_p.exp() * (log_p - log_q)).sum(dim=1)
    if task == "multilabel":
        p = richer.sigmoid()
        positive = p * (F.logsigmoid(richer) - F.logsigmoid(poorer))
        negative = (1.0 - p) * (F.logsigmoid(-richer) - F.logsigmoid(-poorer))
        return (positive + negative).mean(dim=1)
    if task == "regression":
        (mean_p, log_p), (mean_q, log_q) = gaussian_parameters(richer), gaussian_parameters(poorer)
        return 0.5 * (log_q - log_p + (log_p.exp() + (mean_p - mean_q).square()) * (-log_q).exp() - 1.0)
    raise ValueError(f"unknown task '{task}'; known: classification, multilabel, regression")


def distillation(task: str, richer: Tensor, poorer: Tensor) -> Tensor:
    """Divergence from a fixed richer prediction, rows weighted by the entropy of that teacher.

    w_i = H(teacher_i) / ln C (labels: ln 2): a row of which the teacher is sure says little beyond its label. Source:
    MMANet, https://arxiv.org/abs/2303.08028 (weights by teacher entropy); in-place distillation of subsets,
    https://arxiv.org/abs/1903.05134. Differs: divided by the largest entropy there is, not by the batch's sum, so that
    a row's weight does not depend on its batch. Regression has no such entropy: all rows weigh 1.

    Shape:
        richer, poorer: ``(B, C)``; returns ``(B,)``. No gradient reaches ``richer``.
    """
    teacher = richer.detach()
    if task == "regression":
        return divergence(task, teacher, poorer)
    largest = math.log(max(teacher.shape[1], 2)) if task == "classification" else math.log(2.0)
    return prediction_entropy(task, teacher) / largest * divergence(task, teacher, poorer)


def martingale_consistency(task: str, richer: Tensor, poorer: Tensor) -> Tensor:
    """KL(stopgrad richer || poorer): its minimiser is p(y | fewer) = E[p(y | more) | fewer], as probability demands.

    This is our reading of the "calibration by entropy consistency" (CEC) that AECF asks for
    (https://arxiv.org/abs/2505.15417): instead of forcing every single row to be less sure with fewer inputs, which an
    exact Bayes predictor violates, it asks for the one identity that exact posteriors obey on average.

    Shape:
        richer, poorer: ``(B, C)``; returns ``(B,)``. No gradient reaches ``richer``.
    """
    return divergence(task, richer.detach(), poorer)


class CEC(nn.Module):
    """``martingale_consistency`` as a module, averaged over rows.

    Args:
        task: "classification", "multilabel" or "regression".

    Example:
        >>> CEC("classification")(torch.zeros(3, 2), torch.zeros(3, 2))
        tensor(0.)
    """

    def __init__(self, task: str = "classification") -> None:
        super().__init__()
        self.task = task

    def forward(self, richer: Tensor, poorer: Tensor) -> Tensor:
        """Scalar mean over the rows of ``(B, C)`` logits."""
        return martingale_consistency(self.task, richer, poorer).mean()


def confidence_hinge(task: str, richer: Tensor, poorer: Tensor, target: Tensor) -> Tensor:
    """Confidence that grows when inputs are lost, per row.

    ReLU(c_poor - c_rich) where the richer prediction is right, ReLU(c_poor - stopgrad c_rich) where both are wrong,
    else 0. Source: CML, https://proceedings.mlr.press/v202/ma23i.html, equation 5, with the two cases of its released
    code. Differs: the hinge is taken per row; the released code takes it of the batch's sum, so that violations cancel.

    Shape:
        richer, poorer: ``(B, C)`` logits of classes; target ``(B,)``; returns ``(B,)``.

    Raises:
        ValueError: If the task is not classification.
    """
    if task != "classification":
        raise ValueError(f"the confidence hinge is for classification, got task '{task}'")
    confidence_rich, guess_rich = _at_least_fp32(richer).softmax(dim=1).max(dim=1)
    confidence_poor, guess_poor = _at_least_fp32(poorer).softmax(dim=1).max(dim=1)
    right = guess_rich == target
    both_wrong = ~right & (guess_poor != target)
    reached = torch.where(right, confidence_rich, confidence_rich.detach())
    return (confidence_poor - reached).relu() * (right | both_wrong)


def mean_monotone(richer_loss: Tensor, poorer_loss: Tensor) -> Tensor:
    """ReLU(mean loss with more inputs - mean loss with fewer): more information must not hurt *on average*.

    The proper-score form of the only monotonicity that exact posteriors have: E[NLL] falls with every input, while
    single rows may go either way.

    Shape:
        richer_loss, poorer_loss: ``(B,)`` losses of the same rows; returns a scalar. No gradient reaches the poorer.
    """
    return (richer_loss.mean() - poorer_loss.detach().mean()).relu()


def proxy_loss(proxies: Tensor, slots: Tensor, hidden: Tensor) -> Tensor:
    """How far proxies are from what they stand for: 1 - cosine, averaged over a row's hidden modalities.

    Source: cross-modal proxy tokens, https://arxiv.org/abs/2501.17823 (a cosine to the true token). No gradient
    reaches ``slots``.

    Shape:
        proxies, slots: ``(B, M, H)``; hidden ``(B, M)`` bool, True where a known input was hidden; returns ``(B,)``, 0
        in rows where none was.
    """
    distance = 1.0 - F.cosine_similarity(_at_least_fp32(proxies), _at_least_fp32(slots.detach()), dim=-1)
    return distance.masked_fill(~hidden, 0.0).sum(dim=1) / hidden.sum(dim=1).clamp(min=1)


def instance_coefficient(
    task: str, logits: Tensor, *, least: float = 0.1, scale: float = 1.0, most: float = 1.0
) -> Tensor:
    """How unsure a row is under random losses of its inputs: a coefficient for its regularisers.

    lambda(x) = least + softplus(scale * mean_c Var_K[p_c]) - softplus(0), clipped to ``most``, from K predictions of
    the row, each with a random subset of its inputs. Source: AECF, https://arxiv.org/abs/2505.15417 (the coefficient of
    its entropy term). Differs: softplus(0) is taken off, so that a row of which nothing changes gets ``least``.

    Shape:
        logits: ``(K, B, C)``; returns ``(B,)``, detached.
    """
    logits = _at_least_fp32(logits.detach())
    if task == "regression":
        answer = logits[..., :1]
    else:
        answer = logits.softmax(dim=-1) if task == "classification" else logits.sigmoid()
    spread = answer.var(dim=0, correction=0).mean(dim=-1)
    return (least + F.softplus(scale * spread) - F.softplus(torch.zeros_like(spread))).clamp(max=most)


def prediction_entropy(task: str, logits: Tensor) -> Tensor:
    """Entropy of a prediction in nats, per row; labels are averaged. ``(B, C)`` to ``(B,)``."""
    logits = _at_least_fp32(logits)
    if task == "classification":
        log_p = logits.log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1)
    p = logits.sigmoid()
    return -(p * F.logsigmoid(logits) + (1.0 - p) * F.logsigmoid(-logits)).mean(dim=1)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
