"""What the named models share: a folder on disk, heads by task name, original checkpoints in and out."""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from polyfuse.models.convert import Rule, one_precision, read_original, read_tensors, tensors_of, write_original

_SETTINGS, _WEIGHTS = "config.json", "model.safetensors"


def arguments(local: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments out of ``locals()``, as JSON can keep them: what rebuilds the model."""
    left_out = {"self", "__class__", "device", "dtype"}
    return {name: _plain(value) for name, value in local.items() if name not in left_out}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [_plain(part) for part in value]
    return value


def unknown_argument(owner: str, given: str, known: Iterable[str]) -> str:
    """The sentence for an argument that there is not, with the nearest and all that there are.

    Example:
        >>> unknown_argument("head 'caption'", "num_layer", ["num_layers", "dropout"])
        "head 'caption' has no argument 'num_layer'; did you mean 'num_layers'? known: num_layers, dropout"
    """
    names = list(known)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"{owner} has no argument '{given}'{hint} known: {', '.join(names) or 'none'}"


class PretrainedModel(nn.Module):
    """Base of the named models.

    A subclass sets ``HEADS`` and, in ``__init__``, ``self.config = arguments(locals())`` (taken before any other local
    exists); where original checkpoints exist it implements ``original_config``, ``original_rules`` and
    ``original_heads``.
    """

    #: ``{task: builder(model, **kwargs) -> nn.Module}``: the heads that can be attached.
    HEADS: ClassVar[Mapping[str, Callable[..., nn.Module]]] = {}
    #: Layouts that ``from_original`` reads and ``to_original`` writes, the default first.
    LAYOUTS: ClassVar[tuple[str, ...]] = ()

    config: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()
        self.head_config: dict[str, dict[str, Any]] = {}
        self.read_layout: str | None = None
        self.read_names: frozenset[str] = frozenset()

    def attach(self, *tasks: str, **kwargs: Any) -> Self:
        """Attach a new head per task (replacing an older one); ``kwargs`` go to its builder.

        Raises:
            ValueError: If the model knows no such task, or its head no such argument.
        """
        for task in tasks:
            if task not in self.HEADS:
                known = ", ".join(sorted(self.HEADS)) or "none"
                raise ValueError(f"{type(self).__name__} has no head for {task!r}; it has: {known}")
            self._check_head(task, kwargs)
            try:
                head = self.HEADS[task](self, **kwargs)
            except TypeError as error:  # of a builder that hands on whatever it gets
                wrong = re.search(r"unexpected keyword argument '(\w+)'", str(error))
                if wrong is None or wrong[1] not in kwargs:
                    raise
                raise ValueError(f"head '{task}' has no argument '{wrong[1]}' ({error})") from None
            self.heads[task] = head.train(self.training)
            self.head_config[task] = _plain(kwargs)
        return self

    @classmethod
    def head_arguments(cls, task: str) -> dict[str, bool] | None:
        """``{argument: it must be given}`` of a head; None where its builder hands on whatever it gets."""
        parameters = list(inspect.signature(cls.HEADS[task]).parameters.values())[1:]
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return None
        return {parameter.name: parameter.default is inspect.Parameter.empty for parameter in parameters}

    def _check_head(self, task: str, given: Iterable[str]) -> None:
        known = self.head_arguments(task)
        if known is None:
            return
        for name in given:
            if name not in known:
                raise ValueError(unknown_argument(f"head '{task}'", name, known))
        missing = [name for name, needed in known.items() if needed and name not in given]
        if missing:
            raise ValueError(f"head '{task}' needs the argument {' and '.join(map(repr, missing))}")

    def asked(self, tasks: Iterable[str] | None) -> list[str]:
        """The attached heads to run: ``tasks``, or all of them.

        Raises:
            ValueError: If one is not attached.
        """
        wanted = list(self.heads) if tasks is None else list(tasks)
        missing = [task for task in wanted if task not in self.heads]
        if missing:
            raise ValueError(f"no head attached for {missing}; attached: {list(self.heads)}; call .attach(task) first")
        return wanted

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"model": type(self).__name__, "config": self.config, "heads": self.head_config}
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file({k: v.detach().contiguous() for k, v in self.state_dict().items()}, folder / _WEIGHTS)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Self:
        """Read what ``save_pretrained`` wrote, bit for bit, in evaluation mode.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the folder holds another model or a damaged file, or its weights do not fit.
        """
        folder = Path(folder)
        file = folder / _SETTINGS
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # no JSON, or no UTF-8
            raise ValueError(f"'{file}' cannot be read as JSON ({error}); it is damaged") from None
        if not isinstance(settings, dict) or not all(isinstance(settings.get(k), dict) for k in ("config", "heads")):
            raise ValueError(
                f"'{file}' must hold a mapping with 'model', 'config' and 'heads', as save_pretrained writes"
            )
        if settings.get("model") != cls.__name__:
            raise ValueError(f"{folder} holds a {settings.get('model')!r}, expected a {cls.__name__!r}")
        try:
            with torch.device("meta"):
                model = cls(**settings["config"])
                for task, kwargs in settings["heads"].items():
                    model.attach(task, **kwargs)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{file}' makes no {cls.__name__}: {error.args[0] if error.args else error}") from None
        state = read_tensors(folder / _WEIGHTS)
        return model._take(state, where=str(folder)).to(device).eval()

    def _take(self, state: Mapping[str, Tensor], where: str) -> Self:
        """Adopt the tensors; keys and shapes must agree exactly."""
        own = self.state_dict()
        wrong = [f"missing {name}" for name in own if name not in state]
        wrong += [f"unexpected {name}" for name in state if name not in own]
        wrong += [
            f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
        if wrong:
            shown = "; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else "")
            raise ValueError(f"weights in {where} do not fit {type(self).__name__}: {shown}")
        # A model that still lives on the meta device takes the tensors as they are.
        self.load_state_dict(dict(state), strict=True, assign=any(t.is_meta for t in own.values()))
        self._fill_meta_buffers()
        return self

    def _fill_meta_buffers(self) -> None:
        """Make the buffers that are not saved, which a model built on the meta device lacks; overridden where any."""

    @classmethod
    def from_original(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        layout: str | None = None,
    ) -> Self:
        """Build the model from its authors' checkpoint, heads included, in evaluation mode.

        Args:
            source: Tensors by their original names, or a file of them: safetensors, or a PyTorch file (read with
                ``weights_only=True``). They may stand under ``state_dict``, ``model_state_dict`` or ``model``, as
                training scripts save them; parts in half precision beside parts in full become float32.
            config: The original config, as a mapping or its JSON file; None where the tensors tell everything.
            layout: One of ``LAYOUTS``; None = told from the names.

        Raises:
            ValueError: With a list, if tensors cannot be mapped, are missing, or do not fit; if the layout is unknown.
        """
        cls._check_layout(layout)
        state = one_precision(tensors_of(source))
        settings: Mapping[str, Any] | None = (
            json.loads(Path(config).read_text(encoding="utf-8")) if isinstance(config, (str, Path)) else config
        )
        kwargs = cls.original_config(state, settings)
        with torch.device("meta"):  # no time for initial values that the checkpoint replaces
            model = cls(**kwargs)
            for task, options in cls.original_heads(state, settings).items():
                model.attach(task, **options)
        rules, ignored = model.original_rules(state, layout)
        ours = read_original(state, rules, ignored=ignored, expected=model.state_dict(), name=cls.__name__)
        model.read_layout, model.read_names = layout, frozenset(state)
        return model._take(ours, where="the checkpoint").eval()

    def to_original(self, layout: str | None = None) -> dict[str, Tensor]:
        """The weights under their original names: the exact inverse of ``from_original``.

        Args:
            layout: One of ``LAYOUTS``; None = the one that was read, with copies of tied tensors only where it had
                them; the first for a model that was not read.

        Raises:
            ValueError: If the layout is unknown.
        """
        self._check_layout(layout)
        rules, _ = self.original_rules(None, layout or self.read_layout or (self.LAYOUTS[0] if self.LAYOUTS else None))
        written = write_original(self.state_dict(), rules)
        if layout is None and self.read_names:
            known = [rule for rule in rules if rule.theirs[0] in self.read_names]
            for key in {key for rule in known for key in rule.copies} - self.read_names:
                written.pop(key, None)
        return written

    @classmethod
    def _check_layout(cls, layout: str | None) -> None:
        if layout is not None and layout not in cls.LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(cls.LAYOUTS)}, got {layout!r}")

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """Constructor arguments from the original config (and shapes)."""
        raise NotImplementedError(f"{cls.__name__} has no original layout")

    @classmethod
    def original_heads(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """``{task: kwargs}`` of the heads that the checkpoint holds."""
        return {}

    def original_rules(
        self, state: Mapping[str, Tensor] | None, layout: str | None
    ) -> tuple[list[Rule], Callable[[str], bool]]:
        """Rules between our names and the original ones, and which original names carry nothing.

        ``state`` is None when writing.
        """
        raise NotImplementedError(f"{type(self).__name__} has no original layout")
