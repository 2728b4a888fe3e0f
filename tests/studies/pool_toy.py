"""Jobs that worker processes can import."""

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Task:
    """A job of the pool that ends its process, or gives its number."""

    number: int
    deadly: bool = False

    @property
    def urgency(self) -> tuple[float, ...]:
        return (self.number,)

    def run(self) -> str:
        if self.deadly:
            os._exit(7)
        return f"{self.number} in {torch.get_num_threads()} thread"

    def died(self, status: int | None) -> str:
        return f"{self.number} died with {status}"
