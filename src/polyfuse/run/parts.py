"""What `polyfuse list` prints."""

import inspect
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

        return {name: _first_line(part) for name, part in MODELS.items()}
    if kind == "studies":
        from polyfuse.studies.registry import STUDIES

        return {name: study.title for name, study in STUDIES.items()}
    from polyfuse.data.packages import FETCHABLE

    wanted = "data" if kind == "datasets" else "weights"
    return {name: source.about for name, source in FETCHABLE.items() if source.kind == wanted}


def _first_line(part: Any) -> str:
    return (inspect.getdoc(part) or "").partition("\n")[0]
