"""BootMAE against MAE on CIFAR-10 with a ViT-Ti/4, in the minutes that a GPU is at hand: a phase of benchmarks/gpu.py.

Both methods train for equally many epochs, as many as fit, through `tools/train.py`. Then `tools/knn.py` judges them
and an untrained encoder by k-NN and logistic regression, and `tools/train.py` fine-tunes all three on all labels. The
horizon of the EMA is given in steps and never below 1,000, whatever the length of the run.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from phases import ROOT, Recorder, Settings, training_run

METHODS = ('bootmae', 'mae')
COMPILE = dict(bootmae=('whole:reduce-overhead', 'whole', 'none'), mae=('blocks', 'none'))  # the first that works
HORIZON = 1000  # steps of the EMA at the start of training
KNN_SECONDS, START_SECONDS = 30, 25  # of a frozen evaluation; of a training before its first step
FINETUNE_EPOCHS, FINETUNE_RATE = 10, 6000  # images/s, an assumption that only divides the time


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


def pretraining_options(method: str, images: Path, count: int, epochs: int, compile, rehearse: bool) -> dict:
    """What the pretraining of a method changes in its config."""
    batch = 32 if rehearse else 512
    steps = epochs * (count // batch)
    hooks = dict(
        probe=dict(folder=''), checkpoint=dict(interval=10_000, save_last=True), pictures=dict(interval=10_000)
    )
    options = dict(
        train_dataloader=dict(
            batch_size=batch,
            num_workers=0 if rehearse else 12,
            persistent_workers=not rehearse,
            dataset=dict(roots=str(images), split='train', limit=None),
        ),
        auto_scale_lr=dict(base_batch_size=batch),
        train_images=count,
        train_cfg=dict(max_epochs=epochs),
        param_scheduler=dict(warmup=max(epochs // 20, 0.5)),
        default_hooks=hooks,
        compile=compile,
    )
    if method == 'bootmae':
        ema = ((0, 1 - 1 / HORIZON), (epochs, 1 - 1 / max(HORIZON, steps)))
        options['custom_hooks'] = [dict(type='BootMAEHook', ema=ema, ramp=0.25)]
    return options


def finetuning_options(images: Path, count: int, epochs: int, classes: int, rehearse: bool) -> dict:
    """What fine-tuning and the frozen evaluation change in their config."""
    workers = dict(num_workers=0, persistent_workers=False) if rehearse else dict(num_workers=12)
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


def pace(method: str, config: Path, batch: int, choices: tuple[str, ...]) -> tuple[str, float]:
    """How to compile a method's step, and images/s of its training loop with it, from files."""
    import measure

    for compile in choices:
        try:
            run = training_run(str(config), batch, compile, 5, {})
        except Exception as error:
            print(f'{method}: compile={compile} does not work here: {type(error).__name__}: {error}', flush=True)
            continue
        seconds = measure.alternate({method: partial(run.advance, 20)}, 1, run.device)[method][0]
        run.close()
        return compile, batch * 20 / seconds
    raise RuntimeError(f'{method}: no way to compile works')


def epochs_that_fit(seconds: float, count: int, rates: dict[str, float]) -> int:
    """Epochs of both methods together in the time that evaluation leaves."""
    evaluation = 3 * (KNN_SECONDS + START_SECONDS + FINETUNE_EPOCHS * count / FINETUNE_RATE) + 2 * START_SECONDS
    return int(0.95 * (seconds - evaluation) / sum(count / rate for rate in rates.values()))


def evidence(record: Recorder, settings: Settings) -> None:
    """The phase: images, pace, two pretrainings, and the evaluation of three encoders."""
    from training import compile_option

    size = '_cpu' if settings.rehearse else ''
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, 'images.tar')
        count = write_tar(settings, images)
        classes = 3 if settings.data is None else 10

        def config(name: str, base: str, options: dict) -> Path:
            path = record.folder / f'{name}.py'
            path.write_text(config_text(base, images, options), encoding='utf-8')
            return path

        rates, chosen = {}, {}
        for method in METHODS:
            options = pretraining_options(method, images, count, 100, False, settings.rehearse)
            path = config(f'pretrain_{method}', f'pretrain/{method}_cifar10{size}.py', options)
            choices = ('none',) if settings.rehearse else COMPILE[method]
            found = record.attempt(
                f'pace of {method}', 0, pace, method, path, options['train_dataloader']['batch_size'], choices
            )
            if found is None:
                return
            chosen[method], rates[method] = found
            record.write(
                'number', name=f'pace of {method}, compile={chosen[method]}', value=rates[method], unit='images/s'
            )
        epochs = 1 if settings.rehearse else min(epochs_that_fit(settings.left(), count, rates), 400)
        finetune_epochs = 1 if settings.rehearse else FINETUNE_EPOCHS
        if epochs < 1:
            record.write('failed', what='evidence', error=f'{settings.left():.0f} s are too few for an epoch of both')
            return
        record.write('number', name='epochs of both methods', value=epochs, unit='epochs')
        weights: dict[str, Path | None] = dict(untrained=None)
        for method in METHODS:
            options = pretraining_options(
                method, images, count, epochs, compile_option(chosen[method]), settings.rehearse
            )
            path = config(f'pretrain_{method}', f'pretrain/{method}_cifar10{size}.py', options)
            begin, work = time.time(), Path(folder, method)
            record.attempt(f'pretraining {method}', 0, tool, settings, 'tools/train.py', path, '--work-dir', work)
            record.write('number', name=f'seconds of pretraining, {method}', value=time.time() - begin, unit='s')
            found = sorted(work.glob('epoch_*.pth'))
            if found:
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
    rows = record.folder / 'evidence_rows.csv'
    labels, workers = (8, 0) if settings.rehearse else (1000, 12)
    for method, file in weights.items():
        start = ['--init', file] if file else ['--untrained', 1]
        record.attempt(
            f'frozen features, {method}',
            0,
            tool,
            settings,
            'tools/knn.py',
            configs[method],
            *start,
            '--tasks',
            'knn',
            'linear',
            '--labels',
            labels,
            '--workers',
            workers,
            '--data-name',
            'CIFAR-10',
            '--rows',
            rows,
        )
    for method, file in weights.items():
        record.attempt(
            f'fine-tuning, {method}',
            0,
            finetune,
            settings,
            method,
            file,
            configs[method],
            folder / f'finetune_{method}',
            rows,
        )
    from bootmae.results.rows import read_rows

    for row in read_rows(rows) if rows.exists() else ():
        record.write('number', name=f'{row.method} {row.task} {row.labels}', value=row.value, unit='%')


def finetune(settings: Settings, method: str, file: Path | None, config: Path, work: Path, rows: Path) -> None:
    """Fine-tune an encoder on all labels, and add the last validation to the rows."""
    tool(
        settings,
        'tools/train.py',
        config,
        '--work-dir',
        work,
        *(['--init', file] if file else []),
        '--rows',
        rows,
        '--row',
        'task=finetune',
        'data=CIFAR-10',
        f'method={method}',
    )
