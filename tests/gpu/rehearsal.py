"""Where the tests of this folder run: on a GPU, or as a rehearsal on the CPU. All that differs between the two is here.

``BOOTMAE_TEST_GPU=rehearse`` takes the CPU, so that a mistake in these tests costs no minute of a GPU. The same code
then runs at toy size; only what exists on a GPU alone is replaced.
"""

import os
import shutil
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

REHEARSED = os.environ.get('BOOTMAE_TEST_GPU') == 'rehearse'
DEVICE = 'cpu' if REHEARSED else 'cuda'
SYNCHRONIZING = 'called a synchronizing CUDA operation'


def toy(full: int, small: int) -> int:
    """A size: the second one in the rehearsal."""
    return small if REHEARSED else full


def skip_reason() -> str | None:
    """Why the tests of this folder cannot run here; None where they can."""
    if REHEARSED or torch.cuda.is_available():
        return None
    if os.environ.get('BOOTMAE_TEST_GPU') != '1' and shutil.which('nvidia-smi'):
        return 'this run hides the GPU, because other tests expect the values of a CPU: run pytest tests/gpu by itself'
    return 'needs a CUDA device (BOOTMAE_TEST_GPU=rehearse runs these tests at toy size on the CPU)'


def compile_option(scope: str | None, backward: bool = False) -> dict | None:
    """The config's ``compile`` for ``blocks``, ``whole``, or ``graphs``, which is ``whole`` with CUDA graphs.

    The rehearsal generates no code. It traces the forward pass, and only if asked for the backward pass.
    """
    if scope is None:
        return None
    option = dict(scope='whole' if scope == 'graphs' else scope)
    if REHEARSED:
        return option | dict(backend='aot_eager' if backward else 'eager')
    return option | (dict(mode='reduce-overhead') if scope == 'graphs' else {})


@contextmanager
def recorded_waits() -> Iterator[list[str]]:
    """A list of the places where the host has waited for the GPU, each with the calls that led there.

    torch warns at each one, rather than raising an error at the first, so that one run shows all of them. The rehearsal
    records calls of ``Tensor.item``.
    """
    waits: list[str] = []

    def note() -> None:
        frames = [frame for frame in traceback.extract_stack()[:-2] if not frame.filename.endswith('warnings.py')]
        lines = [f'{frame.filename}:{frame.lineno} {frame.line}' for frame in frames]
        waits.append('\n    '.join(lines[-6:]))

    if REHEARSED:
        with pytest.MonkeyPatch.context() as patch:
            item = torch.Tensor.item
            patch.setattr(torch.Tensor, 'item', lambda tensor: note() or item(tensor))
            yield waits
        return

    def show(message, *args, **kwargs) -> None:
        if SYNCHRONIZING in str(message):
            note()

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)


def allow_fp16(patch: pytest.MonkeyPatch) -> None:
    """Let mmengine's wrapper for float16 work in the rehearsal: it refuses a CPU, torch's scaler does not."""
    if REHEARSED:
        from mmengine.optim import OptimWrapper
        from mmengine.optim.optimizer import amp_optimizer_wrapper as module

        patch.setattr(module, 'is_cuda_available', lambda: True)
        patch.setattr(module, 'GradScaler', partial(torch.amp.GradScaler, device='cpu'))
        patch.setattr(module.AmpOptimWrapper, 'optim_context', OptimWrapper.optim_context)


def uses_cuda_graphs() -> bool:
    """Whether torch.compile has captured CUDA graphs and has left out none; it does the latter without a word."""
    if REHEARSED:
        return True
    from torch._inductor.cudagraph_trees import get_manager

    manager, skipped = get_manager(torch.cuda.current_device(), False), counters['inductor']['cudagraph_skips']
    print(f'CUDA graphs: {len(manager.roots) if manager else 0} trees, {skipped} graphs left out')
    return manager is not None and len(manager.roots) > 0 and skipped == 0


def new_stream() -> torch.cuda.Stream | None:
    """A stream beside the usual one; the CPU has none."""
    return None if REHEARSED else torch.cuda.Stream()


def queue_a_late_write(stream: torch.cuda.Stream | None, shape: torch.Size) -> None:
    """Let a stream write, in 0.1 s or so, into memory of an image's shape that is free again for this stream."""
    if not REHEARSED:
        with torch.cuda.stream(stream):
            image = torch.empty(shape, dtype=torch.uint8, device=DEVICE)
            torch.cuda._sleep(200_000_000)  # clock cycles
            image.fill_(7)


def on_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def synchronize() -> None:
    """Wait until the device has done all its work."""
    if not REHEARSED:
        torch.cuda.synchronize()


def is_dead() -> bool:
    """Whether a failed kernel has made the GPU useless for the rest of this process."""
    try:
        synchronize()
    except RuntimeError:
        return True
    return False
