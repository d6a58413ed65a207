"""Keeps this package and the program around it apart: torch's settings, random numbers, mmengine's logs and scopes."""

import multiprocessing
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.utils import ManagerMixin

NAME = 'bootmae.api'
QUIET = threading.RLock()  # scopes, loggers and the filters of warnings belong to the whole process
TRAINING = threading.Lock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hide warnings and log lines below errors, also from the log file of an earlier run; restore the default scope."""
    with QUIET, default_settings(), warnings.catch_warnings():
        scopes = DefaultScope._instance_dict.copy()
        MMLogger.get_instance(NAME, log_level='ERROR')  # the newest logger is the current one
        warnings.simplefilter('ignore')  # of mmseg's losses, for example
        try:
            yield
        finally:
            MMLogger._instance_dict.pop(NAME, None)  # a training in another thread may have ended
            _restore(DefaultScope, scopes)


@contextmanager
def one_training() -> Iterator[None]:
    """Train as in a process of its own, and restore what a run changes.

    These are the random numbers, how processes start, and all that mmengine names after the run: its log, message hub,
    visualizer and scope. It names them by the time, so that a run within the same second would get those of this run.

    Raises:
        ValueError: If another thread is training.
    """
    if not TRAINING.acquire(blocking=False):
        raise ValueError(
            'another thread of this process is training, and both would use the same random numbers: wait for its '
            'end, or start a process for each training'
        )
    method, python, arrays = multiprocessing.get_start_method(allow_none=True), random.getstate(), np.random.get_state()
    named = {kind: kind._instance_dict.copy() for kind in _kinds(ManagerMixin)}
    try:
        gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(gpus), default_settings():
            yield
    finally:
        for name in MMLogger._instance_dict.keys() - named[MMLogger].keys():
            for handler in MMLogger._instance_dict[name].handlers:
                handler.close()
        for kind in _kinds(ManagerMixin):
            _restore(kind, named.get(kind, {}))
        random.setstate(python)
        np.random.set_state(arrays)
        multiprocessing.set_start_method(method, force=True)
        TRAINING.release()


@contextmanager
def default_settings() -> Iterator[None]:
    """Use torch's default type, default device and gradients, whatever the program around it has chosen."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        own_device = nullcontext() if device.type == 'cpu' else torch.device('cpu')
        with own_device, torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def _kinds(kind: type) -> list[type]:
    return [kind, *(each for child in kind.__subclasses__() for each in _kinds(child))]


def _restore(kind: type, instances: dict) -> None:
    kind._instance_dict.clear()
    kind._instance_dict.update(instances)
