"""Which objective a step trains, on which rows: a function of (seed, step), with no state to save.

Shapes: N rows of a task, B rows of a step.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from polyfuse.data.keyed import permutation, uniform

MIXINGS = ("sum", "sample")


class TaskStream:
    """The tasks of every step, and the rows of every task.

    ``sum``: every step trains every task. ``sample``: one task per step, drawn in proportion to its weight. Source:
    UNITER, https://arxiv.org/abs/1909.11740, section 3 ("we randomly sample one task for each mini-batch").

    A task walks through its rows in a new order every epoch. A batch that reaches the end of an epoch is filled from
    the next one: every step has B rows (a contrastive loss of the two that were left over would say little), and no
    row is skipped. Tasks with the same rows see the same rows at a step, in ``sum``.

    Args:
        rows: Row numbers of each task.
        weights: Of each task.
        mixing: "sum" or "sample".
        batch_size: B; a task with fewer rows takes all of them.
        steps: Of the whole run.
        seed: Of every draw.

    Raises:
        ValueError: If the mixing is unknown, a task has no rows, or the weights are not positive.

    Example:
        >>> stream = TaskStream({"a": np.arange(5)}, {"a": 1.0}, "sum", batch_size=3, steps=4, seed=0)
        >>> sorted(np.concatenate([stream.rows("a", turn) for turn in range(5)])) == sorted([*range(5)] * 3)
        True
    """

    def __init__(
        self,
        rows: Mapping[str, np.ndarray],
        weights: Mapping[str, float],
        mixing: str,
        *,
        batch_size: int,
        steps: int,
        seed: int,
    ) -> None:
        if mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}, got {mixing!r}")
        if not rows:
            raise ValueError("there must be a task at least, got none")
        for name, numbers in rows.items():
            if len(numbers) == 0:
                raise ValueError(f"task '{name}' has no rows")
            if not weights[name] > 0:
                raise ValueError(f"the weight of task '{name}' must be above 0, got {weights[name]}")
        self.names, self.batch_size, self.seed = tuple(rows), batch_size, seed
        self._rows = {name: np.asarray(numbers) for name, numbers in rows.items()}
        self._orders: dict[str, dict[int, np.ndarray]] = {name: {} for name in rows}
        self._drawn: np.ndarray | None = None
        if mixing == "sample":
            self._drawn, self._turn = _plan([weights[name] for name in rows], steps, seed)

    def turns(self, step: int) -> list[tuple[str, int]]:
        """The tasks of a step, and how many steps each had before it."""
        if self._drawn is None:
            return [(name, step) for name in self.names]
        return [(self.names[int(self._drawn[step])], int(self._turn[step]))]

    def rows(self, name: str, turn: int) -> np.ndarray:
        """Row numbers of a task's step number ``turn``."""
        numbers = self._rows[name]
        size = min(self.batch_size, len(numbers))
        places = np.arange(turn * size, (turn + 1) * size)
        first, last = places[0] // len(numbers), places[-1] // len(numbers)
        orders = [self._order(name, int(epoch)) for epoch in range(first, last + 1)]
        return numbers[np.concatenate(orders)[places - first * len(numbers)]]

    def epochs(self, name: str, steps: int) -> float:
        """How often a task has gone through its rows after ``steps`` steps of the run."""
        turns = steps if self._drawn is None else int((self._drawn[:steps] == self.names.index(name)).sum())
        return turns * min(self.batch_size, len(self._rows[name])) / len(self._rows[name])

    def _order(self, name: str, epoch: int) -> np.ndarray:
        known = self._orders[name]
        if epoch not in known:
            order = permutation(self.seed, "task rows", epoch, len(self._rows[name])).numpy()
            # Two epochs are in use at most, where a batch reaches from one into the next.
            self._orders[name] = known = {**{k: v for k, v in known.items() if k == epoch - 1}, epoch: order}
        return known[epoch]


def _plan(weights: Sequence[float], steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``(steps,)``: which task each step draws, and how many earlier steps drew the same one."""
    draws = uniform(seed, "task", 0, torch.arange(steps), 1)[:, 0].double().numpy()
    edges = np.cumsum(np.asarray(weights, dtype=np.float64))
    drawn = np.minimum(np.searchsorted(edges / edges[-1], draws, side="right"), len(weights) - 1)
    turn = np.zeros(steps, dtype=np.int64)
    for task in range(len(weights)):
        mine = drawn == task
        turn[mine] = np.arange(int(mine.sum()))
    return drawn, turn
