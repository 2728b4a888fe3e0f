"""A robot's sensors, one of which dies in mid-stream: a watch's accelerometer and gyroscope, people held out.

Run: ``python examples/robot_sensors.py``; fetches the recordings once, with pip. ``--smoke``: one split, seconds.
"""
# ruff: noqa: D101, D102, D103

import itertools
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from polyfuse import FUSIONS
from polyfuse.data.corrupt import corrupt
from polyfuse.data.missing import Bernoulli
from polyfuse.datasets.assemble import assemble, split_rows
from polyfuse.datasets.watch import CHANNELS, load_watch_windows, window_features

SPLITS, EPOCHS, WIDTH = (1, 5, 64) if "--smoke" in sys.argv else (5, 30, 64)
SENSORS, TIMES = tuple(CHANNELS), range(-4, 8)  # windows of 3 s, one every 1.5 s; the sensor dies within window 0


class Before(nn.Module):
    def __init__(self, widths, classes):
        super().__init__()
        self.fusion = nn.Sequential(nn.Linear(sum(widths.values()), 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, classes)

    def seen_in_training(self, batch, epoch):
        return batch

    def forward(self, inputs, present):
        x = [inputs[name] * present[:, m, None] for m, name in enumerate(SENSORS)]
        return self.head(self.fusion(torch.cat(x, dim=1)))


class After(nn.Module):
    def __init__(self, widths, classes):
        super().__init__()
        self.fusion = FUSIONS["concat"](SENSORS, widths, WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def seen_in_training(self, batch, epoch):
        batch = corrupt(batch, 0.2, seed=0, epoch=epoch)  # a fifth of the inputs is wrong, and nobody says so
        drop = Bernoulli(0.3).drop(batch.present, torch.rand(batch.present.shape))
        return batch.with_present(batch.present & ~drop)

    def forward(self, inputs, present):
        return self.head(self.fusion(inputs, present).fused)


def train(model, rows):
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for epoch in range(EPOCHS):
        for index in torch.randperm(len(rows)).split(64):
            batch = model.seen_in_training(rows.rows(index), epoch)
            optimiser.zero_grad()
            F.cross_entropy(model(batch.inputs, batch.present), batch.target).backward()
            optimiser.step()
    return model.eval()


torch.set_num_threads(1)
windows = load_watch_windows()
x, half = windows.values, windows.values.shape[1] // 2
dying = np.concatenate([x[:, :half], x[:, half - 1 : half].repeat(half, axis=1)], axis=1)  # holds its last value
states = {"sound": x, "dying": dying, "flat": x[:, :1].repeat(2 * half, axis=1)}
values = {(name, state): v[..., CHANNELS[name]] for name in SENSORS for state, v in states.items()}
alarm = {key: (np.ptp(v, axis=1) == 0).all(axis=1) for key, v in values.items()}  # a flat line
features = {key: window_features(v) for key, v in values.items()}
print(f"false alarms: {sum(alarm[name, 'sound'].sum() for name in SENSORS)} of {len(SENSORS) * len(x):,} windows")
about = {"labels": windows.activity, "classes": windows.activities, "ids": [str(row) for row in range(len(x))]}
about |= {"features": {name: features[name, "sound"] for name in SENSORS}, "broken": features}
hits = {}
for split in range(SPLITS):
    part = split_rows(about["ids"], [0] * len(x), split, groups=[f"person {s}" for s in windows.subject])
    data, test = assemble("watch", part=part, **about), np.flatnonzero(part == 2)
    _, starts, sizes = np.unique(windows.recording[test], return_index=True, return_counts=True)
    for arm in (Before, After):
        torch.manual_seed(split)
        widths = {name: spec.options["width"] for name, spec in data.specs.items()}
        model = train(arm(widths, len(data.target.classes)), data.train)
        for name, t in itertools.product(SENSORS, TIMES):  # the sensor dies in the middle of every recording
            place = (starts + sizes // 2)[sizes > 15] + t  # of every recording long enough
            past = [(place + k, "sound" if t + k < 0 else "flat" if t + k else "dying") for k in range(-2, 1)]
            known = np.all([alarm[name, state][test[row]] for row, state in past], axis=0)  # flat three times
            rows = data.test.rows(torch.from_numpy(place))
            rows.present[:, SENSORS.index(name)] = ~torch.from_numpy(known)  # declared missing
            inputs = {**rows.inputs, name: data.broken[name, past[-1][1]][place]}
            right = model(inputs, rows.present).argmax(1) == rows.target
            hits.setdefault((name, arm.__name__, t), []).append(right.double().mean().item())
for name in SENSORS:
    print(f"\n{name:13} dies" + "".join(f"{1.5 * t:5.1f}" for t in TIMES) + "  seconds")
    for arm in ("Before", "After"):
        curve = [100 * np.mean(hits[name, arm, t]) for t in TIMES]
        bars = "".join("▁▂▃▄▅▆▇█"[min(int(c / 12.5), 7)] for c in curve)
        print(f"{arm.lower():18}" + "".join(f"{c:5.0f}" for c in curve) + f"  % right  {bars}")
