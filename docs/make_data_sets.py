"""Write `data-sets.md`: what each set of `polyfuse data list` holds, and what simple models reach on it.

Run: ``python docs/make_data_sets.py [NAME ...]`` (about two minutes). Sets whose files cannot be fetched are named and
left out. Scores are of logistic regressions on the training rows, over the complete test rows.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from polyfuse.cache import cache_dir
from polyfuse.data.batch import Batch
from polyfuse.data.packages import FETCHABLE
from polyfuse.datasets import DATASETS, DataSet, load_dataset
from polyfuse.errors import UserError

SPLITS = 3
RESPLITS = 5
WIDEST = 1500
HEAD = """# Data sets

Made by `python docs/make_data_sets.py`. `load_dataset("mfeat", split=0)` fetches a set on first use, checks its
SHA-256, splits it by a hash of the row keys (60/20/20 unless the set says otherwise; groups stay whole; another
`split` is another draw) and standardises it by its training rows. `polyfuse data fetch NAME` does the same ahead of
time. Inputs are vectors (pictures with words, at the end of the page, are pixels and texts); an absent input is zeros.

Scores are of logistic regression (C = 0.1), over the test rows with every input: each modality alone; **early** =
all inputs in one regression, absent ones zero; **late** = sum of the log-probabilities of the single ones, nothing
trained. Mean +- standard deviation over splits. Accuracy, or mean average precision over labels for several labels.
*Bayes* = the exact posterior, where the rows are generated.
"""

Scores = dict[str, float]

COMPARED = """\
A first probe of the same files reported the figures below: its own splits (80/20, or five folds) and one seed, so
that it trained on more rows. Where they differ by more than a split does: in `av_digits_degraded` the images are
described by the magnitudes of what is left, because logistic regression finds only about 0.27 in the values along
the 50 directions that follow; `miniacc` is scored here on complete test rows, by accuracy, the probe scored all
rows by balanced accuracy (what always says the commonest class has 0.5 there). The probe's Tux Paint captions were
MiniLM sentence vectors; here they are WordLlama's, means of word vectors, which leave the picture something to add:
hence the lower `caption`, and the lower `late` with it. `tabler` had 30 classes there, 26 here (categories that would
lie in one split are left out), and the commonest class 0.169 of the rows, here 0.204; how its pictures and tags were
encoded was not written down, so the differences of its image (+0.075) and of `late` (+0.130) are not explained.
"""
EARLIER: dict[str, Scores] = {
    "av_digits": {"image": 0.898, "audio": 0.967, "early": 0.990, "late": 0.997},
    "av_digits_degraded": {"image": 0.747, "audio": 0.732, "early": 0.747, "late": 0.912},
    "mfeat": {"fac": 0.972, "fou": 0.822, "kar": 0.952, "mor": 0.707, "pix": 0.967, "zer": 0.806, "early": 0.985},
    "watch": {"accelerometer": 0.833, "gyroscope": 0.709, "early": 0.863, "late": 0.847},
    "miniacc": {
        "rna": 0.768, "cn": 0.682, "rppa": 0.732, "mut": 0.500, "mirna": 0.741, "clinical": 0.737, "late": 0.781,
    },
    "breast_cancer": {"mean": 0.946, "error": 0.875, "worst": 0.977, "early": 0.979},
    "tuxpaint": {"image": 0.718, "caption": 0.824, "speech": 0.336, "late": 0.840},
    "tabler": {"image": 0.155, "tags": 0.525, "late": 0.366},
}  # fmt: skip


def plain(batch: Batch) -> bool:
    """Whether every input is one tensor of features."""
    return all(isinstance(value, torch.Tensor) and value.ndim == 2 for value in batch.inputs.values())


def columns(batch: Batch, names: Sequence[str]) -> np.ndarray:
    """Features of some modalities side by side."""
    return np.concatenate([np.asarray(batch.inputs[name]) for name in names], axis=1)


def log_probabilities(x: np.ndarray, y: np.ndarray, wanted: np.ndarray, outputs: int) -> np.ndarray:
    """``(rows, outputs)`` of one regression; several labels: log-odds, one regression per label."""
    if y.ndim == 1:
        model = LogisticRegression(C=0.1, max_iter=300).fit(x, y)
        out = np.full((len(wanted), outputs), -30.0)
        out[:, model.classes_] = model.predict_log_proba(wanted)
        return out
    out = np.full((len(wanted), outputs), -30.0)
    for label in range(outputs):
        if 0 < y[:, label].sum() < len(y):
            out[:, label] = LogisticRegression(C=0.1, max_iter=300).fit(x, y[:, label]).decision_function(wanted)
    return out


def score(scores: np.ndarray, target: np.ndarray) -> float:
    """Accuracy, or mean average precision over the labels that occur."""
    if target.ndim == 1:
        return float((scores.argmax(axis=1) == target).mean())
    there = target.any(axis=0)
    return float(np.mean(average_precision_score(target[:, there], scores[:, there], average=None)))


def scores_of(data: DataSet) -> Scores:
    """Reference scores of one split."""
    names = list(data.specs)
    complete = data.test.rows(data.test.present.all(dim=1).nonzero()[:, 0])
    assert data.train.target is not None  # noqa: S101 - data sets have targets
    assert complete.target is not None  # noqa: S101 - data sets have targets
    y, truth, outputs = data.train.target.numpy(), complete.target.numpy(), data.target.outputs
    out: Scores = {}
    late = np.zeros((len(complete), outputs))
    for m, name in enumerate(names):
        here = data.train.present[:, m].numpy()
        alone = log_probabilities(columns(data.train, [name])[here], y[here], columns(complete, [name]), outputs)
        out[name] = score(alone, truth)
        late += alone
    out["early"] = score(log_probabilities(columns(data.train, names), y, columns(complete, names), outputs), truth)
    out["late"] = score(late, truth)
    if data.posterior is not None:
        out["Bayes"] = score(data.posterior(complete, complete.present).numpy(), truth)
    return out


def section(name: str) -> tuple[str, Scores]:
    """One data set, and its mean scores."""
    source = DATASETS[name]
    data = load_dataset(name)
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    kind = "Measured" if source.real else "Generated"
    lines = [f"## {name}\n", f"{source.about.rstrip('.')}. {kind}. Licence: {source.licence}.\n"]
    lines += ["| modality | width | missing in train | in test |", "|---|---|---|---|"]
    for m, (modality, spec) in enumerate(data.specs.items()):
        holes = [100 * (1 - parts[part].present[:, m].float().mean().item()) for part in ("train", "test")]
        width = spec.options.get("width", spec.type)
        lines.append(f"| {modality} | {width} | {holes[0]:.0f} % | {holes[1]:.0f} % |")
    lines.append(f"\nRows: {', '.join(f'{word} {len(batch)}' for word, batch in parts.items())}; {about_target(data)}.")
    complete = int(data.test.present.all(dim=1).sum())
    if complete < len(data.test):
        lines.append(f"Complete test rows: {complete}.")
    if data.groups is not None:
        sizes = ", ".join(f"{part} {len(set(groups))}" for part, groups in data.groups.items())
        lines.append(f"Groups, never in two splits: {sizes}.")
    if data.broken:
        kinds = ", ".join(f"{modality}: {kind}" for modality, kind in data.broken)
        lines.append(f"Test inputs broken before they were encoded: {kinds}.")
    lines += ["", *(f"- {note}" for note in data.notes)]
    if plain(data.train) and data.target.task != "regression":
        wide = sum(spec.size("width") for spec in data.specs.values())
        splits = RESPLITS if source.resplit else 1 if wide > WIDEST else SPLITS
        runs = [scores_of(data if split == 0 else load_dataset(name, split)) for split in range(splits)]
        table = {key: np.array([run[key] for run in runs]) for key in runs[0]}
        lines += ["", f"| {' | '.join(table)} | splits |", "|---" * (len(table) + 1) + "|"]
        shown = [f"{v.mean():.3f}" + (f" +- {v.std(ddof=1):.3f}" if splits > 1 else "") for v in table.values()]
        lines.append(f"| {' | '.join(shown)} | {splits} |")
        return "\n".join(lines) + "\n", {key: float(v.mean()) for key, v in table.items()}
    return "\n".join(lines) + "\n", {}


def openclipart() -> list[str]:
    """Pairs, parts and texts of Open Clip Art."""
    from polyfuse.datasets.pairs import load_pairs

    found = load_pairs("openclipart")
    counts = [int((found.part == part).sum()) for part in range(3)]
    side, titles = found.images.shape[1], len(set(found.groups))
    return [
        f'Pairs of a drawing ({side} pixels) and its title with tags: `load_pairs("openclipart")`.\n',
        f"Pairs: train {counts[0]}, validation {counts[1]}, test {counts[2]}.",
        f"Titles, never in two splits: {titles}.\n",
        *(f"- {note}" for note in found.notes),
        "- Icon themes, patterns and playing cards are left out, and drawings whose metadata does not free them.",
    ]


def easy_vqa() -> list[str]:
    """Pictures, questions and answers of easy-VQA."""
    from polyfuse.datasets.easy_vqa import load_easy_vqa

    found = load_easy_vqa()
    counts = [int((found.part == part).sum()) for part in range(3)]
    answers = {name: Counter(np.array(found.answers)[found.part == part]) for name, part in (("train", 0), ("test", 2))}
    ((commonest, _),) = answers["train"].most_common(1)
    share = answers["test"][commonest] / answers["test"].total()
    kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(found.kinds).most_common())
    names, side = len(set(found.answers)), found.images.shape[1]
    return [
        f"{len(found.images)} pictures ({side} pixels) of one shape each, with questions: `load_easy_vqa()`.\n",
        f"Questions: train {counts[0]}, validation {counts[1]}, test {counts[2]}; by kind: {kinds}.",
        f"Answers: {names}, the commonest (`{commonest}`) {share:.3f} of the test rows.\n",
        "- The package's own test pictures are the test; 500 of its training pictures are the validation part.",
        "- The question alone gives much away; see [the task studies](task-studies.md).",
    ]


#: What is listed and fetched like the data sets, but is no table of features: pictures with words.
PICTURES: Mapping[str, Callable[[], list[str]]] = {"openclipart": openclipart, "easy_vqa": easy_vqa}


def pictures(name: str) -> str:
    """One set of pictures with words."""
    source = FETCHABLE[name]
    licence = "; ".join(dict.fromkeys(package.licence for package in source.packages))
    head = [f"## {name}\n", f"{source.about.rstrip('.')}. Licence: {licence}.\n"]
    return "\n".join([*head, *PICTURES[name]()]) + "\n"


def without_paths(text: str) -> str:
    """The text without a folder of this machine."""
    return text.replace(str(cache_dir()), "$POLYFUSE_CACHE").replace(str(Path.home()), "~")


def listed() -> list[str]:
    """Every set of ``polyfuse data list``."""
    return [*DATASETS, *PICTURES]


def compared(reached: Mapping[str, Scores]) -> str:
    """The table of earlier figures beside these, and why they differ."""
    lines = ["## Beside earlier figures\n", COMPARED, "| set | what | earlier | here | difference |"]
    lines.append("|---|---|---|---|---|")
    for name, figures in EARLIER.items():
        for what, figure in figures.items():
            if what in reached.get(name, {}):
                here = reached[name][what]
                lines.append(f"| {name} | {what} | {figure:.3f} | {here:.3f} | {here - figure:+.3f} |")
    return "\n".join(lines) + "\n"


def about_target(data: DataSet) -> str:
    """Classes and the share of the commonest, or labels and their shares."""
    assert data.train.target is not None  # noqa: S101 - data sets have targets
    if data.target.task == "classification":
        share = data.train.target.bincount().max().item() / len(data.train)
        return f"{data.target.outputs} classes, the commonest {share:.3f} of the training rows"
    if data.target.task == "multilabel":
        shares = data.train.target.float().mean(dim=0)
        return f"{data.target.outputs} labels, on in {shares.min():.3f} to {shares.max():.3f} of the training rows"
    return "a number"


def page(names: Sequence[str]) -> str:
    """The whole page."""
    parts, absent, reached = [HEAD], [], {}
    for name in names:
        print(name, file=sys.stderr, flush=True)
        try:
            if name in PICTURES:
                parts.append(pictures(name))
                continue
            text, reached[name] = section(name)
            parts.append(text)
        except UserError as error:
            about = (FETCHABLE if name in PICTURES else DATASETS)[name].about.rstrip(".")
            absent.append(without_paths(f"- `{name}`: {about}. Not here: {str(error).splitlines()[0]}"))
    if absent:
        parts.append("## Not scored on this page\n\n" + "\n".join(absent) + "\n")
    parts.append(compared(reached))
    return "\n".join(parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(__file__).with_name("data-sets.md").write_text(page(sys.argv[1:] or listed()), encoding="utf-8")
