"""Generating laws whose Bayes posterior is exact: latent bits, seen through Gaussian noise, that make up the answer.

A latent bit is +1 or -1. Modality m sees bit b as ``strength * bit + N(0, 1)``. Noise is independent given the bits, so
all that a set S of modalities says about bit b is one number, its evidence ``Σ_{m in S} strength_mb * signal_mb``:
log N(u; s, 1) - log N(u; -s, 1) = 2 s u. A posterior is a sum over the few states of the bits.

The kinds are those of partial information decomposition (the synthetic suite of https://github.com/pliang279/PID):
redundancy (every modality sees every bit), unique (each its own), synergy (only parities of bits of different
modalities count: no modality alone beats chance), mixed.

Shapes: N rows, M modalities, B latent bits, Z = 2^B states, C classes, L labels, T topics.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polyfuse.data.keyed import uniform


class Law(Protocol):
    """What a generator needs to know.

    Attributes:
        seen: Per modality, the bits that it sees.
        strength: Per modality, how loud each of them is, in standard deviations of the noise.
    """

    @property
    def seen(self) -> tuple[tuple[int, ...], ...]: ...  # noqa: D102 - told above

    @property
    def strength(self) -> tuple[tuple[float, ...], ...]: ...  # noqa: D102 - told above

    @property
    def task(self) -> str:
        """``classification`` or ``multilabel``."""
        ...

    @property
    def outputs(self) -> int:
        """Classes or labels."""
        ...

    @property
    def bits(self) -> int:
        """B."""
        ...

    def draw(self, seed: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Bits ``(N, B)`` of +-1 (float64) and the target, a pure function of the keys."""
        ...

    def posterior(self, evidence: Tensor) -> Tensor:
        """``(N, C)`` class probabilities, or ``(N, L)`` label probabilities, given ``(N, B)`` evidence."""
        ...


@dataclass(frozen=True)
class ParityLaw:
    """Fair bits; the class is a number whose binary digits are parities of bits; a share of the labels is wrong.

    Args:
        seen: Per modality, the bits that it sees.
        strength: Per modality, one entry per bit that it sees.
        digits: Per binary digit of the class, the bits whose parity it is (one bit: that bit).
        label_noise: Probability that the label is another class, uniformly.

    Example:
        >>> law = ParityLaw(((0,), (1,)), ((1.0,), (1.0,)), ((0, 1),))
        >>> law.posterior(torch.tensor([[9.0, -9.0], [9.0, 0.0]], dtype=torch.float64)).round(decimals=3).tolist()
        [[0.0, 1.0], [0.5, 0.5]]
    """

    seen: tuple[tuple[int, ...], ...]
    strength: tuple[tuple[float, ...], ...]
    digits: tuple[tuple[int, ...], ...]
    label_noise: float = 0.0

    task = "classification"

    @property
    def outputs(self) -> int:
        """Classes."""
        return 1 << len(self.digits)

    @property
    def bits(self) -> int:
        """Latent bits."""
        return 1 + max(bit for digit in self.digits for bit in digit)

    def draw(self, seed: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Law``."""
        signs = torch.where(uniform(seed, "law/bits", 0, keys, self.bits) < 0.5, 1.0, -1.0).double()
        noise = uniform(seed, "law/label", 0, keys, 2)
        shift = 1 + (noise[:, 1].double() * (self.outputs - 1)).long()
        clean = self._class_of(signs)
        return signs, torch.where(noise[:, 0] < self.label_noise, (clean + shift) % self.outputs, clean)

    def posterior(self, evidence: Tensor) -> Tensor:
        """Sum over all states of the bits, class by class, then the label noise."""
        states = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=self.bits)), dtype=torch.float64)
        probs = (evidence @ states.T).softmax(dim=1)  # log p(z | signals) = Σ_b e_b z_b up to a constant
        clean = probs @ torch.eye(self.outputs, dtype=torch.float64)[self._class_of(states)]
        return (1.0 - self.label_noise) * clean + self.label_noise * (1.0 - clean) / (self.outputs - 1)

    def _class_of(self, signs: Tensor) -> Tensor:
        """A digit is 1 where the product of its bits' signs is -1 (two or more bits), or where its only bit is +1."""
        out = torch.zeros(len(signs), dtype=torch.int64)
        for place, digit in enumerate(self.digits):
            product = signs[:, list(digit)].prod(dim=1)
            out += (product > 0 if len(digit) == 1 else product < 0).long() << place
        return out


@dataclass(frozen=True)
class TopicLaw:
    """Several labels per row, some frequent, some rare: a hidden topic, then labels that are independent given it.

    Label l is on with probability ``rates[topic][l]``. A label with one entry in ``label_bits`` is that latent bit; one
    with two entries is the parity of two bits, the first of which is fair.

    Args:
        seen: Per modality, the bits that it sees.
        strength: Per modality, one entry per bit that it sees.
        label_bits: Per label, its bit, or the two bits whose parity it is.
        rates: ``(T, L)``; topics are equally likely.
    """

    seen: tuple[tuple[int, ...], ...]
    strength: tuple[tuple[float, ...], ...]
    label_bits: tuple[tuple[int, ...], ...]
    rates: tuple[tuple[float, ...], ...]

    task = "multilabel"

    @property
    def outputs(self) -> int:
        """Labels."""
        return len(self.label_bits)

    @property
    def bits(self) -> int:
        """Latent bits."""
        return sum(len(bits) for bits in self.label_bits)

    def draw(self, seed: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Law``."""
        rates = torch.tensor(self.rates, dtype=torch.float64)
        topic = (uniform(seed, "law/topic", 0, keys, 1)[:, 0].double() * len(rates)).long()
        labels = uniform(seed, "law/labels", 0, keys, self.outputs).double() < rates[topic]
        fair = uniform(seed, "law/fair", 0, keys, self.outputs) < 0.5
        bits = torch.zeros(len(keys), self.bits, dtype=torch.bool)
        for label, members in enumerate(self.label_bits):
            if len(members) == 1:
                bits[:, members[0]] = labels[:, label]
            else:
                bits[:, members[0]] = fair[:, label]
                bits[:, members[1]] = fair[:, label] ^ labels[:, label]
        return torch.where(bits, 1.0, -1.0).double(), labels.float()

    def posterior(self, evidence: Tensor) -> Tensor:
        """p(label | x) = Σ_t p(t | x) p(label | t, x): exact, as labels are independent given topic and signals."""
        on, off = torch.empty(2, len(evidence), self.outputs, dtype=torch.float64)
        for label, members in enumerate(self.label_bits):
            first = evidence[:, members[0]]
            if len(members) == 1:
                on[:, label], off[:, label] = first, -first
            else:
                second = evidence[:, members[1]]
                on[:, label] = torch.logaddexp(first - second, second - first) - math.log(2)
                off[:, label] = torch.logaddexp(first + second, -first - second) - math.log(2)
        rates = torch.tensor(self.rates, dtype=torch.float64)
        on_NTL = on[:, None] + rates.log()
        both_NTL = torch.logaddexp(on_NTL, off[:, None] + torch.log1p(-rates))
        topic_NT = both_NTL.sum(dim=2).softmax(dim=1)
        return torch.einsum("nt,ntl->nl", topic_NT, (on_NTL - both_NTL).exp())


def redundancy(modalities: int, strength: float, label_noise: float) -> ParityLaw:
    """Two bits, four classes: every modality sees both."""
    return ParityLaw(((0, 1),) * modalities, ((strength,) * 2,) * modalities, ((0,), (1,)), label_noise)


def unique(modalities: int, strength: float, label_noise: float) -> ParityLaw:
    """As many bits as modalities, at most three, each a digit of the class; modality m sees bit m mod 3 alone."""
    bits = min(modalities, 3)
    seen = tuple((m % bits,) for m in range(modalities))
    return ParityLaw(seen, ((strength,),) * modalities, tuple((b,) for b in range(bits)), label_noise)


def synergy(modalities: int, strength: float, label_noise: float) -> ParityLaw:
    """The bits of ``unique``, but the digits of the class are parities of neighbours: one bit alone says nothing."""
    plain = unique(modalities, strength, label_noise)
    digits = tuple((b, b + 1) for b in range(plain.bits - 1))
    return ParityLaw(plain.seen, plain.strength, digits, label_noise)


def mixed(modalities: int, shared: float, own: float, paired: float, faint: float, label_noise: float) -> ParityLaw:
    """One shared bit, one or two unique ones, and a parity of two bits that the last two modalities show.

    Two modalities: a sees the shared, the unique and the parity bits, b the shared and the parity bits. Three: a sees
    the unique bit, b and c the parity bits. More: all but the last two take turns in seeing two unique bits. Each of
    the pair sees one parity bit clearly and the other faintly: a pure parity among other digits is hardly ever learned
    from rows that miss inputs (``synergy`` is the pure case). Digits: shared, unique ones, parity.
    """
    uniques = 1 if modalities < 4 else 2
    parity = (1 + uniques, 2 + uniques)
    seen, strength = [], []
    for m in range(modalities):
        bits, loud = [0], [shared]
        if m < max(modalities - 2, 1):
            bits, loud = [*bits, 1 + m % uniques], [*loud, own]
        if m >= modalities - 2:
            first = m == modalities - 2
            bits, loud = [*bits, *parity], [*loud, *((paired, faint) if first else (faint, paired))]
        seen.append(tuple(bits))
        strength.append(tuple(loud))
    digits = ((0,), *((1 + u,) for u in range(uniques)), parity)
    return ParityLaw(tuple(seen), tuple(strength), digits, label_noise)


def collapsed(strong: float, faint: float, own: float, label_noise: float) -> ParityLaw:
    """Three bits, eight classes, three modalities: a shows two bits clearly and one faintly, b and c the reverse.

    A gate that settles on a is nearly right early in training, and never learns the third bit.
    """
    clear, reverse = (strong, strong, faint), (faint, faint, own)
    return ParityLaw(((0, 1, 2),) * 3, (clear, reverse, reverse), ((0,), (1,), (2,)), label_noise)


def longtail(shared: float, own: float, paired: float, faint: float) -> TopicLaw:
    """Twelve labels from 50 % to 2 % of the rows, three topics, three modalities.

    Labels take turns: four are seen by all modalities, two by each alone, and two are parities of two bits, of which
    one modality sees the first clearly and the second faintly, the next the reverse. A label is three times as likely
    in its own topic as in the two others.
    """
    labels, topics = 12, 3
    kinds = ("abc", "parity ab", "a", "parity bc", "abc", "b", "c", "abc", "a", "b", "abc", "c")
    seen: list[list[int]] = [[], [], []]
    strength: list[list[float]] = [[], [], []]
    label_bits: list[tuple[int, ...]] = []
    bit = 0
    for kind in kinds:
        members = kind.split()[-1]
        if kind.startswith("parity"):
            label_bits.append((bit, bit + 1))
            shown = [(members[0], bit, paired), (members[0], bit + 1, faint)]
            shown += [(members[1], bit, faint), (members[1], bit + 1, paired)]
        else:
            label_bits.append((bit,))
            shown = [(member, bit, shared if len(members) > 1 else own) for member in members]
        for member, b, loud in shown:
            seen["abc".index(member)].append(b)
            strength["abc".index(member)].append(loud)
        bit += len(label_bits[-1])
    frequency = [0.5 * (0.02 / 0.5) ** (label / (labels - 1)) for label in range(labels)]
    rates = tuple(
        tuple(f * (1.8 if label % topics == topic else 0.6) for label, f in enumerate(frequency))
        for topic in range(topics)
    )
    return TopicLaw(tuple(map(tuple, seen)), tuple(map(tuple, strength)), tuple(label_bits), rates)
