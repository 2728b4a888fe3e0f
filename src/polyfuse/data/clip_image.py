"""Images as CLIP and its kin were trained on them: resize the short side, crop the centre, scale, normalise.

Shapes: N images, S side in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from polyfuse.data.codecs_image import read_image, strict_pil, to_rgb
from polyfuse.data.problems import Broken

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_METHODS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_LONGEST = 16  # times the short side: what is cropped away anyway is not resized beyond that


@dataclass(frozen=True)
class ImageSettings:
    """How pixels are made; the defaults are CLIP's at 224 pixels. MobileCLIP: bilinear, mean 0, std 1.

    Transparency is put on white and the EXIF orientation applied, for every checkpoint alike. (The originals drop
    transparency and orientation, so that a cut-out drawing shows whatever colour hides behind it.)

    Attributes:
        size: Side S of the result.
        resize: Length of the short side before the crop; None = ``size``.
        interpolation: ``bicubic``, ``bilinear``, ``lanczos`` or ``nearest``, with antialiasing.
        mode: ``shortest`` keeps proportions and crops the centre; ``squash`` makes a square of the whole image.
        round_crop: Whether the crop's corner is rounded to the nearest pixel (torchvision, as OpenAI and open_clip
            use) or down (transformers).
        scale: Factor of the bytes.
        mean: Per colour, subtracted.
        std: Per colour, divided by.
    """

    size: int = 224
    resize: int | None = None
    interpolation: str = "bicubic"
    mode: str = "shortest"
    round_crop: bool = True
    scale: float = 1 / 255
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.size < 1 or (self.resize is not None and self.resize < self.size):
            raise ValueError(f"size must be at least 1 and resize at least size, got {self.size} and {self.resize}")
        if self.interpolation not in _METHODS:
            raise ValueError(f"interpolation must be one of {', '.join(_METHODS)}, got {self.interpolation!r}")
        if self.mode not in ("shortest", "squash"):
            raise ValueError(f"mode must be 'shortest' or 'squash', got {self.mode!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(self.std):
            raise ValueError(f"mean and std must be three numbers, std not 0, got {self.mean} and {self.std}")

    def __call__(self, images: Sequence[Any]) -> Tensor:
        """``(N, 3, S, S)`` float32 of N images (see ``pixels``)."""
        if not len(images):
            return torch.zeros(0, 3, self.size, self.size)
        return torch.stack([self.pixels(image) for image in images])

    def pixels(self, image: Any) -> Tensor:
        """``(3, S, S)`` float32.

        Args:
            image: A path, the bytes of a file, a PIL image, or an array ``(H, W, 3)`` or ``(H, W)`` of bytes.

        Raises:
            Broken: If a file cannot be read as an image, with the reason.
            TypeError: If it is none of these.
        """
        if isinstance(image, (str, Path, bytes)):
            if not isinstance(image, bytes) and not Path(image).is_file():
                raise Broken("directory" if Path(image).is_dir() else "missing file", str(image))
            with strict_pil():
                bytes_HWC = read_image(image if isinstance(image, bytes) else str(image), then=self.crop)
        elif isinstance(image, Image.Image):
            bytes_HWC = self.crop(to_rgb(ImageOps.exif_transpose(image)))
        elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
            bytes_HWC = self.crop(to_rgb(Image.fromarray(image)))
        else:
            kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"an image is a path, bytes, a PIL image or a uint8 array (H, W[, 3]), got {kind}")
        x_CHW = torch.from_numpy(bytes_HWC.copy()).permute(2, 0, 1).float() * self.scale
        return (x_CHW - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def crop(self, image: Image.Image) -> np.ndarray:
        """The square that is seen, uint8 ``(S, S, 3)``, of an RGB image."""
        method, side = _METHODS[self.interpolation], self.size if self.resize is None else self.resize
        if self.mode == "squash":
            return np.asarray(image.resize((self.size, self.size), method))
        image = _without_ends(image)
        short = min(image.size)
        width, height = (int(side * length / short) for length in image.size)
        image = image.resize((width, height), method) if image.size != (width, height) else image
        left, top = ((length - self.size) / 2 for length in (width, height))
        left, top = (round(left), round(top)) if self.round_crop else (int(left), int(top))
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


def _without_ends(image: Image.Image) -> Image.Image:
    """The middle of a very long image: resized whole, a line of pixels would fill the memory."""
    width, height = image.size
    most = _LONGEST * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def settings_from_open_clip(config: Mapping[str, Any], *, size: int) -> ImageSettings:
    """From ``preprocess_cfg`` of ``open_clip_config.json``; what it does not say is OpenAI's.

    Raises:
        ValueError: If it asks for what is not offered.
    """
    wanted = config.get("size", size)
    wanted = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
    if len(set(wanted)) != 1:
        raise ValueError(f"preprocess_cfg.size must be a square, got {wanted}")
    mode = config.get("resize_mode", "shortest")
    if mode == "longest":
        raise ValueError("preprocess_cfg.resize_mode must be 'shortest' or 'squash', got 'longest'")
    return ImageSettings(
        size=wanted[0],
        interpolation=config.get("interpolation", "bicubic"),
        mode=mode,
        mean=tuple(config.get("mean", CLIP_MEAN)),
        std=tuple(config.get("std", CLIP_STD)),
    )


def settings_from_hf(config: Mapping[str, Any], *, size: int) -> ImageSettings:
    """From ``preprocessor_config.json`` of Hugging Face; what it does not say is CLIP's.

    Raises:
        ValueError: If it asks for what is not offered.
    """
    crops, resizes = config.get("do_center_crop", True), config.get("do_resize", True)
    resize = _side(config.get("size", size), "size")
    crop = _side(config.get("crop_size", size), "crop_size")
    squash = isinstance(config.get("size"), Mapping) and "height" in config["size"]
    if not resizes:
        raise ValueError("do_resize must be true, got false: images would have to come in one size")
    if squash and crops and resize != crop:
        raise ValueError(f"size as height and width must equal crop_size, got {resize} and {crop}")
    if not crops and not squash:
        raise ValueError("do_center_crop must be true where size is the shortest edge, got false")
    methods = {int(method): name for name, method in _METHODS.items()}
    resample = config.get("resample", 3)
    if resample not in methods:
        raise ValueError(f"resample must be one of {sorted(methods)}, got {resample}")
    normalises = config.get("do_normalize", True)
    return ImageSettings(
        size=resize if squash else crop,
        resize=None if squash else resize,
        interpolation=methods[resample],
        mode="squash" if squash else "shortest",
        round_crop=False,
        scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
        mean=tuple(config.get("image_mean", CLIP_MEAN)) if normalises else (0.0, 0.0, 0.0),
        std=tuple(config.get("image_std", CLIP_STD)) if normalises else (1.0, 1.0, 1.0),
    )


def _side(value: Any, name: str) -> int:
    """One number out of the forms that Hugging Face has used for it."""
    if isinstance(value, Mapping):
        sides = {int(value[key]) for key in ("shortest_edge", "height", "width") if value.get(key) is not None}
        if len(sides) != 1 or "longest_edge" in value:
            raise ValueError(f"{name} must be one side in pixels, got {dict(value)}")
        return sides.pop()
    return int(value)
