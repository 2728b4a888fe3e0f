"""Further objectives of a step: more fusion passes over the same embeddings, and what their answers owe to each other.

Independent of the fusion. Everything is off by default, and the loop then does not come here.

Encoders run once per step; all passes of a step are one call of the fusion on K * b rows.

Shapes: K passes, b rows of one pass of the loop, M modalities, C logits. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from polyfuse import functional as PF
from polyfuse.data.batch import Batch
from polyfuse.data.keyed import uniform
from polyfuse.data.missing import Bernoulli, SizeStratified, sample_drop
from polyfuse.errors import UserError
from polyfuse.fusion.named import NamedModules
from polyfuse.losses.consistency import (
    confidence_hinge,
    distillation,
    instance_coefficient,
    martingale_consistency,
    mean_monotone,
    proxy_loss,
)
from polyfuse.losses.task import task_loss
from polyfuse.models.output import ModelOutput
from polyfuse.train.balance import (
    combine,
    gradients_of,
    modulate,
    ogm_coefficients,
    put_gradients,
    right_probability,
)
from polyfuse.train.build import seeded
from polyfuse.train.devices import Device
from polyfuse.train.objective import Objective
from polyfuse.train.subset_dro import SubsetDRO

if TYPE_CHECKING:
    from polyfuse.config import RecipeConfig


class Answers(NamedTuple):
    """What the passes of a step say.

    Attributes:
        logits: ``(K, b, C)``.
        output: The fusion's output for all K * b rows.
        alone: ``{name: (b, C)}`` logits of every input alone; empty without heads.
    """

    logits: Tensor
    output: ModelOutput
    alone: dict[str, Tensor]


class RecipeNetwork(nn.Module):
    """A model that encodes once and fuses K times in one forward pass, so that data parallel wrappers see one call.

    Args:
        model: A ``FusionModel``.
        heads: A head per modality, from its embedding to logits; None = none.
        probing: The heads learn, and the encoders do not learn from them.
    """

    def __init__(self, model: nn.Module, heads: NamedModules | None = None, *, probing: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.heads, self.probing = heads, probing

    def forward(self, inputs: Mapping[str, Any], available: Tensor, masks: Tensor) -> Answers:
        """Answers to ``masks (K, b, M)``, each a part of ``available (b, M)``."""
        embeddings = self.model.encode(inputs, available)
        count, rows = masks.shape[:2]
        spread = {name: x.repeat(count, 1) for name, x in embeddings.items()} if count > 1 else embeddings
        output = self.model.fuse(spread, masks.flatten(0, 1))
        alone = {}
        if self.heads is not None:
            alone = {
                name: head(embeddings[name].detach() if self.probing else embeddings[name])
                for name, head in self.heads.items()
            }
        return Answers(output.logits.view(count, rows, -1), output, alone)


class Recipe:
    """The objectives of ``train.recipe``, for one run.

    The first pass is the rows as dropout left them; then comes the full one, then a single input, then the random ones
    of ``instance_passes``. The task's loss is averaged over all but the last kind.

    Args:
        config: The settings.
        model: What is trained.
        objective: The loss of the task, with class weights and the fusion's own entropy loss.
        seed: Of the masks and of the heads of single inputs.
        row: One row of the table, which tells the widths of embeddings and logits; needed for those heads.
        blend: Weights of the joint loss (name "") and of every input's own, from ``blend_trial``; for ``g_blend``.

    Raises:
        UserError: If settings do not go together, or ask of the task or the fusion what it has not.
    """

    def __init__(
        self,
        config: "RecipeConfig",
        model: nn.Module,
        objective: Objective,
        seed: int,
        row: Batch | None = None,
        blend: Mapping[str, float] | None = None,
    ) -> None:
        self.config, self.objective, self.seed = config, objective, seed
        self.task = objective.task
        self.modalities: tuple[str, ...] = tuple(model.modalities)  # type: ignore[arg-type]
        _check(config, self.task, self.modalities)
        heads = None
        if config.unimodal or config.balance != "none":
            heads = _heads(model, row, seed)
        self.network = RecipeNetwork(model, heads, probing=config.balance == "ogm_ge" and not config.unimodal)
        self._encoders: dict[str, nn.Module] = dict(model.encoders.items())  # type: ignore[operator, union-attr]
        trainable = any(p.requires_grad for encoder in self._encoders.values() for p in encoder.parameters())
        if config.balance in ("ogm_ge", "mmpareto") and not trainable:
            raise UserError(f"train.recipe.balance={config.balance} acts on encoders, but none of them trains")
        self._blend = dict(blend or {})
        self._alone: dict[str, Tensor] = {}
        self._right: dict[str, float] = {}
        self.full = config.passes != "one" or _compares(config)
        self.single = config.passes == "sandwich"
        self.trained = 1 + self.full + self.single
        self.dro = SubsetDRO(self.modalities, config.subset_dro, config.subset_floor) if config.subset_dro else None

    @property
    def passes(self) -> int:
        """Fusion passes per step."""
        return self.trained + self.config.instance_passes

    def __call__(
        self, module: nn.Module, batch: Batch, available: Tensor, step: int, progress: float
    ) -> tuple[Tensor, Tensor, ModelOutput]:
        """The sum over rows to minimise, that of the first pass's task loss (detached), and the fusion's output.

        Args:
            module: ``network``, as the device wrapped it.
            batch: Rows as dropout left them.
            available: ``(b, M)`` bool, what they had before.
            step: Number of the step, the key of the masks.
            progress: Share of the run that is done.
        """
        masks = self.masks(batch, available, step)
        answers: Answers = module(batch.inputs, available, masks)
        target = batch.target
        assert target is not None  # noqa: S101 - fit refuses it
        self._hear(answers, available, target)
        losses = torch.stack(
            [
                task_loss(self.task, logits, target, self.objective.weight, reduction="none")
                for logits in answers.logits[: self.trained]
            ]
        )
        first = losses[0]
        if self.dro is not None:
            losses = torch.cat([(first * self.dro.weights(masks[0], first.detach()))[None], losses[1:]])
        total = losses.mean(dim=0).sum()
        coefficient = self._coefficient(answers)
        total = total + self._between_passes(answers, losses, target, coefficient)
        total = total + self._entropy(answers, masks, coefficient, progress)
        total = total + self._proxy(answers, masks)
        return total, first.detach().sum(), answers.output

    def backward(self, device: Device, total: Tensor, factor: float) -> None:
        """The gradients of ``factor`` times what ``__call__`` returned last, and of the losses of single inputs."""
        balance = self.config.balance
        if not self._alone:
            device.backward(total * factor)
            return
        joint, own = self._blend.get("", 1.0), sum(self._alone.values(), total.new_zeros(()))
        if balance == "mmpareto":
            device.backward(total * factor, retain_graph=True)
            first = gradients_of(self._encoders)
            for encoder in self._encoders.values():
                encoder.zero_grad(set_to_none=True)
            device.backward(own * factor)
            second = gradients_of(self._encoders)
            for name, encoder in self._encoders.items():
                put_gradients(encoder, combine(first[name], second[name]))
            return
        device.backward((joint * total + own) * factor)
        if balance == "ogm_ge":
            modulate(self._encoders, ogm_coefficients(self._right, self.config.ogm_alpha))

    def _hear(self, answers: Answers, available: Tensor, target: Tensor) -> None:
        """Sums of the losses of single inputs, weighted, over the rows that have them."""
        self._alone, self._right = {}, {}
        for m, name in enumerate(self.modalities):
            if name not in answers.alone:
                continue
            logits, here = answers.alone[name], available[:, m]
            rows = task_loss(self.task, logits, target, self.objective.weight, reduction="none")
            weight = self.config.modality_weights.get(name, 1.0) * self._blend.get(name, 1.0)
            weight *= self.config.unimodal or 1.0
            self._alone[name] = weight * torch.where(here, rows, 0.0).sum()
            if self.config.balance == "ogm_ge" and bool(here.any()):
                self._right[name] = float(right_probability(self.task, logits.detach()[here], target[here]))

    def masks(self, batch: Batch, available: Tensor, step: int) -> Tensor:
        """``(K, b, M)`` bool, keyed by the step and the row."""
        masks = [batch.present]
        if self.full:
            masks.append(available)
        if self.single:
            draws = uniform(self.seed, "recipe/single", step, batch.keys, available.shape[1])
            masks.append(available & ~sample_drop(available, Bernoulli(1.0), draws))
        for k in range(self.config.instance_passes):
            policy = SizeStratified()
            draws = uniform(self.seed, f"recipe/random {k}", step, batch.keys, policy.draws(available.shape[1]))
            masks.append(available & ~sample_drop(available, policy, draws))
        return torch.stack(masks)

    def _coefficient(self, answers: Answers) -> Tensor | None:
        if not self.config.instance_passes:
            return None
        return instance_coefficient(self.task, answers.logits[self.trained :])

    def _between_passes(self, answers: Answers, losses: Tensor, target: Tensor, coefficient: Tensor | None) -> Tensor:
        """Terms between the full pass (number 1) and the poorer ones."""
        config, total = self.config, losses.new_zeros(())
        if not self.full:
            return total
        full = answers.logits[1]
        poorer = [k for k in range(self.trained) if k != 1]
        for k in poorer:
            logits = answers.logits[k]
            if config.distill:
                total = total + config.distill * distillation(self.task, full, logits).sum()
            if config.consistency:
                rows = martingale_consistency(self.task, full, logits)
                total = total + config.consistency * (rows if coefficient is None else coefficient * rows).sum()
            if config.hinge:
                total = total + config.hinge * confidence_hinge(self.task, full, logits, target).sum()
            if config.monotone:
                total = total + config.monotone * len(target) * mean_monotone(losses[1], losses[k])
        return total / max(len(poorer), 1)

    def _proxy(self, answers: Answers, masks: Tensor) -> Tensor:
        """Distance of the proxies of hidden inputs from the slots of the full pass."""
        if not self.config.proxy:
            return masks.new_zeros((), dtype=torch.float32)
        info, (count, rows) = answers.output.info, masks.shape[:2]
        if "proxies" not in info:
            raise UserError("train.recipe.proxy needs model.fusion=proxy; set it to 0")
        slots, proxies = (info[key].unflatten(0, (count, rows)) for key in ("slots", "proxies"))
        poorer = [k for k in range(self.trained) if k != 1]
        losses = [proxy_loss(proxies[k], slots[1], masks[1] & ~masks[k]).sum() for k in poorer]
        return self.config.proxy * torch.stack(losses).mean()

    def _entropy(self, answers: Answers, masks: Tensor, coefficient: Tensor | None, progress: float) -> Tensor:
        """The fusion's own entropy loss, and the bonus for spread-out weights, over all passes."""
        rows, total = masks.shape[1], answers.logits.new_zeros(())
        info = answers.output.info
        if self.objective.entropy_weight:
            own = self.objective.entropy_loss(info["entropy"], info.get("target_entropy"))
            total = total + self.objective.entropy_weight * rows * own
        strength = self.config.entropy_bonus
        if self.config.entropy_until < 1.0:
            strength *= max(0.0, 1.0 - progress / self.config.entropy_until)
        if strength == 0.0:
            return total
        entropy = info.get("entropy")
        weights = answers.output.weights
        if entropy is None or not entropy.requires_grad:
            if weights is None or not weights.requires_grad:
                raise UserError("train.recipe.entropy_bonus needs a fusion with weights (gated, attention_pool, aecf)")
            entropy = PF.entropy(weights)
        count = masks.flatten(0, 1).sum(dim=1)
        spread = entropy.view(masks.shape[0], rows) / count.clamp(min=2).log().view(masks.shape[0], rows)
        per_row = spread.mean(dim=0)
        return total - strength * (per_row if coefficient is None else coefficient * per_row).sum()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the model, as ``recipe.<name>``."""
        found = {} if self.dro is None else {"recipe.dro": self.dro.log_weight}
        if self.network.heads is not None:
            found |= {f"recipe.heads.{name}": value for name, value in self.network.heads.state_dict().items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take ``tensors`` (without the prefix) back."""
        if self.dro is not None:
            self.dro.log_weight.copy_(tensors["dro"])
        if self.network.heads is not None:
            own = {key.removeprefix("heads."): value for key, value in tensors.items() if key.startswith("heads.")}
            self.network.heads.load_state_dict(own)


def active(config: "RecipeConfig") -> bool:
    """Whether a step does anything beyond the task's loss."""
    quiet = {
        "passes",
        "balance",
        "entropy_until",
        "modality_weights",
        "ogm_alpha",
        "weak",
        "weak_method",
        "weak_amount",
    }
    switches = config.model_dump(exclude=quiet)
    return config.passes != "one" or config.balance != "none" or any(switches.values())


def passes_per_step(config: "RecipeConfig") -> int:
    """Fusion passes of one training step, the cost that comparisons print beside an arm."""
    trained = {"one": 1 + _compares(config), "full": 2, "sandwich": 3}[config.passes]
    return trained + config.instance_passes


def _compares(config: "RecipeConfig") -> bool:
    """Whether a term needs the full pass to compare with."""
    return any((config.distill, config.consistency, config.hinge, config.monotone, config.proxy))


@torch.no_grad()
def _heads(model: nn.Module, row: Batch | None, seed: int) -> NamedModules:
    """A linear head on every encoder, with as many outputs as the model has."""
    if row is None:
        raise ValueError("heads of single inputs need a row to see the widths on, got None")
    parts: Any = model
    training = model.training
    model.eval()
    embeddings = parts.encode(row.inputs, row.present)
    outputs = parts.fuse(embeddings, row.present).logits.shape[1]
    model.train(training)
    with seeded(seed, "heads of single inputs"):
        return NamedModules({name: nn.Linear(x.shape[1], outputs) for name, x in embeddings.items()})


def _check(config: "RecipeConfig", task: str, modalities: Sequence[str]) -> None:
    unknown = [name for name in config.modality_weights if name not in modalities]
    if unknown:
        raise UserError(
            f"train.recipe.modality_weights names '{unknown[0]}', which is no modality; known: {', '.join(modalities)}"
        )
    if config.modality_weights and not config.unimodal:
        raise UserError("train.recipe.modality_weights are factors of train.recipe.unimodal, which is 0")
    if config.hinge and task != "classification":
        raise UserError(f"train.recipe.hinge is for classification, got task {task}; set it to 0")
    if config.instance_passes == 1:
        raise UserError("train.recipe.instance_passes must be 0 or at least 2: one pass has no spread, got 1")
    if config.instance_passes and not (config.consistency or config.entropy_bonus):
        raise UserError(
            "train.recipe.instance_passes sets a coefficient for consistency or entropy_bonus, but both are 0"
        )
    if config.subset_floor and not config.subset_dro:
        raise UserError("train.recipe.subset_floor is for subset_dro, which is 0")
