"""Messages of the checks."""

import pytest

from bootmae.config import checks


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What is logged."""
    lines = []
    monkeypatch.setattr(checks, 'print_log', lambda message, logger=None, level=None: lines.append(message))
    return lines
