"""Read and compare package versions with the standard library alone; see :mod:`doctor`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import sys
from pathlib import Path


def normal(name: str) -> str:
    """Normalize a package name as in the lock: 'Foo_Bar' -> 'foo-bar'."""
    return re.sub('[-_.]+', '-', name).lower()


def installed_packages() -> dict[str, str]:
    """Map the normalized name of each installed package to the version that Python imports."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(Exception):  # a half-removed package has no metadata
            found.setdefault(normal(distribution.metadata['Name']), distribution.version)
    return found


def numbers(version: str) -> tuple[int, ...]:
    """Parse the numbers of a version: '2.11.0+cu130' -> (2, 11, 0)."""
    return tuple(int(part) for part in re.findall('[0-9]+', re.match('[0-9.]*', version)[0]))


def fits(version: str, comparison: str, other: str) -> bool:
    """Whether ``version comparison other`` holds. For 3.11.*, only the numbers before the star count."""
    a, b = numbers(version), numbers(other)
    length = len(b) if other.endswith('.*') else max(len(a), len(b))
    a, b = ((x + (0,) * length)[:length] for x in (a, b))
    return {'==': a == b, '!=': a != b, '>=': a >= b, '<=': a <= b, '>': a > b, '<': a < b}[comparison]


def applies(marker: str) -> bool:
    """Whether an environment marker of the lock holds for this Python and machine."""
    facts = dict(sys_platform=sys.platform, platform_machine=platform.machine())

    def decide(match: re.Match) -> str:
        name, comparison, value = match.groups()
        if name.startswith('python'):
            return str(fits(platform.python_version(), comparison, value))
        return str((facts[name] == value) == (comparison == '=='))

    decided = re.sub(r"(\w+) *(==|!=|>=|<=|>|<) *'([^']*)'", decide, marker)
    if not re.fullmatch('(True|False|and|or|[() ])*', decided):
        raise ValueError(f'requirements.lock has an unknown environment marker: {marker}')
    return not decided.strip() or bool(eval(decided))


def read_lock(root: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the locked versions for this Python and machine, and all locked versions for any of them."""
    wanted, known = {}, {}
    for line in (root / 'requirements.lock').read_text().splitlines():
        requirement, _, marker = line.partition(';')
        if '==' in requirement:
            name, version = (part.strip() for part in requirement.split('=='))
            known.setdefault(normal(name), []).append(version)
            if applies(marker):
                wanted[normal(name)] = version
    return wanted, known


def read_ranges(root: Path) -> dict[str, str]:
    """Read the version ranges of pyproject.toml by regex, because Python 3.10 has no TOML parser."""
    entries = re.findall(r'^\s+"([\w.-]+)([<>=!][^"\s]*)?",', (root / 'pyproject.toml').read_text(), re.MULTILINE)
    return {normal(name): limits for name, limits in entries}


def in_range(version: str, limits: str) -> bool:
    """Whether a version is in a range such as '>=2,<2.3'. The empty range holds every version."""
    return all(fits(version, *re.match('([<>=!]+)(.*)', limit).groups()) for limit in limits.split(',') if limit)
