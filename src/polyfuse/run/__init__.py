"""The main job, end to end: a table and a config become a run folder; a run folder answers tables.

The command line is a thin layer over these functions. Names load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyfuse.run.compare import compare_runs
    from polyfuse.run.evaluate import evaluate_run
    from polyfuse.run.folder import Run, load
    from polyfuse.run.inspect import inspect_table
    from polyfuse.run.match import match_files
    from polyfuse.run.parts import fetch_data, list_parts
    from polyfuse.run.predict import predict_table
    from polyfuse.run.train import train_run

_HOMES = {
    "Run": "folder",
    "load": "folder",
    "inspect_table": "inspect",
    "train_run": "train",
    "evaluate_run": "evaluate",
    "predict_table": "predict",
    "compare_runs": "compare",
    "match_files": "match",
    "fetch_data": "parts",
    "list_parts": "parts",
}

__all__ = [
    "Run",
    "compare_runs",
    "evaluate_run",
    "fetch_data",
    "inspect_table",
    "list_parts",
    "load",
    "match_files",
    "predict_table",
    "train_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polyfuse.run' has no attribute '{name}'")
    return getattr(importlib.import_module(f"polyfuse.run.{_HOMES[name]}"), name)
