"""Videos: files, animations, archives and folders of frames to uint8 frames with their times."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, decode_cells, find_file, source_of
from polyfuse.data.frames import MOST_FRAMES, Frames, choose, frames_of_pictures
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec
from polyfuse.data.stamps import offsets_of
from polyfuse.data.video import read_frames

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def folder_frames(folder: str, reading: Reading, codec: "VideoCodec") -> Frames:
    """The chosen pictures of a folder, in the order of their names; ``times.txt`` may hold one time a line, in seconds.

    Raises:
        Broken: ``directory`` if it holds no picture, ``wrong shape`` if the times do not fit, else as an image.
    """
    root = os.path.join(reading.root or "/", folder)
    names = sorted(name for name in os.listdir(root) if name.lower().endswith(_PICTURES))
    if not names:
        raise Broken("directory", "no pictures in it")
    if len(names) > MOST_FRAMES:
        raise Broken("too large", f"{len(names)} pictures")
    times = np.arange(len(names)) / codec.frame_rate
    if "times.txt" in os.listdir(root):
        with open(find_file(os.path.join(folder, "times.txt"), reading), encoding="utf-8") as file:
            text = file.read(64 * MOST_FRAMES).split()
        try:
            times = np.array([float(word) for word in text])
        except ValueError:
            raise Broken("undecodable", "times.txt holds a word") from None
        if len(times) != len(names) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise Broken(
                "wrong shape", f"{len(names)} pictures need as many ascending times, times.txt has {len(times)}"
            )
    index = choose(times, codec.frames, codec.seconds)
    paths = [find_file(os.path.join(folder, names[i]), reading) for i in index]
    return frames_of_pictures(paths, times[index], codec.size, codec.fit_mode, reading.max_pixels)


@dataclass
class VideoCodec(Codec):
    """Paths or bytes to ``{"frames": uint8 (B, F, 3, S, S), "times": float32 (B, F), "mask": bool (B, F)}``."""

    frames: int = 8
    size: int = 64
    fit_mode: str = "crop"
    seconds: float | None = None
    frame_rate: float = 25.0
    offset: float | str | None = None
    type: ClassVar[str] = "video"

    @property
    def spec(self) -> ModalitySpec:
        """Frames and their side."""
        return ModalitySpec(self.name, "video", {"frames": self.frames, "size": self.size})

    @classmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "VideoCodec | None":
        """Nothing to learn; None if no training cell is filled."""
        if not any(cell is not None for cells in train() for cell in cells[0]):
            return None
        return cls(
            name,
            config.all_columns,
            frames=config.frames,
            size=config.size,
            fit_mode=config.fit,
            seconds=config.seconds,
            frame_rate=config.frame_rate,
            offset=config.offset,
        )

    def decode(self, cell: Any, reading: Reading) -> Frames:
        """One cell's frames.

        Raises:
            Broken: If it cannot be used.
        """
        try:
            source = source_of(cell, reading)
        except Broken as broken:
            if broken.kind != "directory":
                raise
            return folder_frames(cell["path"] if isinstance(cell, dict) else cell, reading, self)
        return read_frames(
            source, self.frames, self.size, fit=self.fit_mode, seconds=self.seconds, max_pixels=reading.max_pixels
        )

    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Decode every file."""
        clips, problems = decode_cells(cells[0], lambda cell: self.decode(cell, reading), reading.pool)
        shifts = offsets_of(cells, self.columns, self.offset)
        out = self.zeros(len(clips))
        present = np.zeros(len(clips), dtype=bool)
        for i, clip in enumerate(clips):
            if clip is None:
                continue
            if np.isnan(shifts[i]):
                problems.append((i, "no time", "its offset is empty or no number"))
                continue
            count = len(clip.times)
            out["frames"][i, :count] = clip.frames.transpose(0, 3, 1, 2)
            out["times"][i, :count] = clip.times + shifts[i]
            out["mask"][i, :count] = present[i] = True
        return Encoding(out, present, sorted(problems))

    def state(self) -> dict[str, Any]:
        """What the schema says."""
        keys = ("frames", "size", "fit_mode", "seconds", "frame_rate", "offset")
        return {key: getattr(self, key) for key in keys}
