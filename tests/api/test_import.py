"""``import bootmae``: quick, without side effects, and with all names where tools look for them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bootmae

SOURCE = Path(bootmae.__file__)
CHILD = """
import sys, json
before = set(sys.modules)
import bootmae
print(json.dumps([sorted(set(sys.modules) - before), sorted(set(bootmae.__all__) - set(dir(bootmae)))]))
"""


def test_importing_the_package_imports_nothing_else():
    """So it is quick, and can change no other package."""
    done = subprocess.run([sys.executable, '-c', CHILD], cwd=SOURCE.parents[1], capture_output=True, text=True)
    modules, hidden = json.loads(done.stdout)
    assert 'bootmae' in modules
    assert {name for name in modules if name.partition('.')[0] not in {*sys.stdlib_module_names, 'bootmae'}} == set()
    assert [name for name in modules if name.startswith('bootmae')] == ['bootmae', 'bootmae.places']
    assert hidden == []


def test_type_checkers_see_the_public_names():
    tree = ast.parse(SOURCE.read_text(encoding='utf-8'))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.name for node in block.body for alias in node.names) == bootmae.__all__


def test_all_names_are_there():
    for name in bootmae.__all__:
        assert getattr(bootmae, name).__name__ == name
    from bootmae import BootMAE
    from bootmae.models import BootMAE as same

    assert BootMAE is same
    with pytest.raises(AttributeError, match="module 'bootmae' has no attribute 'load_encoders'"):
        _ = bootmae.load_encoders
