"""Devices that a suite may use."""

import os

import torch

from .running import Machine

MOST_LANES = 6


def find_machine(gpus: int | None, lanes: int | None = None) -> Machine:
    """GPUs of this machine, or CPU lanes if it has none.

    Args:
        gpus: Number of GPUs; None for all visible ones, 0 for the CPU.
        lanes: Cells at a time on the CPU, with one thread each; None for one per core, at most six.

    Raises:
        ValueError: The machine has fewer GPUs, or a number is too small.
    """
    for name, value, least in (('--gpus', gpus, 0), ('--lanes', lanes, 1)):
        if value is not None and value < least:
            raise ValueError(f'{name} {value}: give at least {least}')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    there = torch.cuda.device_count()
    names = visible.split(',')[:there] if visible else [str(index) for index in range(there)]
    if gpus is not None and gpus > there:
        raise ValueError(
            f'--gpus {gpus}: this machine has {there}; give at most that many (accumulation keeps the batch)'
        )
    if gpus == 0 or not names:
        count = lanes or max(1, min(os.cpu_count() or 1, MOST_LANES))
        return Machine([str(index) for index in range(count)], count, gpu=False)
    names = names[:gpus]
    return Machine(list(names), len(names), gpu=True)
