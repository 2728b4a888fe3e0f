"""The feature cache: what is computed once, what is never mixed up, what survives."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyfuse.encoders.features import FrozenFeatures, content_key, digest_of


class Letters:
    """A network of three features: length, first character, weights."""

    name = "letters"
    width = 3
    size: int | None = None

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.weights_digest = f"digest of {weight}"

    def compute(self, items: Sequence[Any]) -> np.ndarray:
        return np.array([[len(item), ord(item[0]), self.weight] for item in items], dtype=np.float32)


def words(n: int, start: int = 0) -> list[str]:
    return [chr(97 + i % 26) * (1 + i) for i in range(start, start + n)]


def expected(items: Sequence[str], weight: float = 1.0) -> np.ndarray:
    return Letters(weight).compute(items)


def test_features_come_in_the_order_of_the_items_and_are_computed_once(tmp_path: Path) -> None:
    items = words(37)
    shuffled = [items[i] for i in np.random.default_rng(0).integers(0, 37, size=100)]
    features = FrozenFeatures(Letters(), folder=tmp_path)
    np.testing.assert_array_equal(features(shuffled), expected(shuffled))
    assert features.computed == len(set(shuffled))
    features(shuffled)
    assert features.computed == len(set(shuffled))


def test_a_second_process_finds_them_and_computes_the_rest(tmp_path: Path) -> None:
    first, second = FrozenFeatures(Letters(), folder=tmp_path), FrozenFeatures(Letters(), folder=tmp_path)
    assert second([]).shape == (0, 3)
    first(words(40))
    items = words(40, start=20)
    np.testing.assert_array_equal(second(items), expected(items))
    assert second.computed == 20


def test_other_weights_have_another_cache(tmp_path: Path) -> None:
    FrozenFeatures(Letters(1.0), folder=tmp_path)(words(20))
    other = FrozenFeatures(Letters(2.0), folder=tmp_path)
    np.testing.assert_array_equal(other(words(20)), expected(words(20), 2.0))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("meets", ["known", "fresh"])
@pytest.mark.parametrize("damage", ["truncate", "garbage", "remove"])
def test_a_damaged_block_is_computed_again_and_mended(tmp_path: Path, damage: str, meets: str) -> None:
    known = FrozenFeatures(Letters(), folder=tmp_path)
    known(words(20))
    (block,) = tmp_path.rglob("*.safetensors")
    if damage == "remove":
        block.unlink()
    else:
        block.write_bytes(block.read_bytes()[:50] if damage == "truncate" else b"\xff" * 300)
    features = known if meets == "known" else FrozenFeatures(Letters(), folder=tmp_path)
    before = features.computed
    np.testing.assert_array_equal(features(words(20)), expected(words(20)))
    assert features.computed == before + 20
    later = FrozenFeatures(Letters(), folder=tmp_path)
    np.testing.assert_array_equal(later(words(20)), expected(words(20)))
    assert later.computed == 0
    assert not list(tmp_path.rglob("*.part"))


def test_a_few_rows_and_no_cache_leave_nothing_behind(tmp_path: Path) -> None:
    FrozenFeatures(Letters(), folder=tmp_path)(words(3))
    FrozenFeatures(Letters(), folder=tmp_path, cache=False)(words(50))
    assert not list(tmp_path.rglob("*"))


def test_many_items_make_several_blocks(tmp_path: Path) -> None:
    items = [f"{i} {'x' * (i % 7)}" for i in range(2100)]
    features = FrozenFeatures(Letters(), folder=tmp_path)
    np.testing.assert_array_equal(features(items), expected(items))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    np.testing.assert_array_equal(FrozenFeatures(Letters(), folder=tmp_path)(items), expected(items))


def test_a_write_that_fails_leaves_no_half_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("polyfuse.encoders.features.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        FrozenFeatures(Letters(), folder=tmp_path)(words(20))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from test_features import FrozenFeatures, Letters, words, expected\n"
        "f = FrozenFeatures(Letters(), folder=Path(sys.argv[2]))\n"
        "for s in range(0, 200, 20): assert (f(words(40, s)) == expected(words(40, s))).all()\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    running = [subprocess.Popen(command) for _ in range(2)]  # noqa: S603 (our own code)
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    features = FrozenFeatures(Letters(), folder=tmp_path)
    np.testing.assert_array_equal(features(words(220)), expected(words(220)))
    assert features.computed == 0


def test_keys_tell_contents_apart() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    keys = [content_key(x) for x in ("", "a", image, image.reshape(6, 4, 3), image + 1)]
    assert len(set(keys)) == 5
    assert content_key(image[:, ::2]) == content_key(image[:, ::2].copy())
    with pytest.raises(TypeError, match="got bytes"):
        content_key(b"a")
    with pytest.raises(TypeError, match=r"got float64 \(4, 6, 3\)"):
        content_key(image.astype(np.float64))


def test_digest_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    both = digest_of([tmp_path / "b", tmp_path / "a"])
    assert both == digest_of([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b").write_bytes(b"3")
    assert digest_of([tmp_path / "a", tmp_path / "b"]) != both
