"""Shared by all benchmarks: provenance of numbers, clocks, memory, the matrix peak, and result rows.

A table is a CSV file in ``benchmarks/results``, one row a measurement, oldest first; `benchmarks/tables.py` makes the
tables of the README of it. ``device`` is a torch device or its name everywhere.
"""

import csv
import io
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bootmae.results.provenance import git_commit, versions  # noqa: E402
from bootmae.results.rows import replace_file  # noqa: E402
from bootmae.text import count_of  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results'
FACTS = ('date', 'commit', 'device', 'versions', 'threads')
Device = torch.device | str


def on_gpu(device: Device) -> bool:
    return torch.device(device).type == 'cuda'


def default_device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def facts(device: Device | None = None, packages: Sequence[str] = ()) -> dict[str, str | int]:
    """Return the first columns of each row: date (UTC), commit, device, versions in one cell, and threads.

    Args:
        packages: distributions to name beside those that every result names.
    """
    found = versions(packages)
    return dict(
        zip(
            FACTS,
            (
                datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M'),
                git_commit(),
                name_of(device or default_device()),
                ', '.join(f'{name.removeprefix("onedl-")} {version}' for name, version in found.items()),
                torch.get_num_threads(),
            ),
            strict=True,
        )
    )


def name_of(device: Device) -> str:
    """``NVIDIA H100 80GB HBM3``, or ``AMD EPYC, 2 cores``."""
    return torch.cuda.get_device_name(device) if on_gpu(device) else f'{cpu_model()}, {os.cpu_count()} cores'


def cpu_model() -> str:
    info = Path('/proc/cpuinfo')
    found = re.search(r'model name\s*: (.*)', info.read_text() if info.exists() else '')
    return found[1] if found else platform.machine()


def synchronize(device: Device) -> None:
    """Wait until the device has finished all its work."""
    if on_gpu(device):
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], warmup: int, steps: int, device: Device) -> list[float]:
    """Measure the seconds of each call, after a warm-up.

    A GPU's are taken from its own clock, between the ends of two calls, and the host waits for it before the first
    call and after the last one only: what the host does beside the GPU's work costs nothing here, as in training.
    """
    for _ in range(warmup):
        run()
    synchronize(device)
    if not on_gpu(device):
        marks = [time.perf_counter()]
        for _ in range(steps):
            run()
            marks.append(time.perf_counter())
        return [end - begin for begin, end in pairwise(marks)]
    with torch.cuda.device(device):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        synchronize(device)
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(events)]


def alternate(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: Device, clock: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Measure the seconds of alternating calls, so that changes of the device speed do not affect their ratio.

    The order is turned round from one round to the next. The device is waited for after each call: let a call be
    several steps where a step is short.

    Args:
        clock: gives seconds; those of the wall by default. ``time.process_time``, for work of one thread on a CPU that
            others use too, leaves out the time that they take.
    """
    clock = clock or time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            synchronize(device)
            begin = clock()
            runs[name]()
            synchronize(device)
            times[name].append(clock() - begin)
    return times


def speed_ratio(times: Mapping[str, Sequence[float]], first: str, second: str) -> float:
    """Return how many times faster the first is than the second: median over the rounds of :func:`alternate`."""
    return statistics.median(b / a for a, b in zip(times[first], times[second], strict=True))


def matmul_peak(device: Device, dtype: torch.dtype | None = None) -> float:
    """Measure the median TFLOP/s of a square matrix product, in about a second.

    Args:
        dtype: bfloat16 on a GPU (8192 x 8192), float32 on a CPU (1024 x 1024) unless given.
    """
    gpu = on_gpu(device)
    dtype = dtype or (torch.bfloat16 if gpu else torch.float32)
    side, repeats = (8192, 50) if gpu else (1024, 15)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    times = timed(lambda: torch.mm(left, right, out=out), repeats // 5, repeats, device)
    return 2 * side**3 / statistics.median(times) / 1e12


def allocated(device: Device) -> float:
    """Return the GiB of tensors currently on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) / 2**30 if on_gpu(device) else 0.0


def reset_peak_memory(device: Device) -> None:
    """Reset :func:`peak_memory`; on a CPU without Linux it always counts from the start of the process."""
    if on_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path('/proc/self/clear_refs').write_text('5')


def peak_memory(device: Device) -> float:
    """Return the peak memory in GiB: of tensors on a GPU, of the whole process (resident) on a CPU; see memory_kind."""
    if on_gpu(device):
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path('/proc/self/status')
    found = re.search(r'VmHWM:\s+(\d+) kB', status.read_text() if status.exists() else '')
    if found:
        return int(found[1]) / 2**20
    unit = 2**30 if sys.platform == 'darwin' else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory_kind(device: Device) -> str:
    """Return what :func:`peak_memory` counts."""
    return 'tensors on the GPU' if on_gpu(device) else 'resident memory of the process'


def path_of(table: str, folder: str | Path | None = None) -> Path:
    return Path(folder or RESULTS, f'{table}.csv')


def read_rows(table: str, folder: str | Path | None = None) -> list[dict[str, str]]:
    """Read the rows of a table, oldest first, with every cell as text; empty if there is no table.

    Raises:
        ValueError: if a row has more or fewer cells than the header.
    """
    path = path_of(table, folder)
    if not path.exists():
        return []
    header, *lines = csv.reader(io.StringIO(path.read_text(encoding='utf-8')))
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(header):
            raise ValueError(
                f'{path}, row {number}: {count_of(len(cells), "cell")} under {count_of(len(header), "heading")}; '
                'repair or delete this row'
            )
    return [dict(zip(header, cells)) for cells in lines]


def add_row(table: str, row: Mapping[str, object], folder: str | Path | None = None) -> Path:
    """Append a row to a table atomically and return its path.

    New columns come after the old ones, and old rows have nothing there. Two processes must not add to one table at
    the same time: the later would drop the row of the earlier.
    """
    rows = [*read_rows(table, folder), {name: cell_of(value) for name, value in row.items()}]
    columns = dict.fromkeys(name for line in rows for name in line)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path_of(table, folder), buffer.getvalue())
    return path_of(table, folder)


def cell_of(value: object) -> str:
    """Format a value for a table: floats with five digits and without exponent; None as an empty cell."""
    if isinstance(value, float) and np.isfinite(value):
        return np.format_float_positional(value, precision=5, fractional=False, trim='-')
    return '' if value is None else str(value)


def kernel_seconds(run: Callable[[], object], device: Device) -> dict[str, tuple[float, int]]:
    """Profile a call and return the seconds and launches of each kernel, longest first.

    On a CPU the operators count, each without those that it calls. With ``torch.compile`` warm up first.
    """
    gpu = on_gpu(device)
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA, activity.CPU] if gpu else [activity.CPU]) as profiler:
        run()
        synchronize(device)
    kind = torch.autograd.DeviceType.CUDA if gpu else torch.autograd.DeviceType.CPU
    events = [event for event in profiler.key_averages() if event.device_type == kind and not event.is_user_annotation]
    spent = {
        event.key: ((event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6, event.count)
        for event in events
    }
    return dict(sorted(spent.items(), key=lambda item: item[1], reverse=True))


def top_kernels(run: Callable[[], object], device: Device, count: int = 15) -> list[str]:
    """Format the kernels that take most of the device time in a call: share, milliseconds, launches, name."""
    spent = kernel_seconds(run, device)
    total = sum(seconds for seconds, _ in spent.values()) or 1
    return [
        f'{100 * seconds / total:6.2f} % {1e3 * seconds:10.3f} ms {launches:6d} x  {name[:90]}'
        for name, (seconds, launches) in list(spent.items())[:count]
    ]
