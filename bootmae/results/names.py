"""Methods by their names for readers, and in the order in which they are shown."""

from collections.abc import Iterable

METHOD_NAMES = {'untrained': 'Untrained', 'mae': 'MAE', 'bootmae': 'BootMAE'}
FURTHER_NAMES = {'supervised': 'Supervised', 'simmim': 'SimMIM'}


def method_name(method: str) -> str:
    """Name for readers; ``mae (1600 epochs)`` is MAE with something added."""
    first, space, rest = method.partition(' ')
    return (METHOD_NAMES | FURTHER_NAMES).get(first, first) + space + rest


def ordered_methods(methods: Iterable[str]) -> list[str]:
    """These methods as they are shown: untrained, MAE, BootMAE, then others in order of appearance."""
    found = dict.fromkeys(methods)
    return [name for name in METHOD_NAMES if name in found] + [name for name in found if name not in METHOD_NAMES]
