"""`polyfuse match`: pictures and texts through a small matcher made here, the command line, and what goes wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyfuse.cli import run
from polyfuse.encoders.matching import MATCHER_SETTINGS, ink, word_ids
from polyfuse.errors import UserError
from polyfuse.models.dual_encoder import DualEncoder
from polyfuse.run import match_files

WORDS = ("bar", "dot", "tall", "wide")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = DualEncoder(image_size=16, channels=(3, 5), vocab_size=len(WORDS) + 1, embed_dim=7)
    where = model.save_pretrained(tmp_path_factory.mktemp("matcher"))
    (where / MATCHER_SETTINGS).write_text(json.dumps({"name": "toy", "side": 16, "vocabulary": list(WORDS)}))
    return where


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, box in (("tall", (7, 1, 9, 15)), ("wide", (1, 7, 15, 9))):
        image = Image.new("RGB", (16, 16), "white")
        image.paste((0, 0, 0), box)
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "tall.png").read_bytes()[:60])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a picture, not looked at")
    return tmp_path


def test_probabilities_are_the_softmax_of_scaled_cosines(folder: Path, pictures: Path) -> None:
    found = match_files([pictures], ["tall bar", "wide bar"], model=str(folder))
    assert [Path(name).name for name in found.images] == ["tall.png", "wide.png"]
    model = DualEncoder.from_pretrained(folder)
    pixels = ink(np.stack([np.asarray(Image.open(pictures / f"{name}.png")) for name in ("tall", "wide")]))
    ids = word_ids(["tall bar", "wide bar"], {word: row + 1 for row, word in enumerate(WORDS)})
    with torch.no_grad():
        logits = model(pixels, ids).logits_per_image
    np.testing.assert_allclose(found.probabilities, logits.softmax(dim=1).numpy(), atol=1e-5)
    assert not np.allclose(found.cosines[0], found.cosines[1])


def test_what_cannot_be_read_is_named_and_the_rest_answered(folder: Path, pictures: Path) -> None:
    told: list[str] = []
    found = match_files([pictures, pictures / "gone.png"], ["dot"], model=str(folder), say=told.append)
    reasons = {Path(name).name: reason for name, reason in found.unreadable}
    assert set(reasons) == {"torn.png", "empty.jpg", "gone.png"}
    assert reasons["empty.jpg"] == "zero bytes"
    assert reasons["gone.png"] == "missing file"
    assert len(found.images) == 2
    assert len(told) == 3


def test_a_text_does_not_depend_on_its_neighbours(folder: Path, pictures: Path) -> None:
    alone = match_files([pictures / "tall.png"], ["bar"], model=str(folder))
    among = match_files([pictures / "tall.png"], ["bar", "wide tall dot bar", "dot"], model=str(folder))
    np.testing.assert_allclose(among.cosines[:, :1], alone.cosines, atol=1e-6)


def test_the_command_line_takes_several_values(
    folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(pictures / "tall.png"), str(pictures / "wide.png")]
    command = ["match", "--images", *files, "--texts", "tall bar", "wide bar", "--model", str(folder), "--json"]
    assert run(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in result["images"]] == files
    assert result["texts"] == ["tall bar", "wide bar"]
    assert sum(result["images"][0]["probabilities"]) == pytest.approx(1)


def test_the_text_fits_a_terminal(folder: Path, pictures: Path) -> None:
    text = match_files([pictures / "tall.png"], list(WORDS), model=str(folder)).text(top=2)
    assert "2 others" in text
    assert "%  1 other\n" in match_files([pictures / "tall.png"], list(WORDS), model=str(folder)).text(top=3)
    assert "model: toy, cosines times 14.3" in text


def test_nothing_readable_is_a_failure(folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["match", "--images", str(pictures / "torn.png"), "--texts", "dot", "--model", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "torn.png: truncated" in err
    assert out.startswith("not readable: 1\n")
    assert "model:" not in out


def test_words_that_the_model_does_not_know_are_named(folder: Path, pictures: Path) -> None:
    told: list[str] = []
    match_files([pictures / "tall.png"], ["tall bar", "a Wide-ish bar"], model=str(folder), say=told.append)
    assert told == ["match: toy does not know 'a', 'ish' of 'a Wide-ish bar' and leaves it out"]


@pytest.mark.parametrize(
    ("images", "texts", "model", "message"),
    [
        (["tall.png"], [" "], None, "at least one text that is not empty"),
        ([], ["dot"], None, "no pictures in"),
        (["tall.png"], ["dot"], "nowhere", "a folder of weights, or one of clipart, glyphs; got 'nowhere'"),
    ],
)
def test_misuse_is_refused(
    pictures: Path, images: list[str], texts: list[str], model: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        match_files([pictures / name for name in images], texts, model=model)


def test_ink_is_what_differs_from_the_border() -> None:
    dark = np.zeros((1, 5, 5, 3), dtype=np.uint8)
    dark[:, 2, 2] = 255
    torch.testing.assert_close(ink(dark), ink(255 - dark))
    assert ink(dark)[0, 0].sum() == 1


def test_a_clip_folder_answers_with_its_own_settings(pictures: Path, tmp_path: Path) -> None:
    from polyfuse.data.clip_image import ImageSettings
    from polyfuse.data.clip_text import tokenizer_from_merges
    from polyfuse.models.clip import clip_tiny
    from polyfuse.models.clip_folder import ClipFolder, save_clip_folder

    merges = tmp_path / "merges"
    merges.write_text("#version\nc a\nca t</w>\n")
    tokens = tokenizer_from_merges(merges, context_length=16, vocab_size=514)
    torch.manual_seed(0)
    model = clip_tiny(vocab_size=516, activation="gelu").eval()
    settings = ImageSettings(size=32, interpolation="bilinear")
    where = save_clip_folder(ClipFolder(model, settings, tokens, "polyfuse", tmp_path), tmp_path / "clip")
    found = match_files([pictures / "tall.png"], ["a cat", "two dogs"], model=str(where))
    with torch.no_grad():
        logits = model(settings([pictures / "tall.png"]), tokens(["a cat", "two dogs"])).logits_per_image
    np.testing.assert_allclose(found.probabilities, logits.softmax(dim=1).numpy(), atol=1e-5)
    assert found.model.startswith("CLIP in ")
