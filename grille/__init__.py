"""Grille: a data-plane enforcement proxy between AI agents and a bank's data.

One path runs for every statement and every message: who is it, what is it, may it,
under what terms, what happened.  ``docs/explanation/how-a-statement-flows.md`` draws it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"


class _SourceOnly:
    """Finds this package's modules as source, beside compiled twins that are not wanted or out of date."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("grille.") or path is None:
            return None
        loader = (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES)
        for directory in path:
            found = importlib.machinery.FileFinder(directory, loader).find_spec(name)
            if found is not None:
                return found
        return None


def _outdated() -> bool:
    """True if a compiled module is older than its source: then none of them is used."""
    for compiled in Path(__file__).parent.rglob("*.so"):
        source = compiled.with_name(compiled.name.partition(".")[0] + ".py")
        if source.exists() and source.stat().st_mtime > compiled.stat().st_mtime:
            return True
    return False


if os.environ.get("GRILLE_PLAIN") or _outdated():
    sys.meta_path.insert(0, _SourceOnly)


def build() -> str:
    """``compiled`` if the hot path runs as C (``make build``), else ``plain``."""
    found = importlib.util.find_spec("grille.protocols.postgres.framing")
    return "compiled" if found is not None and (found.origin or "").endswith(".so") else "plain"
