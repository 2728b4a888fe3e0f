"""The shipped emoji set: what its rules promise, read from the shipped files; no network."""

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from polyfuse.data import emoji, emoji_build
from polyfuse.data.emoji import CLASSES, MODALITIES, SPLITS, EmojiTables, load_emoji, write_table
from polyfuse.errors import UserError


@pytest.fixture(scope="module")
def tables() -> EmojiTables:
    return load_emoji()


def test_no_concept_is_in_two_splits() -> None:
    splits = defaultdict(set)
    for row in emoji_build.read_rows():
        splits[row["concept"]].add(row["split"])
        assert row["concept"] == emoji_build.concept_of(row["hexcode"])
    assert {len(found) for found in splits.values()} == {1}
    shares = Counter(next(iter(found)) for found in splits.values())
    for split, share in emoji_build.SHARES.items():
        assert shares[split] / len(splits) == pytest.approx(share, abs=0.01)


def test_man_woman_and_direction_are_one_concept() -> None:
    rows = {row["hexcode"]: row for row in emoji_build.read_rows()}
    judges = [
        rows[code]["concept"] for code in ("1f9d1-200d-2696-fe0f", "1f468-200d-2696-fe0f", "1f469-200d-2696-fe0f")
    ]
    assert len(set(judges)) == 1
    assert emoji_build.concept_of("1F3C3-200D-27A1-FE0F") == emoji_build.concept_of("1F3C3")


def test_no_name_carries_a_word_that_announces_its_class() -> None:
    rows = emoji_build.read_rows()
    removed = json.loads((emoji_build.ASSETS / "words.json").read_text(encoding="utf-8"))
    assert {"flag"} <= set(removed["en"])
    assert {"bandera"} <= set(removed["es"])
    for language, column in (("en", "name"), ("es", "name_es")):
        assert not {word for row in rows for word in row[column].split()} & set(removed[language])
        assert all(row[column] == emoji_build.words_of(row[column]) != "" for row in rows)


def test_a_word_is_removed_only_if_common_and_pure() -> None:
    names = ["flag x"] * 97 + ["red x"] * 3
    classes = ["flags"] * 96 + ["objects"] * 4
    found = emoji_build.announcing_words(names, classes)
    assert found == {"x": {"count": 100, "class": "flags"}, "flag": {"count": 97, "class": "flags"}} | {
        "red": {"count": 3, "class": "objects"}
    }
    assert emoji_build.announcing_words(names, ["flags"] * 90 + ["objects"] * 10) == {
        "red": {"count": 3, "class": "objects"}
    }  # 90 of 97 is below 95 %
    assert "rare" not in emoji_build.announcing_words(["rare", *["x"] * 150], ["a", *["b", "c"] * 75])


def test_holes_follow_the_rule_and_nothing_of_an_absent_cell_is_left(tables: EmojiTables) -> None:
    assert bool(tables.test.present.all())
    for batch in (tables.train, tables.validation):
        assert bool(batch.present.any(dim=1).all())
        assert batch.present.float().mean().item() == pytest.approx(0.8, abs=0.02)
        absent = ~batch.present
        picture, name = batch.inputs["picture"], batch.inputs["name_es"]
        assert isinstance(picture, torch.Tensor)
        assert isinstance(name, dict)
        assert not picture[absent[:, 0]].any()
        assert not name["ids"][absent[:, 2]].any()
        assert not name["mask"][absent[:, 2]].any()
        assert bool(name["mask"][batch.present[:, 2]].any(dim=1).all())
    again = load_emoji()
    assert torch.equal(again.train.present, tables.train.present)
    assert not torch.equal(load_emoji(seed=1).train.present, tables.train.present)
    assert bool(load_emoji(missing_rate=0.0).train.present.all())


def test_holes_say_nothing_about_the_class(tables: EmojiTables) -> None:
    assert tables.train.target is not None
    for label in range(len(CLASSES)):
        share = tables.train.present[tables.train.target == label].float().mean().item()
        assert share == pytest.approx(0.8, abs=0.06)


def test_rows_pictures_and_names_belong_together(tables: EmojiTables) -> None:
    """Row i's picture is the tile of row i's emoji in row i's style: checked by name on emoji everybody knows."""
    batch, rows = tables.test, tables.rows["test"]
    assert [f"{row['hexcode']}/{row['style']}" for row in rows] == list(batch.ids or ())
    assert Counter(row["style"] for row in rows) == {"fluent": len(rows) // 2, "twemoji": len(rows) // 2}
    table = emoji_build.read_rows()
    picture = batch.inputs["picture"]
    assert isinstance(picture, torch.Tensor)
    for i in (0, 101, len(rows) - 1):
        number = [row["hexcode"] for row in table].index(rows[i]["hexcode"])
        art = emoji_build.read_art(rows[i]["style"], len(table))[number]
        assert torch.equal(picture[i], torch.from_numpy(art).permute(2, 0, 1))
        assert batch.target is not None
        assert CLASSES[int(batch.target[i])] == rows[i]["class"]
    heart = next(i for i, row in enumerate(table) if row["name"] == "red heart")
    for style in emoji_build.STYLES:
        centre = emoji_build.read_art(style, len(table))[heart][14:18, 14:18].reshape(-1, 3).mean(axis=0)
        assert centre[0] > 150 > 100 > centre[1]  # red


def test_specs_fit_the_batches(tables: EmojiTables) -> None:
    assert tuple(tables.specs) == MODALITIES == tables.train.modalities
    for name in ("name", "name_es"):
        options = tables.specs[name].options
        for split in SPLITS:
            value = getattr(tables, split).inputs[name]
            assert int(value["ids"].max()) < options["vocab_size"]
            assert value["ids"].shape[1] == options["max_length"]
    for split in SPLITS:
        assert len(tables.groups[split]) == len(getattr(tables, split)) == len(tables.rows[split])


def test_the_vocabulary_is_fitted_on_training_names_only() -> None:
    train = {row["name"] for row in emoji_build.read_rows() if row["split"] == "train"}
    size = load_emoji().specs["name"].options["vocab_size"]
    assert size == len({piece for name in train for piece in emoji.pieces_of(name)}) + 2


def test_writing_what_was_read_gives_the_same_files(tmp_path: Path) -> None:
    shipped = emoji_build.read()
    small = emoji_build.Built(shipped.rows[:90], {s: a[:90] for s, a in shipped.art.items()}, shipped.words)
    emoji_build.write(small, tmp_path)
    found = emoji_build.compare(small, tmp_path)
    assert found.identical
    assert found.close
    assert found.lines == ["90 emoji, 2 styles: every name, word and pixel is as shipped"]


def test_compare_names_every_kind_of_difference(tmp_path: Path) -> None:
    shipped = emoji_build.read()
    small = emoji_build.Built(shipped.rows[:60], {s: a[:60] for s, a in shipped.art.items()}, shipped.words)
    emoji_build.write(small, tmp_path)
    art = {style: tiles.copy() for style, tiles in small.art.items()}
    art["fluent"][7, 3, 3] ^= 4
    nudged = emoji_build.compare(emoji_build.Built(small.rows, art, small.words), tmp_path)
    assert (nudged.identical, nudged.close) == (False, True)
    assert nudged.lines == ["fluent: 1 of 60 pictures differ, by 4 of 255 at most"]
    art["twemoji"][9] = 255 - art["twemoji"][9]
    assert not emoji_build.compare(emoji_build.Built(small.rows, art, small.words), tmp_path).close
    rows = [{**row, "name": "other"} if i == 2 else row for i, row in enumerate(small.rows)]
    renamed = emoji_build.compare(emoji_build.Built(rows, small.art, small.words), tmp_path)
    assert not renamed.close
    assert renamed.lines == [f"1 emoji with another name, class, concept or split: {rows[2]['hexcode']}"]
    fewer = emoji_build.Built(small.rows[1:], {s: a[1:] for s, a in small.art.items()}, {**small.words, "en": {}})
    lines = emoji_build.compare(fewer, tmp_path).lines
    assert lines == [f"1 emoji only shipped: {small.rows[0]['hexcode']}", "another list of removed words"]


def test_rebuild_without_the_renderer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"'resvg_py': pip install 'polyfuse\[dev\]'"):
        emoji_build.rebuild()


def test_the_written_table_has_its_pictures_and_its_holes(tmp_path: Path) -> None:
    from PIL import Image

    path = write_table(tmp_path / "set", rows=151, missing_rate=0.3)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 151 == len({row["id"] for row in rows})
    files = {str(p.relative_to(path.parent)) for p in (path.parent / "pictures").iterdir()}
    assert {row["picture"] for row in rows} - {""} == files
    with Image.open(path.parent / sorted(files)[0]) as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB")
    for column in ("picture", "name", "name_es", "style"):
        assert sum(not row[column] for row in rows) / 151 == pytest.approx(0.3, abs=0.12)
    for row in rows:
        assert row["category"] in CLASSES
        assert bool(row["style"]) == bool(row["code_points"]) == bool(row["words"])
        assert any(row[column] for column in ("picture", "name", "name_es", "style"))


@pytest.mark.parametrize(("call", "match"), [
    (lambda folder: write_table(folder, rows=0), r"rows must be in 1..3696, got 0"),
    (lambda folder: write_table(folder, missing_rate=1.0), r"missing_rate must be in \[0, 1\), got 1.0"),
    (lambda folder: load_emoji(missing_rate=-0.1), r"missing_rate must be in \[0, 1\), got -0.1"),
])  # fmt: skip
def test_out_of_range_values_are_refused(call, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        call(tmp_path)


def test_every_shipped_file_has_its_licence_and_the_set_is_small() -> None:
    names = {path.name for path in emoji_build.ASSETS.iterdir()}
    assert {"LICENSE-fluent.txt", "LICENSE-twemoji.txt", "LICENSE-emojibase.txt", "LICENSE-unicode.txt"} <= names
    assert "README.md" in names
    assert sum(path.stat().st_size for path in emoji_build.ASSETS.iterdir()) < 2_500_000
