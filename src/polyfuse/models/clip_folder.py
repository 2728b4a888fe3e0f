"""A folder with CLIP or MobileCLIP in it, as it was downloaded: model, preprocessing and tokenizer together.

Layouts: ours, Hugging Face's, open_clip's, OpenAI's names, Apple's.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from polyfuse.errors import UserError
from polyfuse.models.clip import CLIP
from polyfuse.models.clip_original import layout_of, prepared, read_weights
from polyfuse.models.mobileclip import MobileCLIP
from polyfuse.models.pretrained import PretrainedModel

if TYPE_CHECKING:
    from polyfuse.data.clip_image import ImageSettings
    from polyfuse.data.clip_text import ClipTokenizer

#: In this order: safetensors before pickles, a whole model before single towers.
_NAMES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
_HF, _OPEN_CLIP = "config.json", "open_clip_config.json"
_PREPROCESSING, _OURS = "preprocessor_config.json", "image_settings.json"


class ClipFolder(NamedTuple):
    """What a folder held.

    Attributes:
        model: ``CLIP`` or ``MobileCLIP``, in evaluation mode: ``encode_image``, ``encode_text``, ``scale()``.
        images: From paths or pictures to what ``encode_image`` takes.
        texts: From strings to what ``encode_text`` takes, padded to the model's length.
        layout: ``polyfuse``, ``hf``, ``openai``, ``open_clip_custom_text``, ``open_clip`` or ``apple``.
        weights: The file that was read.
    """

    model: PretrainedModel
    images: "ImageSettings"
    texts: "ClipTokenizer"
    layout: str
    weights: Path


def load_clip_folder(folder: str | Path) -> ClipFolder:
    """Read CLIP or MobileCLIP from a local folder, whoever laid it out. Nothing is downloaded.

    The activation, the place where texts are read, image size, resizing, mean and standard deviation come from the
    configs in the folder. Without a config sizes are told from shapes, preprocessing is OpenAI's (Apple's for
    MobileCLIP), and the activation OpenAI's, with a warning. Models trained by open_clip say so in
    ``open_clip_config.json``.

    Raises:
        UserError: If the folder or its vocabulary is missing, or what it holds is not understood, with the reason.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"a folder with weights is needed, got '{folder}'")
    try:
        ours = _json(folder / _HF)
        if ours.get("model") in ("CLIP", "MobileCLIP"):
            model, layout, path = _saved(folder, ours["model"])
        else:
            model, layout, path = _original(folder)
        images = _image_settings(folder, model, layout)
    except (ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{folder}' cannot be loaded: {error}") from None
    from polyfuse.data.clip_text import read_tokenizer

    texts = read_tokenizer(folder, context_length=model.config["context_length"])
    if texts.vocab_size > model.config["vocab_size"]:
        known = model.config["vocab_size"]
        raise UserError(f"the tokenizer for '{folder}' has {texts.vocab_size} ids, the model {known}: not its own")
    return ClipFolder(model, images, texts, layout, path)


def save_clip_folder(found: ClipFolder, folder: str | Path) -> Path:
    """Write model and preprocessing as ``load_clip_folder`` reads them, and the tokenizer as ``tokenizer.json``."""
    folder = found.model.save_pretrained(folder)
    text = json.dumps(dataclasses.asdict(found.images), indent=2)
    (folder / _OURS).write_text(text + "\n", encoding="utf-8")
    found.texts.save(folder / "tokenizer.json")
    return folder


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder.

    Raises:
        UserError: If there is none, or several and none has a usual name.
    """
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    if any(folder.glob("*.index.json")):
        raise UserError(f"'{folder}' holds weights in several parts; join them into one model.safetensors")
    found = sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS)
    safe = [path for path in found if path.suffix == ".safetensors"]
    if len(safe) == 1 or len(found) == 1:
        return (safe or found)[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise UserError(f"'{folder}' must hold one file of weights, got {names}; rename yours to {_NAMES[0]}")
    raise UserError(f"'{folder}' holds no weights: no file ends in {', '.join(_ENDINGS)}")


def _saved(folder: Path, name: str) -> tuple[PretrainedModel, str, Path]:
    kind = CLIP if name == "CLIP" else MobileCLIP
    return kind.from_pretrained(folder), "polyfuse", folder / "model.safetensors"


def _original(folder: Path) -> tuple[PretrainedModel, str, Path]:
    path = weights_in(folder)
    state = prepared(read_weights(path))
    if any(key.startswith(("image_encoder.model.", "visual.trunk.")) for key in state):
        layout = "apple" if any(key.startswith("image_encoder.") for key in state) else "open_clip"
        return MobileCLIP.from_original(state, _mobileclip_config(folder, layout), layout=layout), layout, path
    layout = layout_of(state)
    config = _json(folder / (_HF if layout == "hf" else _OPEN_CLIP)) or (_json(folder / _HF) if layout != "hf" else {})
    return CLIP.from_original(state, config or None, layout=layout), layout, path


def _mobileclip_config(folder: Path, layout: str) -> Mapping[str, Any] | None:
    if layout == "open_clip":
        return _json(folder / _OPEN_CLIP) or None
    described = (_json(path) for path in sorted(folder.glob("*.json")))
    return next((config for config in described if "image_cfg" in config and "text_cfg" in config), None)


def _image_settings(folder: Path, model: PretrainedModel, layout: str) -> "ImageSettings":
    """What the folder says of its images; what it leaves out is its family's usual."""
    from polyfuse.data.clip_image import ImageSettings, settings_from_hf, settings_from_open_clip

    size, ours = model.config["image_size"], _json(folder / _OURS)
    open_clip, hf = _json(folder / _OPEN_CLIP).get("preprocess_cfg"), _json(folder / _PREPROCESSING)
    apple: dict[str, Any] = {"interpolation": "bilinear", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if ours:
        known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in ours.items()}
        settings = ImageSettings(**known)
    elif hf and (layout == "hf" or not open_clip):
        settings = settings_from_hf(hf, size=size)
    elif isinstance(model, MobileCLIP):
        settings = settings_from_open_clip({**apple, **(open_clip or {})}, size=size)
    else:
        settings = settings_from_open_clip(open_clip or {}, size=size)
    if settings.size != size and (isinstance(model, CLIP) or model.config["image_tower"] == "vit"):
        raise ValueError(f"images are made {settings.size} pixels wide, the model takes {size}")
    return settings


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        UserError: If the file cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON: {error}") from None
    return found if isinstance(found, dict) else {}
