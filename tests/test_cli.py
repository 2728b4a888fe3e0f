"""Exit status, the two streams and one sentence for every mistake: what a shell sees."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyfuse import cli

TABLE = "a,b,y\n" + "".join(
    f"{i / 7:.3f},{'red green' if i % 2 else 'blue'} {i % 5},{'pn'[i % 2]}\n" for i in range(40)
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_the_result_is_on_stdout_and_a_mistake_is_one_line_on_stderr(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["inspect", str(table)]) == 0
    streams = capsys.readouterr()
    assert "inputs:" in streams.out
    assert streams.err == ""
    assert cli.run(["inspect", str(table), "--target", "z"]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "polyfuse: table 't.csv' has no column 'z'; its columns: 'a', 'b', 'y'\n"
    assert cli.run(["inspect"]) == 2
    assert "Missing argument" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line_and_status_1(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(table))

    monkeypatch.setattr("polyfuse.run.inspect.write_text", refuse)
    assert cli.run(["inspect", str(table), "-o", str(table.parent / "c.yaml")]) == 1
    assert capsys.readouterr().err == f"polyfuse: '{table}': Permission denied\n"


def test_an_interrupt_is_130(table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polyfuse.run.inspect.propose", interrupt)
    assert cli.run(["inspect", str(table)]) == 130


def test_a_reader_that_has_enough_is_no_failure(table: Path) -> None:
    for command in (["inspect", str(table)], ["list", "fusions"]):
        process = subprocess.Popen(  # noqa: S603  our own code
            [sys.executable, "-m", "polyfuse", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.close()  # as `head -0` does
        error = process.communicate()[1] if process.stderr else b""
        assert (process.returncode, error) == (0, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="locales and closed streams as Linux has them")
def test_any_locale_any_file_name_and_a_closed_stdout(table: Path) -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # Python prints ASCII
    other = table.parent / "words.csv"
    other.write_text(TABLE.replace("red", "rød").replace(",p", ",東京"), encoding="utf-8")
    command = [sys.executable, "-m", "polyfuse", "inspect", str(other), "--target", "y"]
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], env=plain, capture_output=True)  # noqa: S603  our own code
        assert (done.returncode, done.stderr) == (0, b"")
        assert "東京" in done.stdout.decode("utf-8")
    odd = subprocess.run([*command[:3], "inspect", b"caf\xe9.csv"], capture_output=True)  # noqa: S603  our own code
    assert odd.returncode == 2
    assert odd.stderr.startswith(b"polyfuse: table 'caf\\udce9.csv' does not exist")
    shut = subprocess.run(["/bin/sh", "-c", '"$@" >&-', "sh", *command], capture_output=True)  # noqa: S603  our own code
    assert (shut.returncode, shut.stderr) == (0, b"")


def test_several_targets_and_another_delimiter(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = table.parent / "caret.csv"
    other.write_text("a^one^two\n" + "".join(f"{i / 7:.3f}^{i % 2}^{i % 3 % 2}\n" for i in range(40)))
    assert cli.run(["inspect", str(other), "--delimiter", "^", "--target", "one", "--target", "two"]) == 0
    text = capsys.readouterr().out
    assert "target: one, two (multilabel)" in text
    assert "delimiter: ^" in text
    assert cli.run(["inspect", str(other), "--delimiter", "^^"]) == 2
    assert "delimiter" in capsys.readouterr().err


def test_what_can_be_fetched_is_listed_where_it_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    for group, kind in (("weights", "weights"), ("data", "datasets")):
        assert cli.run([group, "list"]) == cli.run(["list", kind]) == 0
        out = capsys.readouterr().out
        assert out[: len(out) // 2] == out[len(out) // 2 :] != ""


@pytest.mark.parametrize("kind", ["fusions", "encoders", "models", "datasets", "studies", "weights"])
@pytest.mark.parametrize("columns", [80, 120])
def test_lists_fit_the_terminal_and_show_no_markup(
    kind: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.run(["list", kind]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert "``" not in out
    assert cli.run(["list", kind, "--json"]) == 0
    names = list(json.loads(capsys.readouterr().out))
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == names


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polyfuse.data.inspect", None)  # what `import` says of our own is a defect of ours
    monkeypatch.delitem(sys.modules, "polyfuse.run.inspect", raising=False)
    with pytest.raises(ModuleNotFoundError):
        cli.run(["inspect", str(table)])

    def lack(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'pyarrow.csv'", name="pyarrow.csv")

    monkeypatch.setattr("polyfuse.run.list_parts", lack)
    assert cli.run(["list", "fusions"]) == 2
    wanted = "polyfuse: this needs the package 'pyarrow': pip install 'polyfuse[workbench]'\n"
    assert capsys.readouterr().err == wanted
