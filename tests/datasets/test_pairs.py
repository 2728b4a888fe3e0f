"""Pictures with words: glyphs are made here; the fetched sets are tested where their files are."""

from pathlib import Path

import numpy as np
import pytest

from polyfuse.data.fetch import path_of
from polyfuse.datasets.glyphs import glyph_pairs, name_of
from polyfuse.datasets.openclipart import draw, read_entry, words_of
from polyfuse.datasets.pairs import TEST, TRAIN, ImageTextPairs, load_pairs, same_words
from polyfuse.errors import UserError

DRAWING = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:cc="http://web.resource.org/cc/" width="30mm" height="20pt">
<metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title>
<dc:subject><rdf:Bag><rdf:li>hash</rdf:li><rdf:li>wild_animal</rdf:li></rdf:Bag></dc:subject>
<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>
<rect x="2" y="2" width="80" height="18" fill="#c00"/></svg>"""
FREE = "http://web.resource.org/cc/PublicDomain"


@pytest.fixture(scope="module")
def glyphs() -> ImageTextPairs:
    return glyph_pairs(side=16)


def test_glyphs_are_what_the_fonts_hold(glyphs: ImageTextPairs) -> None:
    assert len(glyphs.ids) == len(set(glyphs.ids)) == len(glyphs.texts) == len(glyphs.images)
    assert len(set(glyphs.groups)) > 5000
    row = glyphs.ids.index("0113 DejaVuSerif")
    assert glyphs.texts[row] == "latin small letter e with macron"
    assert glyphs.images.shape[1:] == (16, 16)
    assert glyphs.images[row].max() > 128  # there is ink
    assert glyphs.images[row][0].max() == 0  # and room above it


def test_no_character_crosses_parts(glyphs: ImageTextPairs) -> None:
    parts: dict[str, set[int]] = {}
    for group, part in zip(glyphs.groups, glyphs.part.tolist(), strict=True):
        parts.setdefault(group, set()).add(part)
    assert all(len(found) == 1 for found in parts.values())
    assert len(glyphs.rows(TEST)) == pytest.approx(0.2 * len(glyphs.ids), rel=0.02)
    assert len(glyphs.rows(TRAIN)) == pytest.approx(0.75 * len(glyphs.ids), rel=0.02)


def test_names_that_are_left_out() -> None:
    assert name_of(ord("⠓")) is None  # Braille
    assert name_of(ord("\t")) is None
    assert name_of(ord("→")) == "rightwards arrow"


def test_equal_texts_get_equal_numbers() -> None:
    assert same_words(["A  cat", "dog", "a cat"]).tolist() == [0, 1, 0]


def test_unknown_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="unknown set of pairs 'glyph'; did you mean 'glyphs'"):
        load_pairs("glyph")


def test_a_drawing_and_its_words(tmp_path: Path) -> None:
    path = tmp_path / "animals" / "fox.svg"
    path.parent.mkdir()
    path.write_text(DRAWING.format(title="Red_Fox 01", licence=FREE))
    entry = read_entry(tmp_path, path)
    assert entry is not None
    assert entry["title"] == "red fox"
    assert entry["tags"] == ["wild animal"]
    picture = draw(path, 24)  # a size in millimetres and points
    assert picture is not None
    assert picture.shape == (24, 24, 3)
    red = (picture[..., 0].astype(int) - picture[..., 1]) > 100
    assert 0.05 < red.mean() < 0.6


@pytest.mark.parametrize(
    ("title", "licence"), [("42", FREE), ("", FREE), ("fox", "http://example.org/all-rights-reserved")]
)
def test_drawings_that_are_not_taken(tmp_path: Path, title: str, licence: str) -> None:
    path = tmp_path / "fox.svg"
    path.write_text(DRAWING.format(title=title, licence=licence))
    assert read_entry(tmp_path, path) is None


def test_what_cannot_be_drawn_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (tmp_path / "broken.svg").write_text("<svg")
    assert draw(tmp_path / "empty.svg", 8) is None
    assert draw(tmp_path / "broken.svg", 8) is None


def test_words_keep_hyphens_and_apostrophes() -> None:
    assert words_of("Jack-o'-Lantern, d'art") == "jack-o lantern d'art"


@pytest.mark.skipif(path_of("openclipart") is None, reason="needs: polyfuse data fetch openclipart")
def test_open_clip_art_has_no_title_in_two_parts() -> None:
    pairs = load_pairs("openclipart")
    assert len(pairs.ids) > 2400
    train, test = ({pairs.groups[i] for i in pairs.rows(part)} for part in (TRAIN, TEST))
    assert not train & test
    assert len(np.unique(pairs.images.reshape(len(pairs.ids), -1), axis=0)) == len(pairs.ids)
