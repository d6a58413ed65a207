"""The phases of `benchmarks/gpu.py`. Each phase runs in its own child process.

A phase gets a :class:`Recorder`, which writes each result the moment it exists, and :class:`Settings`. With
``rehearse`` it runs the same code on the CPU at toy size.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Result = TypeVar('Result')
ROOT = Path(__file__).resolve().parents[1]
RESULTS = 'results.jsonl'
VITB, VITL, MAE = (f'configs/pretrain/{name}.py' for name in ('bootmae_vitb', 'bootmae_vitl', 'mae_vitb'))
TOY = {
    VITB: 'configs/pretrain/bootmae_debug.py',
    VITL: 'configs/pretrain/bootmae_debug.py',
    MAE: 'configs/pretrain/mae_debug.py',
}
TOY_FILES = 'configs/pretrain/bootmae_small_data_cpu.py'  # reads JPEG files
# config, images of a step, compile (benchmarks/training.py), seconds that building and compiling may take
STEPS = (
    (VITB, 256, 'none', 15),
    (VITB, 256, 'blocks', 40),
    (VITB, 256, 'whole', 100),
    (MAE, 256, 'none', 15),
    (VITB, 256, 'whole:reduce-overhead', 80),
    (VITB, 512, 'whole', 70),
    (MAE, 256, 'blocks', 40),
)
LARGE_STEPS = ((VITL, 256, 'blocks', 40), (VITL, 128, 'whole', 100))
IDEAS = ('whole+coordinate_descent_tuning', 'whole+shape_padding', 'whole:max-autotune-no-cudagraphs')
DEAD_DEVICE = 70  # exit code of a child whose GPU returns only errors; a new process may continue


@dataclass
class Settings:
    """Settings of a phase."""

    until: float  # time.time() at which the process is ended
    rehearse: bool = False
    images: str | None = None  # folder or .tar of JPEG files
    data: str | None = None  # cifar10.npz, for the evidence

    @property
    def device(self) -> str:
        return 'cpu' if self.rehearse else 'cuda'

    def left(self) -> float:
        """Return the seconds until the end."""
        return self.until - time.time()


@dataclass
class Recorder:
    """Writes results as JSON lines and prints them."""

    folder: Path
    phase: str
    settings: Settings = field(default_factory=lambda: Settings(float('inf')))

    def write(self, kind: str, **values: object) -> None:
        record = dict(kind=kind, phase=self.phase) | values
        with (self.folder / RESULTS).open('a', encoding='utf-8') as file:
            file.write(json.dumps(record, default=str) + '\n')
        text = values.pop('row', values)
        print(
            f'[{self.phase}] {kind}: '
            + ', '.join(
                f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}'
                for name, value in text.items()
                if name not in ('versions', 'commit', 'date')
            ),
            flush=True,
        )

    def row(self, table: str, row: dict) -> None:
        """Record a row of benchmarks/results/TABLE.csv."""
        self.write('row', table=table, row=row)

    def attempt(self, what: str, needs: float, work: Callable[..., Result], *args: object) -> Result | None:
        """Run a part of the phase if there is enough time; a failure is recorded and does not affect other parts."""
        if self.settings.left() < needs:
            self.write('skipped', what=what, why=f'needs {needs:.0f} s, {self.settings.left():.0f} s are left')
            return None
        begin = time.time()
        try:
            result = work(*args)
        except Exception as error:
            traceback.print_exc()
            reason = str(error).strip().splitlines() or ['']
            self.write('failed', what=what, error=f'{type(error).__name__}: {reason[0][:300]}')
            leave_if_dead(self.settings.device)
            return None
        self.write('part', what=what, seconds=round(time.time() - begin, 1))
        return result


def leave_if_dead(device: str) -> None:
    """End this process if the GPU is unusable, for example after an illegal access; a new process starts afresh."""
    if device != 'cuda':
        return
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f'the GPU cannot be used any more in this process: {error}', flush=True)
        os._exit(DEAD_DEVICE)


def read_results(folder: Path) -> list[dict]:
    """Read all records so far, without an incomplete line."""
    path, records = folder / RESULTS, []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def preload(phase: str) -> None:
    """Import the modules of a phase before its time starts; no tensor is put on the GPU."""
    for name in dict(
        golden=('pytest', 'bootmae'),
        tests=('pytest', 'downstream'),
        downstream=('downstream',),
        reading=('reading',),
        environment=('measure',),
    ).get(phase, ('step',)):
        importlib.import_module(name)


# --- the phases ---------------------------------------------------------------------------------------------------


def environment(record: Recorder, settings: Settings) -> None:
    """Record the machine, the versions, and the output of the doctor."""
    import measure
    import torch

    record.write('environment', **measure.facts(settings.device))
    if settings.device == 'cuda':
        properties = torch.cuda.get_device_properties(0)
        record.write(
            'environment',
            memory_gib=properties.total_memory / 2**30,
            cuda=torch.version.cuda,
            capability=f'{properties.major}.{properties.minor}',
            arch_list=torch.cuda.get_arch_list(),
            jpeg_engine=jpeg_engine(),
        )
    record.write(
        'environment',
        cores=os.cpu_count(),
        **{
            f'free_gib_{Path(path).name}': shutil.disk_usage(path).free / 2**30
            for path in ('/dev/shm', '/tmp')
            if Path(path).exists()
        },
    )
    peak = measure.matmul_peak(settings.device)
    record.write('number', name='matrix peak', value=peak, unit='TFLOP/s')
    doctor = subprocess.run([sys.executable, 'tools/doctor.py'], cwd=ROOT, capture_output=True, text=True, timeout=80)
    print(doctor.stdout + doctor.stderr, flush=True)
    record.write('doctor', code=doctor.returncode, text=(doctor.stdout + doctor.stderr).strip()[-2000:])


def jpeg_engine() -> str:
    """Return whether nvJPEG finds the library with which it uses the JPEG engine; else it decodes file by file."""
    import ctypes

    try:
        ctypes.CDLL('libnvcuvid.so.1')
    except OSError as error:
        return f'not usable: {error}'
    return 'libnvcuvid found'


def golden(record: Recorder, settings: Settings) -> None:
    """Run the first file of tests/gpu: equality with the authors' release."""
    run_tests(record, settings, test_files('golden'))


def tests(record: Recorder, settings: Settings) -> None:
    """Run the files of tests/gpu that no other phase runs."""
    run_tests(record, settings, [path for path in test_files() if path not in test_files('golden', 'compiled')])


def compiled(record: Recorder, settings: Settings) -> None:
    """Run the last file of tests/gpu, which compiles for minutes."""
    run_tests(record, settings, test_files('compiled'))


def test_files(*names: str) -> list[Path]:
    """Files of tests/gpu with these names; without names all of them."""
    return sorted(path for name in names or ('',) for path in (ROOT / 'tests' / 'gpu').glob(f'test_*{name}.py'))


class Outcomes:
    """Pytest plugin that records each test when it ends and skips tests that ended before."""

    def __init__(self, record: Recorder, settings: Settings):
        self.record, self.settings = record, settings
        seen = {r['test']: r for r in read_results(record.folder) if r['kind'] == 'test'}
        for name, last in seen.items():  # a test without an end crashed its process
            if last['outcome'] == 'begun':
                record.write('test', test=name, outcome='failed', message='the process died or hung in this test')
        self.done = set(seen)

    def pytest_collection_modifyitems(self, items: list) -> None:
        items[:] = [item for item in items if item.nodeid not in self.done]

    def pytest_runtest_logstart(self, nodeid: str, location: tuple) -> None:
        self.record.write('test', test=nodeid, outcome='begun')

    def pytest_runtest_setup(self, item) -> None:
        compiles = getattr(item.module, 'SECONDS', 0) >= 100
        if self.settings.left() < (60 if compiles else 12):
            import pytest

            pytest.skip('no time left')

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == 'call' or (report.when == 'setup' and not report.passed) or report.failed:
            message = '' if report.passed else str(getattr(report.longrepr, 'reprcrash', None) or report.longrepr)
            self.record.write(
                'test',
                test=report.nodeid,
                outcome=report.outcome,
                seconds=round(report.duration, 2),
                message=message[-600:],
            )
        if report.failed:
            leave_if_dead(self.settings.device)


def run_tests(record: Recorder, settings: Settings, files: list[Path]) -> None:
    """Run test files in this process.

    Raises:
        FileNotFoundError: if there are none.
    """
    import pytest

    if not files:
        raise FileNotFoundError('no such tests in tests/gpu: is the checkout whole?')
    os.environ['BOOTMAE_TEST_GPU'] = 'rehearse' if settings.rehearse else '1'
    if settings.images:
        os.environ['BOOTMAE_TEST_IMAGES'] = str(Path(settings.images).resolve())
    os.chdir(ROOT)
    code = pytest.main(
        ['-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', '--durations=8', *map(str, files)],
        plugins=[Outcomes(record, settings)],
    )
    if code == DEAD_DEVICE:  # tests/gpu/conftest.py detected it; a new process continues
        os._exit(DEAD_DEVICE)
    if code not in (0, 1, 5):
        record.write('failed', what='pytest', error=f'ended with {code!r}: see the log')


def step(record: Recorder, settings: Settings) -> None:
    """Measure training steps of ViT-B: all variants alternate in one process."""
    measure_steps(record, settings, STEPS)


def step_large(record: Recorder, settings: Settings) -> None:
    """Measure training steps of ViT-L."""
    measure_steps(record, settings, LARGE_STEPS)


def ideas(record: Recorder, settings: Settings) -> None:
    """Measure compiler settings, each beside the plain compiled step."""
    measure_steps(record, settings, [(VITB, 256, compile, 80) for compile in ('whole', *IDEAS)])


def toy(config: str, batch: int, compile: str) -> tuple[str, int, str]:
    """Run the same at toy size, traced by the compiler but not compiled."""
    scope = compile.partition(':')[0].partition('+')[0]
    return TOY[config], batch // 64, compile if scope == 'none' else f'{scope}:eager'


def measure_steps(record: Recorder, settings: Settings, variants: Iterable[tuple[str, int, str, float]]) -> None:
    """Record a row for each variant when it is built, then rows of alternating turns of all variants."""
    import step as bench

    turns, steps, warmup = (2, 2, 1) if settings.rehearse else (3, 8, 3)
    runs, spent = {}, 0.0
    for config, batch, compile, needs in variants:
        name = f'{Path(config).stem}, {batch}, {compile}'
        config, batch, compile = toy(config, batch, compile) if settings.rehearse else (config, batch, compile)
        run = record.attempt(name, 0 if settings.rehearse else needs, training_run, config, batch, compile, warmup)
        if run is not None:
            runs[name] = run
            begin = time.time()
            alone = record.attempt(f'{name}, first turn', 3, bench.measure, {name: run}, 1, steps)
            spent += time.time() - begin
            for row in (alone or {}).values():
                record.row('step', row | dict(variant=name, turns=1))
    if runs:
        rows = record.attempt('turns', 1.2 * turns * spent, bench.measure, runs, turns, steps) or {}
        for name, row in rows.items():
            record.row('step', row | dict(variant=name, turns=turns))


def training_run(config: str, batch: int, compile: str, warmup: int, data: dict | None = None):
    """Build a run to measure; :class:`training.TrainingRun` is imported late because it takes seconds."""
    from training import TrainingRun

    return TrainingRun(config, batch, compile, data=data, warmup=warmup)


def reading(record: Recorder, settings: Settings) -> None:
    """Measure decoding on the device, and the fraction of the step's speed that remains with JPEG files as input."""
    import reading as bench

    sizes = dict(device='cuda', compile='whole', limit=256, batch=256, workers=4, steps=30, warmup=24, rounds=5)
    if settings.rehearse:
        sizes |= dict(
            device='cpu', compile='none', limit=8, batch=4, workers=1, steps=2, warmup=1, rounds=1, config=TOY_FILES
        )
    options = [text for name, value in sizes.items() for text in (f'--{name}', str(value))]
    with tempfile.TemporaryDirectory() as folder:
        if settings.images is None:
            bench.make_files(folder)
        images = [
            '--images',
            settings.images or folder,
            '--source',
            'ImageNet' if settings.images else 'photographs of installed packages',
        ]
        args = bench.parse_args([*options, *images, '--skip-one-core', '--step', '--readers', 'gpu', 'cpu'])

        def measure_all() -> None:
            for row in bench.rows_of(args):
                record.row('reading', row)

        record.attempt('reading', 60, measure_all)


def downstream(record: Recorder, settings: Settings) -> None:
    """Compare training steps of the four downstream recipes with the stock configs."""
    import downstream as bench

    small = dict(rounds=1, turn=1, warmup=0, memory=False, batch=2) if settings.rehearse else dict(rounds=6, turn=3)
    precision = 'float32' if settings.rehearse else 'bf16'
    for task in bench.CONFIGS:
        row = record.attempt(
            task,
            0 if settings.rehearse else 25,
            bench.compare,
            bench.settings(task, settings.device, ops='torchvision', **small),  # mmcv's RoIAlign takes no bf16
            precision,
        )
        if row is not None:
            record.row('downstream', row)


def profile(record: Recorder, settings: Settings) -> None:
    """Profile the compiled step: the most expensive kernels, and how long the device waits."""
    import measure

    config, batch, compile = toy(VITB, 256, 'whole') if settings.rehearse else (VITB, 256, 'whole')
    run = record.attempt('building', 0 if settings.rehearse else 40, training_run, config, batch, compile, 3)
    if run is None:
        return
    bare = run.bare_step()
    seconds = sum(measure.timed(bare, 2, 5, run.device)) / 5
    spent = measure.kernel_seconds(bare, run.device)
    busy = sum(value for value, _ in spent.values())
    record.write('kernels', lines=measure.top_kernels(bare, run.device, 25))
    record.write('number', name='idle share of the compiled step', value=100 * (1 - busy / seconds), unit='%')
