"""The studies that ``polyfuse study NAME`` can run."""

from polyfuse.registry import Registry

STUDIES = Registry("study", {})
