"""Write `configuration.md`, the page of every setting, from the config's own descriptions.

Run: ``python docs/make_configuration.py``. A test compares the page with what this makes.
"""

from itertools import groupby
from pathlib import Path

from polyfuse.config import EncoderConfig, RunConfig, describe
from polyfuse.data.schema import ModalityConfig

HEAD = """# Every setting

Made by `python docs/make_configuration.py` from the descriptions in the code. Settings live in a YAML file and can be
overridden on the command line by their dotted name: `polyfuse train config.yaml train.lr=1e-3 model.fusion=gated`.
A misspelt name or a value that breaks a rule is an error that names the nearest known one.
"""


def table(title: str, rows: list[tuple[str, str, str]]) -> str:
    """One section."""
    lines = [f"## {title}\n", "| setting | default | what it is |", "|---|---|---|"]
    for key, default, description in rows:
        cells = (f"`{key}`", f"`{default}`", description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for part, rows in groupby(describe(RunConfig), key=lambda row: row[0].partition(".")[0]):
        parts.append(table(part, list(rows)))
        if part == "data":
            parts.append(table("One modality", describe(ModalityConfig, "data.modalities.NAME.")))
        if part == "model":
            parts.append(table("The encoder of one modality", describe(EncoderConfig, "model.encoders.NAME.")))
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(page(), encoding="utf-8")
