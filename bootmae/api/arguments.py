"""Checks of arguments: each returns the value in one form, or raises a ValueError that names the argument."""

import os
from collections.abc import Iterable
from numbers import Integral
from typing import Any


def height_and_width(size: Any, name: str) -> tuple[int, int]:
    """Return a size in pixels as height and width; one number stands for both.

    Raises:
        ValueError: If it is neither one nor two positive integers. ``name`` is that of the argument.
    """
    sides = (size, size) if isinstance(size, Integral) else tuple(size) if isinstance(size, Iterable) else ()
    if len(sides) != 2 or not all(isinstance(side, Integral) and int(side) > 0 for side in sides):
        raise ValueError(f'{name}={size!r}: give a positive number of pixels, or height and width')
    return int(sides[0]), int(sides[1])


def whole_number(value: Any, name: str) -> int:
    """Return a number of things.

    Raises:
        ValueError: If it is not a whole number, or below 1.
    """
    if not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f'{name}={value!r}: give a whole number of at least 1')
    return int(value)


def path_text(path: Any, name: str) -> str:
    """Return a path as text, with the home folder in place of ``~``.

    Raises:
        ValueError: If it is no path, or empty.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f'{name}={path!r:.60}: give a path')
    return os.path.expanduser(os.fspath(path))
