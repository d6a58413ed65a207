"""Malicious checkpoints: each runs code, which writes a marker file, in a reader that trusts pickles.

``PAYLOADS[name](path, marker)`` writes one. ``CALLS[name](marker)`` is the object in it, a call in disguise, for other
ways to hide it. ``HARMLESS`` are forbidden references that write no marker even if they are followed.
"""

import functools
import importlib
import io
import operator
import os
import pickle
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


class Call:
    """An object that pickles as a call of ``function``, which may be the result of another call."""

    def __init__(self, function: Callable, *args):
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call

    def __call__(self) -> None:
        """Never called: it lets pickle accept the object as a function."""


class Loaded:
    """An object with a plain pickle whose class handles its state."""

    def __setstate__(self, state: dict) -> None:
        Path(state['marker']).touch()


def setstate(marker: Path) -> Loaded:
    loaded = Loaded()
    loaded.marker = str(marker)
    return loaded


def touch(marker: Path) -> str:
    return f'touch {marker}'


def source(marker: Path) -> str:
    return f'open({str(marker)!r}, "w").close()'


def system(marker: Path) -> Call:
    return Call(os.system, touch(marker))


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def script(marker: Path) -> str:
    """A file beside the marker whose code writes it."""
    path = marker.with_name('payload_script.py')
    path.write_text(source(marker))
    return str(path)


def moved(marker: Path) -> Call:
    """Moves a file of the user: what rmtree does to a folder, with a trace."""
    marker.with_name('precious').write_text('data')
    return Call(shutil.move, str(marker.with_name('precious')), str(marker))


CALLS: dict[str, Callable[[Path], object]] = {
    'os.system': system,
    'os.popen': lambda marker: Call(operator.methodcaller('read'), Call(os.popen, touch(marker))),
    'subprocess.getoutput': lambda marker: Call(subprocess.getoutput, touch(marker)),
    'subprocess.Popen': lambda marker: Call(
        operator.methodcaller('wait'), Call(subprocess.Popen, ['touch', str(marker)])
    ),
    'eval': lambda marker: Call(eval, f'__import__("os").system({touch(marker)!r})'),
    'exec': lambda marker: Call(exec, source(marker)),
    'open': lambda marker: Call(open, str(marker), 'w'),
    '__import__ and getattr': lambda marker: Call(Call(getattr, Call(__import__, 'os'), 'system'), touch(marker)),
    'setstate': setstate,
    'pickle in a pickle': lambda marker: Call(pickle.loads, pickle.dumps(system(marker))),
    'torch file in a pickle': lambda marker: Call(
        functools.partial(torch.load, weights_only=False), Call(io.BytesIO, saved(dict(a=system(marker))))
    ),
    'shutil.move': moved,
    'numpy objects': lambda marker: np.array([system(marker), None], dtype=object),
    'functools.partial': lambda marker: Call(functools.partial(os.system, touch(marker))),
    'operator.methodcaller': lambda marker: Call(
        operator.methodcaller('system', touch(marker)), Call(importlib.import_module, 'os')
    ),
    'operator.attrgetter': lambda marker: Call(
        Call(operator.attrgetter('path.os.system'), Call(importlib.import_module, 'os')), touch(marker)
    ),
    'runpy': lambda marker: Call(runpy.run_path, script(marker)),
    'numpy.load': lambda marker: Call(
        functools.partial(np.load, allow_pickle=True), Call(io.BytesIO, _npy(np.array([system(marker)], dtype=object)))
    ),
}

HARMLESS: dict[str, Callable[[Path], object]] = {
    'getattr of a type': lambda marker: Call(getattr, str, 'format'),
    'getattr of the log history': lambda marker: Call(getattr, HistoryBuffer, '__init__'),
    'getattr, registering': lambda marker: Call(getattr, HistoryBuffer, 'register_statistics'),
    'getattr of an instance': lambda marker: Call(getattr, HistoryBuffer(), 'mean'),
    'getattr of another type': lambda marker: Call(getattr, np.ndarray, 'mean'),
    'getattr of a tensor': lambda marker: Call(getattr, torch.ones(1), 'mean'),
    'getattr, globals': lambda marker: Call(getattr, Call(getattr, HistoryBuffer, 'mean'), '__globals__'),
    'function of torch': lambda marker: Call(torch.hub.load, str(marker), 'x'),
}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def write(make: Callable[[Path], object], path: Path, marker: Path) -> None:
    """A file with valid weights and one payload."""
    torch.save(
        dict(
            state_dict={'backbone.cls_token': torch.ones(2)},
            meta=dict(epoch=1, iter=1, payload=make(marker)),
            optimizer={},
        ),
        path,
    )


PAYLOADS: dict[str, Callable[[Path, Path], None]] = {
    name: functools.partial(write, make) for name, make in CALLS.items()
}
