"""``python -m tests.corpus``: the replay, with its table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.exit(pytest.main(["-q", "-s", str(Path(__file__).parent)]))
