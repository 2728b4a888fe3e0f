"""Sources of task data by name: ``load_source("scene_questions", train=4000)`` gives a ``TaskData``.

Drawn scenes with exact truth, real pictures with names out of packages, easy-VQA, a table of your own, and every
published set of ``polyfuse.datasets.published``.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from polyfuse.data.schema import nearest
from polyfuse.datasets.published import PUBLISHED, read_published
from polyfuse.errors import UserError
from polyfuse.registry import Registry
from polyfuse.tasks.batch import TaskData
from polyfuse.tasks.sources_pairs import easy_vqa, emoji, glyph_questions, glyphs, openclipart
from polyfuse.tasks.sources_scenes import WORLD, scene_captions, scene_phrases, scene_questions
from polyfuse.tasks.sources_statements import scene_statements
from polyfuse.tasks.sources_table import table

Loader = Callable[..., TaskData]


def published(
    name: str,
    *,
    folder: str | None = None,
    side: int = 64,
    limit: int | None = None,
    options: dict[str, Any] | None = None,
) -> TaskData:
    """A published data set from the user's own copy.

    Args:
        name: One of ``PUBLISHED``.
        folder: Where its files lie; None = where ``polyfuse data prepare`` has put or found them.
        side: Pixels a picture is squeezed to.
        limit: Most rows.
        options: Of its reader, such as ``{"year": 2017}``.

    Raises:
        UserError: If the files are not there.
    """
    from polyfuse.tasks.published import to_task_data

    return to_task_data(read_published(name, folder, **(options or {})), side=side, limit=limit)


#: Loaders by name; each takes keyword arguments alone.
SOURCES = Registry(
    "source",
    {
        "scene_captions": scene_captions,
        "scene_questions": scene_questions,
        "scene_phrases": scene_phrases,
        "scene_statements": scene_statements,
        "emoji": emoji,
        "openclipart": openclipart,
        "glyphs": glyphs,
        "glyph_questions": glyph_questions,
        "easy_vqa": easy_vqa,
        "table": table,
        **{name: partial(published, name) for name in PUBLISHED},
    },
)


def load_source(name: str, **args: Any) -> TaskData:
    """Task data by name.

    Args:
        name: One of ``SOURCES``.
        **args: Of its loader.

    Raises:
        UserError: If the name or an argument is unknown, an argument breaks a rule, or files cannot be had.

    Example:
        >>> data = load_source("scene_questions", train=3, validation=1, test=2, side=32, per_scene=1)
        >>> data.images.shape, [len(data.rows(part)) for part in ("train", "validation", "test")]
        ((6, 32, 32, 3), [3, 1, 2])
        >>> load_source("scene_questions", trian=3)
        Traceback (most recent call last):
        polyfuse.errors.UserError: source 'scene_questions' has no argument 'trian'; did you mean 'train'? known: ...
    """
    try:
        loader: Loader = SOURCES[name]
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    known = source_arguments(name)
    for given in args:
        if given not in known:
            hint = nearest(given, known) or ";"
            raise UserError(f"source '{name}' has no argument '{given}'{hint} known: {', '.join(known)}")
    missing = [key for key, needed in known.items() if needed and key not in args]
    if missing:
        raise UserError(f"source '{name}' needs the argument {' and '.join(map(repr, missing))}")
    return loader(**args)


def source_arguments(name: str) -> dict[str, bool]:
    """``{argument: it must be given}`` of a source.

    Example:
        >>> source_arguments("emoji")
        {'side': False, 'split': False, 'style': False}
    """
    found: dict[str, bool] = {}
    for key, parameter in inspect.signature(SOURCES[name]).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= dict.fromkeys(WORLD, False)
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            found[key] = parameter.default is inspect.Parameter.empty
    return found
