"""The frozen encoder of a pretraining judged while it trains: ``tools/knn.py`` at an interval.

Shape letters: N images, D feature width.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine import dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmpretrain.registry import DATASETS
from torch import nn
from torch.utils.data import Dataset, Subset

from ...checkpoints import error_context, find_encoder, match
from ...config.load import load_config
from ...config.model import build_model
from ...config.weights import check_statistics
from ...data.subsets import few_labels, spread
from ...evaluation.probe import Features, features_of, knn_accuracy, linear_accuracy
from ..unwrap import bare_model
from .heartbeat import HeartbeatHook
from .provenance import num_heads

TASKS = ('knn', 'linear')
HELD_OUT = 5  # of a folder without train and val, each fifth image is a query
THIS_RUN = 'the encoder in training'


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Afterwards the generators of Python, numpy and torch, the current GPU's too, are what they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)


def beat(runner, phase: str | None = None) -> None:
    """Tell the other processes that this one goes on, in a phase that has time if one is given."""
    for hook in runner.hooks:
        if isinstance(hook, HeartbeatHook) and hook.heart is not None:
            hook.heart.move(phase or hook.heart.beat.phase, runner.iter)


def is_due(hook: Hook, runner) -> bool:
    """Whether an epoch that has just been trained is one of a hook's, which the last one always is."""
    return hook.every_n_epochs(runner, hook.interval) or hook.is_last_train_epoch(runner)


def find_config(path: str) -> Path:
    """A config as named from the current folder, else from this repository's."""
    beside = Path(__file__).resolve().parents[2] / path
    return beside if not Path(path).is_file() and beside.is_file() else Path(path)


def encoder_content(model: nn.Module) -> dict:
    """A pretraining model as a checkpoint of it would be read, without copies."""
    facts = dict(
        mean=model.data_preprocessor.mean.flatten().tolist(),
        std=model.data_preprocessor.std.flatten().tolist(),
        img_size=list(model.backbone.img_size),
        num_heads=num_heads(model.backbone),
    )
    return dict(state_dict=model.state_dict(), meta=dict(bootmae=facts))


def choose(dataset: Dataset, labels: str, limit: int | None, seed: int) -> Subset:
    """The labeled images: ``labels`` of each class (all: 'all'), of at most ``limit`` images."""
    index = spread(len(dataset), limit)
    if labels != 'all':
        classes = np.asarray(dataset.get_gt_labels())[index]
        index = index[few_labels(classes, int(labels), seed, remedy='lower labels or raise max_images')]
    return Subset(dataset, index.tolist())


def data_sets(cfg: Config, folder: str | None) -> tuple[Dataset, Dataset]:
    """Labeled images and queries, without augmentation.

    Args:
        cfg: a config of configs/cls.
        folder: of images to take in place of the config's: with a folder a class, or ``train`` and ``val`` (or
            ``test``) that have them. Without these, each fifth image is a query.
    """
    pipeline = cfg.test_dataloader.dataset.pipeline

    def build(dataset: dict) -> Dataset:
        return DATASETS.build(dict(dataset, pipeline=pipeline, test_mode=True))

    if folder is None:
        return build(cfg.train_dataloader.dataset), build(cfg.test_dataloader.dataset)
    images = dict(type='ImageFiles', roots=folder, labels='folder')
    queries = next((name for name in ('val', 'test') if Path(folder, name).is_dir()), None)
    if queries and Path(folder, 'train').is_dir():
        return build(dict(images, split='train')), build(dict(images, split=queries))
    whole = build(images)
    last = np.arange(len(whole)) % HELD_OUT == HELD_OUT - 1
    return whole.get_subset(np.flatnonzero(~last).tolist()), whole.get_subset(np.flatnonzero(last).tolist())


def shared_features(extract: Callable[[Subset], Features], images: Subset) -> Features:
    """Features of images, each process working out its part; all get all of them, in order."""
    world, rank = dist.get_world_size(), dist.get_rank()
    if world == 1:
        return extract(images)
    count = len(images)
    each = -(-count // world)  # all give as many, some an image twice
    part = Subset(images, [(rank * each + k) % count for k in range(each)])
    device = dist.get_comm_device()
    gathered = [torch.cat(dist.all_gather(values.to(device))).cpu()[:count] for values in extract(part)]
    return gathered[0], gathered[1]


@HOOKS.register_module()
class OnlineProbeHook(Hook):
    """Every few epochs, and after the last, what ``tools/knn.py`` says of the encoder as it is then.

    Before the first epoch the untrained encoder is judged, with which the later numbers are to be compared. They are
    logged with the epoch as step, as ``probe/knn`` and ``probe/linear``, in percent. All processes share the images;
    nothing of the training changes.

    Args:
        config: a config of configs/cls with the encoder's size and input statistics: its training images are the
            labeled ones, its test images the queries.
        interval: epochs from one time to the next.
        tasks: ``knn`` and ``linear`` (a logistic regression on the CPU, which takes long with many classes).
        labels: labeled images per class, or 'all'.
        max_images: so many labeled images and so many queries at most, evenly spread over the data set's order.
        folder: of labeled images in place of the config's, see :func:`data_sets`; '' for none: then nothing is done.
        options: changes to the config, as of ``--cfg-options``.
        source: BootMAE's ``online`` or ``momentum`` encoder.
        k: neighbors.
        seed: draws the labeled images.
        workers: processes that read images, of each process.
        batch_size: images at a time.

    Raises:
        ValueError, FileNotFoundError: for wrong values, and before the first step if encoder, config and data do not
            fit.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        config: str,
        interval: int = 10,
        tasks: Sequence[str] = ('knn',),
        labels: str | int = 'all',
        max_images: int | None = None,
        folder: str | None = None,
        options: dict | None = None,
        source: str = 'online',
        k: int = 20,
        seed: int = 0,
        workers: int = 0,
        batch_size: int = 256,
    ):
        tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        if wrong := [task for task in tasks if task not in TASKS]:
            raise ValueError(f'OnlineProbeHook tasks={wrong[0]!r}: give some of {", ".join(TASKS)}')
        if labels != 'all' and not (str(labels).isdecimal() and int(labels) > 0):
            raise ValueError(f'OnlineProbeHook labels={labels!r}: give "all" or a number of images per class')
        for name, value in dict(interval=interval, max_images=max_images, k=k, batch_size=batch_size).items():
            if value is not None and value < 1:
                raise ValueError(f'OnlineProbeHook {name}={value}: give a number from 1 on')
        self.config, self.interval, self.tasks, self.labels = config, interval, tasks, str(labels)
        self.max_images, self.folder, self.options, self.source = max_images, folder, options, source
        self.k, self.seed, self.workers, self.batch_size = k, seed, workers, batch_size
        self.classifier: nn.Module | None = None
        self.reference = self.query = None

    def before_train(self, runner) -> None:
        if self.folder == '':
            return
        with kept_random_state():
            self.prepare(bare_model(runner))
        runner.logger.info(
            f'online probe: {" and ".join(self.tasks)} every {self.interval} epochs on '
            f'{len(self.reference):,} labeled images and {len(self.query):,} queries of '
            f'{self.folder or self.config}'
        )
        if runner.iter == 0:
            self.probe(runner, 0)

    def prepare(self, model: nn.Module) -> None:
        """Build what takes the encoder and the data sets; refuse what does not fit."""
        cfg = load_config(find_config(self.config), self.options)
        if cfg.model.type != 'ImageClassifier':
            raise ValueError(
                f'OnlineProbeHook config={self.config!r}: its model is no ImageClassifier; give a config of configs/cls'
            )
        content = encoder_content(model)
        facts = content['meta']['bootmae']
        check_statistics(cfg, THIS_RUN, facts['mean'], facts['std'])
        self.classifier = build_model(cfg).eval()
        with error_context(THIS_RUN):
            match(self.classifier.backbone, find_encoder(content, self.source))
        reference, query = data_sets(cfg, self.folder)
        self.reference = choose(reference, self.labels, self.max_images, self.seed)
        self.query = choose(query, 'all', self.max_images, self.seed)

    def after_train_epoch(self, runner) -> None:
        if self.classifier is not None and is_due(self, runner):
            beat(runner, 'val')
            self.probe(runner, runner.epoch + 1)

    def probe(self, runner, epoch: int) -> None:
        """Judge the encoder and log it."""
        with kept_random_state():
            scores = self.judge(bare_model(runner), lambda: beat(runner))
        scores = {f'probe/{task}': score for task, score in scores.items()}
        runner.logger.info(
            f'online probe, epoch {epoch}: ' + ', '.join(f'{name} {score:.2f} %' for name, score in scores.items())
        )
        files = [hook.json_log_path for hook in runner.hooks if hasattr(hook, 'json_log_path')]
        runner.visualizer.add_scalars(scores, step=epoch, file_path=files[0] if files else None)

    def judge(self, model: nn.Module, progress: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Percent right by task, the same on all processes."""
        found = match(self.classifier.backbone, find_encoder(encoder_content(model), self.source))
        self.classifier.backbone.load_state_dict(found.state, strict=False)
        self.classifier.to(get_device())

        def extract(images: Subset) -> Features:
            return features_of(self.classifier, images, self.batch_size, self.workers, progress)

        reference, query = (shared_features(extract, images) for images in (self.reference, self.query))
        self.classifier.cpu()
        scores = [None]
        if dist.is_main_process():  # the others wait for it below
            scores[0] = {
                task: knn_accuracy(reference, query, self.k) if task == 'knn' else linear_accuracy(reference, query)
                for task in self.tasks
            }
        dist.broadcast_object_list(scores)
        return scores[0]
