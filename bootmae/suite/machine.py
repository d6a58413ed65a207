"""Which devices a suite may use."""

import os

import torch

from .running import Machine

MOST_LANES = 6


def find_machine(gpus: int | None, lanes: int | None = None) -> Machine:
    """GPUs of this machine that may be used, or lanes of its CPU where it has none.

    Args:
        gpus: how many; None: all that are visible; 0: use the CPU.
        lanes: cells at a time on a CPU, one thread each; None: one a core, at most six.

    Raises:
        ValueError: if there are fewer.
    """
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    there = torch.cuda.device_count()
    names = visible.split(',')[:there] if visible else [str(index) for index in range(there)]
    if gpus is not None and gpus > there:
        raise ValueError(
            f'--gpus {gpus}: this machine has {there}; with fewer the recipes keep their batch by accumulation'
        )
    if gpus == 0 or not names:
        count = lanes or max(1, min(os.cpu_count() or 1, MOST_LANES))
        return Machine([str(index) for index in range(count)], count, gpu=False)
    names = names[:gpus]
    return Machine(list(names), len(names), gpu=True)
