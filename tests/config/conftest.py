"""Fixtures for the checks of configs and data."""

import pytest

from bootmae.config import checks


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """The lines that the checks log."""
    lines = []
    monkeypatch.setattr(checks, 'print_log', lambda message, logger=None, level=None: lines.append(message))
    return lines
