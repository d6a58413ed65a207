"""Devices that a suite may use."""

import os
from collections.abc import Sequence

import torch

from .cells import Cell
from .running import Machine

MOST_LANES = 6


def find_machine(gpus: int | None, lanes: int | None = None, cells: Sequence[Cell] = ()) -> Machine:
    """GPUs of this machine, or CPU lanes if it has none.

    Args:
        gpus: Number of GPUs; None for all visible ones, 0 for the CPU.
        lanes: Cells at a time, on the CPU with one thread each, or on each GPU. None: one for each core, at most six;
            one on each GPU.
        cells: Cells to run.

    Raises:
        ValueError: The machine has fewer GPUs, a number is too small, or a cell with several GPUs would share them.
    """
    check_counts(gpus, lanes)
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
    lanes = lanes or 1
    devices = names[:gpus] * lanes
    machine = Machine(devices, len(devices), gpu=True, lanes=lanes)
    for cell in cells if lanes > 1 else ():
        if machine.share(cell) > 1:
            raise ValueError(
                f'--lanes {lanes}: cells can share one GPU, but {cell.name} trains on {machine.share(cell)}: leave '
                '--lanes out, or add --gpus 1 (accumulation keeps the batch)'
            )
    return machine


def check_counts(gpus: int | None, lanes: int | None) -> None:
    """Raise a ValueError if there are too few GPUs or lanes on any machine."""
    for name, value, least in (('--gpus', gpus, 0), ('--lanes', lanes, 1)):
        if value is not None and value < least:
            raise ValueError(f'{name} {value}: give at least {least}')
