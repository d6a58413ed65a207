"""``make demo``: BootMAE against MAE and an untrained encoder, on images that the wheels carry, in minutes on a CPU.

Four tasks: frozen features and fine-tuning on digits and photographs, UperNet and Mask R-CNN on digit scenes.

It only calls the commands of ``tools/`` with the configs of ``configs/``, several at a time, and writes the report.
"""

import datetime
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmpretrain.registry import DATASETS

from ..models.masking import BlockMasking
from ..provenance import REPOSITORY, device_name, git_commit, versions
from ..report.curves import read_curve
from ..report.figures import reconstruction_grid
from ..report.overview import overview_text
from ..report.page import write_page
from ..report.rows import ResultRow, read_rows, write_rows
from ..report.tables import text_table
from .demo_scenes import TASKS, DenseTask, dense_pictures, dense_rows, last_checkpoint
from .reconstruct import hide, load_pretrained, reconstruct
from .results import result_row, run_facts
from .run import load_config

METHODS = ('mae', 'bootmae')
ALL_METHODS = ('untrained', *METHODS)
CONFIGS = {'photos': '{}_demo', 'digits': '{}_demo_digits'}  # under configs/pretrain; + _finetune under configs/cls
LABELS = {'photos': ('5', '20', 'all'), 'digits': ('5', '20', 'all')}
FINETUNE_LABELS = {'photos': '20', 'digits': '5'}  # as in the configs
DENSE_ENCODER = 'digits'  # the pretraining data of the encoders that segment and detect digits
FROZEN_DEPTH = 2  # of 3 blocks; the paper's linear probe reads block 9 of 12


@dataclass(frozen=True)
class Size:
    """How much the demo does: seeds, and epochs of pretraining by data set; None: as in the config."""

    seeds: int
    epochs: dict[str, int | None]
    finetune_epochs: int | None = None
    dense_small: bool = False


SIZES = {
    'full': Size(seeds=3, epochs=dict(photos=None, digits=None)),
    'small': Size(seeds=2, epochs=dict(photos=3, digits=6), finetune_epochs=10, dense_small=True),
}


@dataclass
class Job:
    """One command of tools/, its log, and what it needs to be finished before."""

    name: str
    command: list[str]
    log: Path
    finish: Callable[[], None] | None = None
    seconds: float = 0.0

    def run(self) -> None:
        """Run to the end.

        Raises:
            RuntimeError: if the command fails; its last lines and its log are named.
        """
        begin = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open('w') as log:
            code = subprocess.run(self.command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT,
                                  env=os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(REPOSITORY))).returncode
        if code:
            tail = ''.join(self.log.read_text().splitlines(keepends=True)[-8:])
            raise RuntimeError(f'{self.name} failed with exit code {code}, see {self.log}:\n{tail}')
        if self.finish:
            self.finish()
        self.seconds = time.monotonic() - begin


def run_jobs(title: str, jobs: list[Job], lanes: int, begin: float) -> None:
    """Run jobs side by side, one line each as they end."""
    print(f'{title}: {len(jobs)} runs, {lanes} at a time', flush=True)
    with ThreadPoolExecutor(lanes) as pool:
        def run(job: Job) -> None:
            job.run()
            done.append(job)
            elapsed = datetime.timedelta(seconds=round(time.monotonic() - begin))
            print(f'  [{len(done)}/{len(jobs)}] {elapsed} {job.name} ({job.seconds:.0f} s)', flush=True)
        done: list[Job] = []
        futures = [pool.submit(run, job) for job in jobs]
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
        for future in finished:
            future.result()


class Demo:
    """The runs of one demo below a folder."""

    def __init__(self, size: Size, folder: Path, lanes: int):
        self.size, self.folder, self.lanes, self.begin = size, folder, lanes, time.monotonic()
        self.runs = folder / 'runs'

    def options(self, epochs: int | None, seed: int) -> list[str]:
        values = [f'randomness.seed={seed}']
        return values + ([f'train_cfg.max_epochs={epochs}'] if epochs else [])

    def pretrain_dir(self, data: str, method: str, seed: int) -> Path:
        return self.runs / 'pretrain' / f'{data}_{method}_{seed}'

    def checkpoint(self, data: str, method: str, seed: int) -> Path:
        return last_checkpoint(self.pretrain_dir(data, method, seed))

    def tool(self, name: str, *args: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / 'tools' / name), *args]

    def pretraining(self) -> list[Job]:
        jobs = []
        for data in CONFIGS:
            for seed in range(self.size.seeds):
                for method in METHODS:
                    folder = self.pretrain_dir(data, method, seed)
                    config = f'configs/pretrain/{CONFIGS[data].format(method)}.py'
                    jobs.append(Job(
                        f'{method} on {data}, seed {seed}',
                        self.tool('train.py', config, '--work-dir', str(folder), '--cfg-options',
                                  *self.options(self.size.epochs[data], seed)),
                        folder.with_suffix('.log')))
        return jobs

    def frozen(self) -> list[Job]:
        """k-NN and linear probe of all seeds of a method in one command."""
        jobs = []
        for data in CONFIGS:
            for method in ALL_METHODS:
                config = CONFIGS[data].format('bootmae' if method == 'untrained' else method)
                files = [str(self.checkpoint(data, method, seed)) for seed in range(self.size.seeds)
                         ] if method != 'untrained' else []
                encoder = ['--init', *files] if files else ['--untrained', str(self.size.seeds)]
                rows = self.runs / 'frozen' / f'{data}_{method}.csv'
                jobs.append(Job(
                    f'frozen features of {method} on {data}',
                    self.tool('knn.py', f'configs/cls/{config}_finetune.py', *encoder, '--tasks', 'knn', 'linear',
                              '--labels', *LABELS[data], '--rows', str(rows), '--data', data, '--method', method,
                              '--label', 'demo', '--cfg-options', f'model.backbone.depth={FROZEN_DEPTH}',
                              'train_dataloader.dataset.labels_per_class=None'),
                    rows.with_suffix('.log')))
        return jobs

    def finetuning(self) -> list[Job]:
        jobs = []
        for data in CONFIGS:
            for seed in range(self.size.seeds):
                for method in ALL_METHODS:
                    jobs.append(self.finetune_job(data, method, seed))
        return jobs

    def finetune_job(self, data: str, method: str, seed: int) -> Job:
        folder = self.runs / 'finetune' / f'{data}_{method}_{seed}'
        config = f'configs/cls/{CONFIGS[data].format("bootmae" if method == "untrained" else method)}_finetune.py'
        encoder = self.encoder(data, method, seed)
        init = ['--init', encoder] if encoder else []
        return Job(
            f'fine-tuning of {method} on {data}, seed {seed}',
            self.tool('train.py', config, *init, '--work-dir', str(folder), '--cfg-options',
                      *self.options(self.size.finetune_epochs, seed),
                      f'train_dataloader.dataset.subset_seed={seed}'),
            folder.with_suffix('.log'),
            finish=lambda: self.finetune_row(data, method, seed, folder))

    def finetune_row(self, data: str, method: str, seed: int, folder: Path) -> None:
        accuracy = read_curve('', folder, having='accuracy/top1').values['accuracy/top1'][-1]
        run = run_facts(str(last_checkpoint(folder)))
        write_rows(folder.with_suffix('.csv'), [result_row(
            self.encoder(data, method, seed), run.get('init_hash', ''), data=data, method=method, task='finetune',
            labels=FINETUNE_LABELS[data], metric='accuracy', value=float(accuracy), seed=seed,
            protocol='all weights trained, layer decay 0.75', label='demo')])

    def encoder(self, data: str, method: str, seed: int) -> str | None:
        """The pretrained file, or None for the untrained encoder."""
        return None if method == 'untrained' else str(self.checkpoint(data, method, seed))

    def dense_dir(self, task: DenseTask, method: str, seed: int) -> Path:
        return self.runs / task.name / f'{method}_{seed}'

    def dense(self) -> list[Job]:
        """UperNet and Mask R-CNN of all seeds and methods."""
        return [self.dense_job(task, method, seed)
                for task in reversed(TASKS) for seed in range(self.size.seeds) for method in ALL_METHODS]

    def dense_job(self, task: DenseTask, method: str, seed: int) -> Job:
        folder, encoder = self.dense_dir(task, method, seed), self.encoder(DENSE_ENCODER, method, seed)
        length = [f'{task.length}={task.small}'] if self.size.dense_small else []
        return Job(
            f'{task.name} from {method}, seed {seed}',
            self.tool('train.py', task.config, *(['--init', encoder] if encoder else []), '--work-dir', str(folder),
                      '--cfg-options', f'randomness.seed={seed}', *length),
            folder.with_suffix('.log'),
            finish=lambda: write_rows(folder.with_suffix('.csv'), dense_rows(
                task, folder, encoder, method=method, seed=seed, label='demo')))

    def reconstructions(self, data: str, count: int = 6) -> bytes:
        """A picture of original, masked, and predicted images of the test split, under BootMAE's masks."""
        configs = {method: f'{REPOSITORY}/configs/pretrain/{CONFIGS[data].format(method)}.py' for method in METHODS}
        cfg = load_config(configs['bootmae'])
        dataset = DATASETS.build(dict(type=cfg.train_dataloader.dataset.type, split='val', size=cfg.img_size))
        images = dataset.images(np.linspace(0, len(dataset) - 1, count).astype(int))
        patch = (cfg.patch_size, ) * 2
        masking = BlockMasking(grid=(cfg.img_size // cfg.patch_size, ) * 2, **cfg.masking)
        rng = np.random.RandomState(0)
        orders = np.stack([masking.draw_order(rng) for _ in images])
        panels = dict(original=images, masked=hide(images, orders, masking.num_masked, patch))
        for method in METHODS:
            model = load_pretrained(configs[method], str(self.checkpoint(data, method, 0)))
            panels[method] = reconstruct(model, images, orders, masking.num_masked, patch)
        return reconstruction_grid(panels)

    def run(self) -> Path:
        """Run everything and write ``report.html`` and ``results.csv``; their old versions stay until then."""
        shutil.rmtree(self.runs, ignore_errors=True)
        run_jobs('Pretraining', self.pretraining(), self.lanes, self.begin)
        run_jobs('Frozen features (k-NN, linear probe)', self.frozen(), self.lanes, self.begin)
        run_jobs('Fine-tuning with few labels', self.finetuning(), self.lanes, self.begin)
        run_jobs('Segmentation and detection of digit scenes', self.dense(), self.lanes, self.begin)
        rows = [row for file in sorted(self.runs.glob('*/*.csv')) for row in read_rows(file)]
        results = self.folder / 'results.csv'
        results.unlink(missing_ok=True)
        write_rows(results, rows)
        report = self.write_report(rows)
        print(text_table(rows))
        print(overview_text(rows))
        print(f'report: {report}\nrows:   {results}')
        print(f'done in {datetime.timedelta(seconds=round(time.monotonic() - self.begin))}')
        return report

    def write_report(self, rows: list[ResultRow]) -> Path:
        curves = [read_curve(f'{data}/{method}/{seed}', self.pretrain_dir(data, method, seed))
                  for data in CONFIGS for method in METHODS for seed in range(self.size.seeds)]
        pictures = {f'{data}: test images under BootMAE\'s block-wise masks, seed 0': self.reconstructions(data)
                    for data in CONFIGS}
        predictions = {
            f'{task.protocol} on the first test scenes, runs of seed 0':
                dense_pictures(task, {method: self.dense_dir(task, method, 0) for method in ALL_METHODS})
            for task in TASKS}
        provenance = dict(commit=git_commit(), device=device_name(), cores=os.cpu_count(), **versions())
        commands = {
            'This demo': 'make demo' if self.size == SIZES['full'] else 'make demo DEMO=small',
            'One of its runs': 'tools/train.py configs/pretrain/bootmae_demo.py',
            'Segmentation from an encoder': 'tools/train.py configs/seg/upernet_debug.py --init FILE',
            'Detection from an encoder': 'tools/train.py configs/det/mask_rcnn_debug.py --init FILE',
            'The full-size run': 'tools/dist_train.sh configs/pretrain/bootmae_vitb.py 8',
        }
        notes = [
            f'Frozen features are read after block {FROZEN_DEPTH} of 3, for all methods alike, as the paper\'s linear '
            'probe reads block 9 of 12. Seed s uses the pretraining of seed s and draw s of the labelled images.',
            'Fine-tuning uses the same settings for all methods and was not tuned.',
            f'Segmentation and detection start from the encoders pretrained on {DENSE_ENCODER}; their settings were '
            'chosen by hand so that a minute of training shows something, and are the same for all methods. Training '
            'and test scenes share neither a digit nor a part of a photograph.',
        ]
        return write_page(self.folder / 'report.html', title='BootMAE and MAE at demo size', rows=rows, curves=curves,
                          pictures=pictures, provenance=provenance, commands=commands, notes=notes,
                          predictions=predictions)
