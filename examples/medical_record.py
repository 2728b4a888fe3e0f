"""Medical records with holes: five assays and clinical data of 92 tumour patients (miniACC); half lack an assay.

Run: ``python examples/medical_record.py`` (nothing is downloaded). ``--smoke``: two splits, seconds.
"""
# ruff: noqa: D101, D102, D103

import sys
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from polyfuse import FUSIONS
from polyfuse.calibrate import Calibration, MaskTemperature
from polyfuse.data.missing import Bernoulli
from polyfuse.datasets import load_dataset
from polyfuse.evaluate import sweep
from polyfuse.evaluate.metrics import ece, nll, probabilities
from polyfuse.models import FusionModel

SPLITS, STEPS, WIDTH, TASK = (2 if "--smoke" in sys.argv else 20), 60, 16, "classification"
CASES = {"as recorded": (), "no rna": ("rna",), "mut and clinical only": ("rna", "cn", "rppa", "mirna")}


class Before(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(sum(widths.values()), WIDTH), nn.GELU(), nn.Linear(WIDTH, 2))

    def forward(self, inputs, present):
        return self.mlp(F.dropout(torch.cat(list(inputs.values()), dim=1), 0.8, self.training))  # zeros for missing


class After(FusionModel):
    def __init__(self, widths):
        fusion = FUSIONS["concat"](tuple(widths), widths, WIDTH)  # a learned token where an assay is missing
        super().__init__({name: nn.Dropout(0.8) for name in widths}, fusion, nn.Linear(WIDTH, 2))

    def forward(self, inputs, present):
        if self.training:  # hide some of the assays that are there
            present = present & ~Bernoulli(0.5).drop(present, torch.rand(present.shape))
        return super().forward(inputs, present).logits


def train(model, rows):
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(STEPS):
        optimiser.zero_grad()
        F.cross_entropy(model(rows.inputs, rows.present), rows.target).backward()
        optimiser.step()
    return model.eval()


def without(rows, names):
    here = rows.present & torch.tensor([name not in names for name in rows.modalities])
    inputs = {name: x * here[:, m, None] for m, (name, x) in enumerate(rows.inputs.items())}
    return replace(rows, inputs=inputs, present=here)


def logits_of(model, rows):
    return model(rows.inputs, rows.present).detach().numpy()


torch.manual_seed(0)
found, told, shown = {}, [], ""
for split in range(SPLITS):
    data = load_dataset("miniacc", split)
    widths = {name: spec.options["width"] for name, spec in data.specs.items()}
    before, after, held = train(Before(widths), data.train), train(After(widths), data.train), data.validation
    z, ones = logits_of(before, held)[None], np.ones((1, len(held)), bool)
    single = MaskTemperature.fit(TASK, z, held.target, ones[:, : len(widths)], ones)
    calibration = Calibration.fit(sweep(after, held), TASK, alpha=0.2, risk=0.25)
    for case, names in CASES.items():
        rows = without(data.test, names)
        plain, robust, here, y = logits_of(before, rows), logits_of(after, rows), rows.present.numpy(), rows.target
        answer, rescaled = calibration.apply(robust, here), single.apply(plain, np.ones_like(here))
        arms = {"before": plain, "before, one temperature": rescaled, "after, raw": robust}
        arms = {arm: probabilities(TASK, z) for arm, z in arms.items()} | {"after": answer.probs}
        for arm, p in arms.items():
            found.setdefault((case, arm), []).append((p, y.numpy()))
        if case == "as recorded":
            right = answer.probs.argmax(1) == y.numpy()
            told.append((answer.sets[range(len(y)), y], answer.sets.sum(1), ~answer.abstain, right))
            for i in np.flatnonzero(~here.all(axis=1) & (shown == ""))[:1]:  # the first who lacks an assay
                lacks, kept = np.array(rows.modalities)[~here[i]], np.array(data.target.classes)[answer.sets[i]]
                shown = f"{rows.ids[i]}, {data.target.classes[y[i]]}, lacks {', '.join(lacks)}: P(dead) before "
                shown += f"{arms['before'][i, 1]:.2f}, after {arms['after'][i, 1]:.2f}, 80 % set "
                shown += f"{{{', '.join(kept)}}}, {'abstains' if answer.abstain[i] else 'answers'}"
print(f"{SPLITS} splits; ±: over splits{'':20} balanced acc. %  NLL         ECE (pooled)")
for (case, arm), told_here in found.items():
    share = [100 * np.mean([(p.argmax(1) == c)[y == c].mean() for c in (0, 1)]) for p, y in told_here]
    loss, (p, y) = [nll(*pair) for pair in told_here], map(np.concatenate, zip(*told_here, strict=True))
    print(f"{case:22} {arm:24} {np.mean(share):.1f} ±{np.std(share):<4.1f}", end="      ")
    print(f"{np.mean(loss):.2f} ±{np.std(loss):.2f}  {ece(p, y):.3f}")
covered, size, given, right = (np.concatenate(parts) for parts in zip(*told, strict=True))
print(f"as recorded: 80 % sets hold the truth {covered.mean():.0%}, size {size.mean():.2f}; right {right.mean():.0%};")
print(f"answered {given.mean():.0%}, of them right {right[given].sum() / max(given.sum(), 1):.0%}\n{shown}")
