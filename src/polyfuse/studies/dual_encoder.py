"""The two matchers that ship: trained on pictures with words, judged on texts they never saw.

``clipart``: projections of frozen EfficientNet-Lite0 and MiniLM + WordLlama, on emoji in two styles and Open Clip Art.
``glyphs``: a small CNN and word vectors, from scratch, on Unicode characters and their names.

Shapes: N pairs, C texts, E embedding width.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyfuse.datasets.pairs import TEST, TRAIN, ImageTextPairs, emoji_pairs, load_pairs, same_words
from polyfuse.encoders.matching import MATCHER_SETTINGS, ink, text_features, word_ids
from polyfuse.evaluate.retrieval import Recall, first_right_ranks, recall
from polyfuse.losses import info_nce
from polyfuse.models.dual_encoder import DualEncoder, FeatureTower

RIDGE = (300.0, 1000.0, 3000.0, 10000.0)
_SIDE = 128
_PAIRS_AT_ONCE = 384
_TEXT_NETWORKS = ("minilm", "wordllama")
_RARE_PAIR = 12  # a pair of words enters the vocabulary if it stands in so many distinct training names
Say = Callable[[str], None]


def found(images: Tensor, texts: Tensor, right: Tensor) -> Recall:
    """Of unit vectors ``(N, E)`` and ``(C, E)``, and the number of each picture's text ``(N,)``."""
    return recall(first_right_ranks(images, texts, right, torch.arange(len(texts))), len(texts))


def gallery(pairs: ImageTextPairs, rows: np.ndarray) -> tuple[list[str], Tensor]:
    """The distinct texts of some pairs, sorted, and the number of each pair's text."""
    texts = sorted({pairs.texts[row] for row in rows})
    place = {text: number for number, text in enumerate(texts)}
    return texts, torch.tensor([place[pairs.texts[row]] for row in rows])


def train_clipart(folder: Path, *, seed: int = 0, steps: int = 1500, say: Say = print) -> dict[str, Any]:
    """Train, judge and save the matcher of drawings; needs the fetched sets and networks."""
    from polyfuse.datasets.encoded import fetched_network

    torch.manual_seed(seed)
    sets = [emoji_pairs("fluent"), emoji_pairs("twemoji"), load_pairs("openclipart")]
    network = fetched_network("efficientnet_lite0")
    words = {name: fetched_network(name) for name in _TEXT_NETWORKS}
    images = [torch.from_numpy(network(list(pairs.images))) for pairs in sets]
    say(f"clipart: features of {sum(map(len, images))} pictures are ready")

    x, index, options, table, names = _training_rows(sets, images)
    features = torch.from_numpy(text_features(words, table))
    model = DualEncoder(image_dim=x.shape[1], text_dim=features.shape[1], hidden_dim=512, dropout=0.45)
    for tower, rows in ((model.image, x), (model.text, features[index])):
        if isinstance(tower, FeatureTower):
            tower.standardise(rows)
    own = torch.from_numpy(same_words(names))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps)
    started = time.perf_counter()
    for _ in range(steps):
        rows = torch.randint(len(x), (_PAIRS_AT_ONCE,))
        other = options[rows, torch.randint(options.shape[1], (len(rows),))]
        said = torch.where(torch.rand(len(rows)) < 0.15, other, index[rows])
        loss = info_nce(*model.encode(x[rows], features[said]), model.scale(), ids=own[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    seconds = time.perf_counter() - started
    model.eval()
    scores = {}
    for pairs, seen in zip(sets, images, strict=True):
        test = pairs.rows(TEST)
        texts, right = gallery(pairs, test)
        said = torch.from_numpy(text_features(words, texts))
        with torch.inference_mode():
            scores[pairs.name] = found(model.encode_image(seen[test]), model.encode_text(said), right)
        scores[f"{pairs.name}, ridge"] = _ridge(pairs, seen, torch.from_numpy(words["minilm"](texts)), right, words)
        say(f"clipart: {pairs.name}: {scores[pairs.name]}")
    settings = {"name": "clipart", "side": _SIDE, "image": "efficientnet_lite0", "text": list(_TEXT_NETWORKS)}
    return _finish(model, folder, settings, scores, seconds)


def _training_rows(
    sets: Sequence[ImageTextPairs], images: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[str], list[str]]:
    """Features, the number of each row's text, of its other wordings, all texts, and each row's text.

    No text that any test part holds is trained on, whichever set it comes from.
    """
    held_out = {pairs.texts[row].lower() for pairs in sets for row in pairs.rows(TEST)}
    held_out |= {pairs.groups[row] for pairs in sets for row in pairs.rows(TEST)}
    kept, said, others = [], [], []
    for pairs, seen in zip(sets, images, strict=True):
        for row in pairs.rows(TRAIN):
            if pairs.texts[row].lower() in held_out:
                continue
            kept.append(seen[row])
            said.append(pairs.texts[row])
            others.append([word for word in pairs.wordings[row] if word.lower() not in held_out] or [pairs.texts[row]])
    table = sorted({*said, *(word for words in others for word in words)})
    place = {text: number for number, text in enumerate(table)}
    most = max(map(len, others))
    options = torch.tensor([([place[word] for word in words] * most)[:most] for words in others])
    return torch.stack(kept), torch.tensor([place[text] for text in said]), options, table, said


def _ridge(pairs: ImageTextPairs, seen: Tensor, texts: Tensor, right: Tensor, words: Mapping[str, Any]) -> Recall:
    """The best ridge map from image features to MiniLM vectors, its strength chosen on the test rows themselves."""
    train, test = pairs.rows(TRAIN), pairs.rows(TEST)
    x, y = seen[train].double(), torch.from_numpy(words["minilm"]([pairs.texts[row] for row in train])).double()
    mean, spread, middle = x.mean(dim=0), x.std(dim=0) + 1e-6, y.mean(dim=0)
    x, query = (x - mean) / spread, (seen[test].double() - mean) / spread
    tried = []
    for strength in RIDGE:
        weight = torch.linalg.solve(x.t() @ x + strength * torch.eye(x.shape[1], dtype=x.dtype), x.t() @ (y - middle))
        answer = F.normalize(query @ weight, dim=1)
        tried.append(found(answer, F.normalize(texts.double() - middle, dim=1), right))
    return max(tried, key=lambda one: one.at[1])


def train_glyphs(folder: Path, *, seed: int = 0, epochs: int = 12, say: Say = print) -> dict[str, Any]:
    """Train, judge and save the matcher of characters, from scratch."""
    torch.manual_seed(seed)
    pairs = load_pairs("glyphs")
    train = np.flatnonzero(pairs.part != TEST)  # the settings below were chosen on the validation rows, trained without
    vocabulary = glyph_vocabulary([pairs.texts[row] for row in train])
    known = {piece for piece in vocabulary if " " not in piece}
    test = np.array([row for row in pairs.rows(TEST) if set(pairs.texts[row].split()) <= known])
    pixels, ids = ink(pairs.images), word_ids(pairs.texts, vocabulary)
    own = torch.from_numpy(same_words(pairs.texts))
    model = DualEncoder(
        vocab_size=len(vocabulary) + 1, channels=(32, 64, 128), blocks=1, word_hidden_dim=512, dropout=0.3
    )
    batch, where = 256, torch.from_numpy(train)
    steps = epochs * (len(where) // batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    started = time.perf_counter()
    for epoch in range(epochs):
        for rows in where[torch.randperm(len(where))].split(batch):
            if len(rows) < batch:
                continue
            loss = info_nce(*model.encode(jittered(pixels[rows]), ids[rows]), model.scale(), ids=own[rows])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        say(f"glyphs: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}")
    seconds = time.perf_counter() - started
    model.eval()
    scores = {}
    plain = np.array([row for row in test if pairs.ids[row].endswith(" DejaVuSans")])
    for title, rows in (("glyphs, DejaVu Sans", plain), ("glyphs, six faces", test)):
        texts, right = gallery(pairs, rows)
        with torch.inference_mode():
            images = torch.cat([model.encode_image(block) for block in pixels[torch.from_numpy(rows)].split(512)])
            scores[title] = found(images, model.encode_text(word_ids(texts, vocabulary)), right)
        say(f"{title}: {scores[title]}")
        if rows is test:
            averaged = torch.zeros(len(texts), images.shape[1]).index_add(0, right, images)
            scores["glyphs, mean of a character's faces"] = found(
                F.normalize(averaged, dim=1), model.encode_text(word_ids(texts, vocabulary)), torch.arange(len(texts))
            )
    settings = {"name": "glyphs", "side": 32, "vocabulary": list(vocabulary)}
    return _finish(model, folder, settings, scores, seconds)


def glyph_vocabulary(names: Sequence[str]) -> dict[str, int]:
    """Ids from 1 of every word, and of the neighbouring pairs of words that stand in twelve names or more.

    Example:
        >>> list(glyph_vocabulary([f"sign {number}" for number in range(2)] + ["sign 0"]))
        ['0', '1', 'sign']
    """
    counts: Counter[str] = Counter()
    for name in set(names):
        words = name.split()
        counts.update({*words, *(f"{a} {b}" for a, b in pairwise(words))})
    kept = sorted(piece for piece, count in counts.items() if " " not in piece or count >= _RARE_PAIR)
    return {piece: row + 1 for row, piece in enumerate(kept)}


def jittered(x: Tensor) -> Tensor:
    """Each picture turned, scaled and shifted a little, ``(B, 1, S, S)``."""
    count = len(x)
    scale, angle = 1 + 0.2 * (torch.rand(count) - 0.5), 0.15 * (torch.rand(count) - 0.5)
    turn = torch.zeros(count, 2, 3)
    turn[:, 0, 0], turn[:, 0, 1] = scale * angle.cos(), -angle.sin()
    turn[:, 1, 0], turn[:, 1, 1] = angle.sin(), scale * angle.cos()
    turn[:, :, 2] = 0.2 * (torch.rand(count, 2) - 0.5)
    return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)


def _finish(
    model: DualEncoder, folder: Path, settings: dict[str, Any], scores: Mapping[str, Recall], seconds: float
) -> dict[str, Any]:
    """Save at half precision what ships, and the scores beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    (folder / MATCHER_SETTINGS).write_text(json.dumps(settings, ensure_ascii=False) + "\n", encoding="utf-8")
    table = {
        name: {"gallery": one.gallery, "queries": one.queries, **{f"R@{k}": round(v, 3) for k, v in one.at.items()}}
        for name, one in scores.items()
    }
    report = {"scores": table, "seconds": round(seconds), "parameters": sum(p.numel() for p in model.parameters())}
    (folder / "scores.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
