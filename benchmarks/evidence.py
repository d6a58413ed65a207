"""BootMAE against MAE on CIFAR-10 with a ViT-Ti/4, in the minutes that a GPU is at hand: a phase of benchmarks/gpu.py.

Both methods train for equally many epochs, as many as fit, through `tools/train.py`. Then `tools/knn.py` judges them
and an untrained encoder by k-NN and logistic regression, and `tools/train.py` fine-tunes all three on all labels. Such
small models leave most of a GPU idle, so what is compared runs side by side. The horizon of the EMA is given in steps
and never below 1,000, whatever the length of the run.
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from phases import ROOT, Recorder, Settings

METHODS = ('bootmae', 'mae')
HORIZON = 1000  # steps of the EMA at the start of training
PILOT_EPOCHS = 2  # measure the pace
START_SECONDS = 30  # of a training before its first step
JUDGING_SECONDS = 180  # of the evaluation of three encoders side by side: a guess that only divides the time
SHARE = 0.9  # of the time that is left for the trainings, since paces vary
FINETUNE_EPOCHS = 10


def write_tar(settings: Settings, path: Path) -> int:
    """The images as ``train/CLASS/N.jpg`` and ``val/CLASS/N.jpg`` in an uncompressed tar, which is read in place.

    Returns:
        The number of training images.
    """
    images = list(cifar10(Path(settings.data)) if settings.data else photographs())
    with tarfile.open(path, 'w') as archive:
        for name, data in sorted(images):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return sum(name.startswith('train/') for name, _ in images)


def cifar10(path: Path):
    """(name, JPEG file) of each image of an archive with ``jpeg``, ``offsets``, ``label``, ``split``, ``classes``."""
    if not path.is_file():
        raise FileNotFoundError(f'no archive {path}: give --data cifar10.npz')
    with np.load(path) as archive:
        data = {name: archive[name] for name in ('jpeg', 'offsets', 'label', 'split', 'classes')}
    files, offsets = data['jpeg'].tobytes(), data['offsets']
    for i, (label, split) in enumerate(zip(data['label'], data['split'], strict=True)):
        yield f'{("train", "val")[split]}/{data["classes"][label]}/{i:05}.jpg', files[offsets[i] : offsets[i + 1]]


def photographs():
    """A few crops of the photographs that installed packages carry, a class a photograph: for a rehearsal."""
    from PIL import Image

    from bootmae.data.embedded import PHOTOS, photo

    rng = np.random.default_rng(0)
    for name in list(PHOTOS)[:3]:
        picture = photo(name)
        for i in range(48):
            top, left = (int(rng.integers(0, side - 64)) for side in picture.shape[:2])
            file = io.BytesIO()
            Image.fromarray(picture[top : top + 64, left : left + 64]).resize((32, 32)).save(file, 'JPEG', quality=90)
            yield f'{"train" if i < 32 else "val"}/{name}/{i:05}.jpg', file.getvalue()


def config_text(base: str, images: Path, options: dict) -> str:
    """A config that changes another one, reads these images, and looks at none beside them while it trains."""
    lines = [f'_base_ = {str(ROOT / "configs" / base)!r}']
    for name, value in options.items():
        lines.append(f'{name} = {value!r}')
    return '\n'.join(lines) + '\n'


def pretraining_options(method: str, images: Path, count: int, epochs: int, rehearse: bool) -> dict:
    """What the pretraining of a method changes in its config."""
    batch = 32 if rehearse else 512
    steps = epochs * (count // batch)
    hooks = dict(
        probe=dict(folder=''), checkpoint=dict(interval=10_000, save_last=True), pictures=dict(interval=10_000)
    )
    options = dict(
        train_dataloader=dict(
            batch_size=batch,
            num_workers=0 if rehearse else 7,  # of 16 cores, beside the other method
            persistent_workers=not rehearse,
            dataset=dict(roots=str(images), split='train', limit=None),
        ),
        auto_scale_lr=dict(base_batch_size=batch),
        train_images=count,
        train_cfg=dict(max_epochs=epochs),
        param_scheduler=dict(warmup=max(epochs // 20, 0.5)),
        default_hooks=hooks,
    )
    if method == 'bootmae':
        ema = ((0, 1 - 1 / HORIZON), (epochs, 1 - 1 / max(HORIZON, steps)))
        options['custom_hooks'] = [dict(type='BootMAEHook', ema=ema, ramp=0.25)]
    return options


def finetuning_options(images: Path, count: int, epochs: int, classes: int, rehearse: bool) -> dict:
    """What fine-tuning and the frozen evaluation change in their config."""
    workers = dict(num_workers=0, persistent_workers=False) if rehearse else dict(num_workers=5)
    val = dict(workers, dataset=dict(roots=str(images), split='val'))
    return dict(
        train_dataloader=dict(workers, dataset=dict(roots=str(images), split='train', limit=None)),
        val_dataloader=val,
        test_dataloader=val,
        train_images=count,
        model=dict(head=dict(num_classes=classes)),
        data_preprocessor=dict(num_classes=classes),
        train_cfg=dict(max_epochs=epochs, val_interval=epochs),
        param_scheduler=dict(warmup=max(epochs // 10, 0.5)),
        default_hooks=dict(checkpoint=dict(interval=10_000, save_last=True)),
    )


def tool(settings: Settings, *arguments: object) -> None:
    """Run a command of this repository; RuntimeError with the end of its output if it fails."""
    command = [sys.executable, *map(str, arguments)]
    print(f'=== {" ".join(command)}', flush=True)
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=max(settings.left() - 5, 1),
    )
    tail = '\n'.join(done.stdout.splitlines()[-12:])
    print(tail, flush=True)
    if done.returncode:
        raise RuntimeError(f'{arguments[0]} ended with {done.returncode}: {tail[-400:]}')


def pace(folder: Path) -> float:
    """Images per second at the end of a training, by its log."""
    (file,) = folder.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line['images_per_second'] for line in lines if 'images_per_second' in line][-1]


def epochs_that_fit(seconds: float, count: int, rates: dict[str, float]) -> int:
    """Epochs of both methods side by side in the time that evaluation leaves."""
    return int(SHARE * (seconds - JUDGING_SECONDS - START_SECONDS) / (count / min(rates.values())))


def side_by_side(record: Recorder, what: str, work: Callable[..., None], methods: Iterable[str]) -> None:
    """Do the same for several methods at a time; a failure is recorded and costs the others nothing."""
    methods = list(methods)
    with ThreadPoolExecutor(len(methods)) as pool:
        for method, done in [(method, pool.submit(work, method)) for method in methods]:
            record.attempt(f'{what}, {method}', 0, done.result)


def evidence(record: Recorder, settings: Settings) -> None:
    """The phase: images, a pilot, two pretrainings, and the evaluation of three encoders."""
    size = '_cpu' if settings.rehearse else ''
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, 'images.tar')
        count = write_tar(settings, images)
        classes = 3 if settings.data is None else 10

        def config(name: str, base: str, options: dict) -> Path:
            path = record.folder / f'{name}.py'
            path.write_text(config_text(base, images, options), encoding='utf-8')
            return path

        def pretrain(what: str, epochs: int) -> dict[str, Path]:
            """Work directories of both methods."""
            configs = {
                method: config(
                    f'{what}_{method}',
                    f'pretrain/{method}_cifar10{size}.py',
                    pretraining_options(method, images, count, epochs, settings.rehearse),
                )
                for method in METHODS
            }
            works = {method: Path(folder, what, method) for method in METHODS}

            def train(method: str) -> None:
                begin = time.time()
                tool(settings, 'tools/train.py', configs[method], '--work-dir', works[method])
                record.write('number', name=f'seconds of {what}, {method}', value=time.time() - begin, unit='s')

            side_by_side(record, what, train, METHODS)
            return works

        works = pretrain('pilot', 1 if settings.rehearse else PILOT_EPOCHS)
        rates = {method: pace(work) for method, work in works.items()}
        for method, rate in rates.items():
            record.write('number', name=f'pace of {method}', value=rate, unit='images/s')
        epochs = 1 if settings.rehearse else min(epochs_that_fit(settings.left(), count, rates), 400)
        finetune_epochs = 1 if settings.rehearse else FINETUNE_EPOCHS
        if epochs < 1:
            record.write('failed', what='evidence', error=f'{settings.left():.0f} s are too few for an epoch of both')
            return
        record.write('number', name='epochs of both methods', value=epochs, unit='epochs')
        works = pretrain('pretraining', epochs)
        weights: dict[str, Path | None] = dict(untrained=None)
        for method, work in works.items():
            if found := sorted(work.glob('epoch_*.pth')):
                weights[method] = found[-1]
        options = finetuning_options(images, count, finetune_epochs, classes, settings.rehearse)
        paths = {
            method: config(f'finetune_{method}', f'cls/{method}_cifar10{size}_finetune.py', options)
            for method in METHODS
        }
        paths['untrained'] = paths['bootmae']
        if settings.rehearse:  # MAE takes the same way
            del weights['mae']
        judge(record, settings, paths, weights, Path(folder))


def judge(
    record: Recorder, settings: Settings, configs: dict[str, Path], weights: dict[str, Path | None], folder: Path
) -> None:
    """Frozen features first, which are cheap, then fine-tuning; a row of results for each."""
    from bootmae.results.rows import read_rows

    labels, workers = (8, 0) if settings.rehearse else (1000, 5)

    def rows(method: str) -> Path:
        return record.folder / f'evidence_{method}.csv'  # a file for each, which run at the same time

    def freeze(method: str) -> None:
        start = ['--init', weights[method]] if weights[method] else ['--untrained', 1]
        chosen = ['--tasks', 'knn', 'linear', '--labels', labels, '--workers', workers]
        tool(
            settings,
            'tools/knn.py',
            configs[method],
            *start,
            *chosen,
            '--data-name',
            'CIFAR-10',
            '--rows',
            rows(method),
        )

    def finetune(method: str) -> None:
        start = ['--init', weights[method]] if weights[method] else []
        columns = ['--row', 'task=finetune', 'data=CIFAR-10', f'method={method}']
        work = folder / f'finetune_{method}'
        tool(settings, 'tools/train.py', configs[method], '--work-dir', work, *start, '--rows', rows(method), *columns)

    side_by_side(record, 'frozen features', freeze, weights)
    side_by_side(record, 'fine-tuning', finetune, weights)
    for method in weights:
        for row in read_rows(rows(method)) if rows(method).exists() else ():
            record.write('number', name=f'{row.method} {row.task} {row.labels}', value=row.value, unit='%')
