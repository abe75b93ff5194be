"""Which build of the hot path runs: compiled by Cython, or plain Python."""

from __future__ import annotations

import importlib.util
from typing import Literal


def build() -> Literal["compiled", "plain"]:
    """``compiled`` if the messages of the PostgreSQL protocol come from an extension module."""
    spec = importlib.util.find_spec("grille.protocols.postgres.messages")
    return "compiled" if spec is not None and (spec.origin or "").endswith(".so") else "plain"
