"""Parts of a page that a script writes: what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""

from pathlib import Path


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of ``name``.

    Raises:
        SystemExit: If the page has no such marks.
    """
    mark, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(mark)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"{page.name} has no place for '{name}': {mark.strip()} and {end}")
    page.write_text(f"{before}{mark}{text}\n{end}{after}", encoding="utf-8")
