"""Evaluates the frozen encoder during pretraining: ``tools/knn.py`` at an interval.

Shape letters: N images, D feature width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine import dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset, Subset

from ...checkpoints import error_context, find_encoder, match
from ...checkpoints.heads import model_heads
from ...config.load import load_config
from ...config.model import build_model
from ...config.weights import adopts_statistics, check_statistics, preprocessor_of
from ...data.subsets import few_labels, spread
from ...evaluation.probe import evaluation_images, features_of, knn_accuracy, linear_accuracy
from ...evaluation.rankme import before_norm, rank_me
from ...text import count_of
from ..unwrap import bare_model
from .between_epochs import is_due, kept_random_state

TASKS = ('knn', 'linear')
HELD_OUT = 5  # every fifth image of a folder without train and val is a query
THIS_RUN = 'the encoder in training'  # stands for a file name in messages
RANK = 'rankme'  # beside the tasks


def encoder_content(model: nn.Module) -> dict:
    """Return what a checkpoint of a pretraining model would hold, without copying the weights."""
    facts = dict(
        mean=model.data_preprocessor.mean.flatten().tolist(),
        std=model.data_preprocessor.std.flatten().tolist(),
        img_size=list(model.backbone.img_size),
        num_heads=model_heads(model.backbone),
    )
    return dict(state_dict=model.state_dict(), meta=dict(bootmae=facts))


def select_images(dataset: Dataset, labels: str, limit: int | None, seed: int) -> Subset:
    """Select ``labels`` images of each class ('all': every image) from at most ``limit`` evenly spaced ones."""
    index = spread(len(dataset), limit)
    if labels != 'all':
        classes = np.asarray(dataset.get_gt_labels())[index]
        index = index[few_labels(classes, int(labels), seed, remedy='lower labels or raise max_images')]
    return Subset(dataset, index.tolist())


def data_sets(cfg: Config, folder: str | None) -> tuple[Dataset, Dataset]:
    """Build the data sets of labeled images and of queries, without augmentation.

    Args:
        cfg: a config of configs/cls.
        folder: image folder that replaces the config's data: one folder per class, either directly or in ``train`` and
            ``val`` (or ``test``). Without ``train`` and ``val`` every fifth image is a query.
    """
    pipeline = cfg.test_dataloader.dataset.pipeline

    def build(dataset: dict) -> Dataset:
        return evaluation_images(dataset, pipeline)

    if folder is None:
        return build(cfg.train_dataloader.dataset), build(cfg.test_dataloader.dataset)
    images = dict(type='ImageFiles', roots=folder, labels='folder')
    if extensions := cfg.test_dataloader.dataset.get('extensions'):
        images['extensions'] = extensions
    queries = next((name for name in ('val', 'test') if Path(folder, name).is_dir()), None)
    if queries and Path(folder, 'train').is_dir():
        return build(dict(images, split='train')), build(dict(images, split=queries))
    whole = build(images)
    last = np.arange(len(whole)) % HELD_OUT == HELD_OUT - 1
    return whole.get_subset(np.flatnonzero(~last).tolist()), whole.get_subset(np.flatnonzero(last).tolist())


def shared_features(extract: Callable[[Subset], tuple[torch.Tensor, ...]], images: Subset) -> tuple[torch.Tensor, ...]:
    """Extract tensors with a row per image, a part on each process; every process gets all rows, in order."""
    world, rank = dist.get_world_size(), dist.get_rank()
    if world == 1:
        return extract(images)
    count = len(images)
    each = -(-count // world)  # all parts have the same size, so some images are used twice
    part = Subset(images, [(rank * each + k) % count for k in range(each)])
    device = dist.get_comm_device()
    return tuple(torch.cat(dist.all_gather(values.to(device))).cpu()[:count] for values in extract(part))


@HOOKS.register_module()
class OnlineProbeHook(Hook):
    """Logs the accuracy of ``tools/knn.py`` on the current encoder every few epochs and after the last one.

    It also evaluates the untrained encoder before the first epoch, as the reference for later numbers. The accuracies
    (``probe/knn`` and ``probe/linear``, in percent) and RankMe of the labeled images (``probe/rankme``,
    :func:`rank_me`) are logged with the epoch as step. All processes share the images. The training itself does not
    change.

    Args:
        config: config of configs/cls with the encoder's size and, unless it has ``adopt_statistics=True``, its input
            statistics. Its training images are the labeled images and its test images the queries.
        interval: number of epochs between two evaluations.
        tasks: ``knn`` and ``linear`` (logistic regression on the CPU, slow with many classes).
        labels: number of labeled images per class, or 'all'.
        max_images: maximum number of labeled images and of queries, evenly spaced in the order of the data set.
        folder: image folder that replaces the config's data, see :func:`data_sets`; '' turns the hook off.
        options: changes to the config, as with ``--cfg-options``.
        source: encoder of BootMAE, ``online`` or ``momentum``.
        k: number of neighbors.
        seed: seed of the choice of labeled images.
        workers: data loading processes per process of the run.
        batch_size: images per forward pass.

    Raises:
        ValueError: for a wrong argument, and before the first step if encoder, config and data do not fit.
        FileNotFoundError: if the config or the images do not exist.
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
            raise ValueError(f'OnlineProbeHook tasks={wrong[0]!r}: choose from {", ".join(TASKS)}')
        if labels != 'all' and not (str(labels).isdecimal() and int(labels) > 0):
            raise ValueError(f'OnlineProbeHook labels={labels!r}: give "all" or a number of images per class')
        for name, value in dict(interval=interval, max_images=max_images, k=k, batch_size=batch_size).items():
            if value is not None and value < 1:
                raise ValueError(f'OnlineProbeHook {name}={value}: give a number of at least 1')
        self.config, self.interval, self.tasks, self.labels = config, interval, tasks, str(labels)
        self.max_images, self.folder, self.options, self.source = max_images, folder, options, source
        self.k, self.seed, self.workers, self.batch_size = k, seed, workers, batch_size
        self.classifier: nn.Module | None = None
        self.image_channels: dict | None = None  # the setting of the run
        self.reference = self.query = None

    def before_train(self, runner: Runner) -> None:
        if self.folder == '':
            return
        self.image_channels = runner.cfg.get('image_channels')
        with kept_random_state():
            self.prepare(bare_model(runner))
        interval = 'epoch' if self.interval == 1 else f'{self.interval} epochs'
        runner.logger.info(
            f'online probe: {" and ".join(self.tasks)} every {interval} on '
            f'{count_of(len(self.reference), "labeled image")} and {count_of(len(self.query), "query", "queries")} of '
            f'{self.folder or self.config}'
        )
        if runner.iter == 0:
            self.probe(runner, 0)

    def prepare(self, model: nn.Module) -> None:
        """Build the classifier and the data sets, and check that they fit the encoder."""
        cfg = self.read_config()
        content = encoder_content(model)
        facts = content['meta']['bootmae']
        if adopts_statistics(cfg):
            preprocessor_of(cfg).update(mean=facts['mean'], std=facts['std'])
        check_statistics(cfg, THIS_RUN, facts['mean'], facts['std'])
        self.classifier = build_model(cfg).eval()
        with error_context(THIS_RUN):
            match(self.classifier.backbone, find_encoder(content, self.source))
        reference, query = data_sets(cfg, self.folder)
        self.reference = select_images(reference, self.labels, self.max_images, self.seed)
        self.query = select_images(query, 'all', self.max_images, self.seed)

    def read_config(self) -> Config:
        shared = {'image_channels': self.image_channels} if self.image_channels else {}
        cfg = load_config(self.config, {**shared, **(self.options or {})})
        if cfg.model.type != 'ImageClassifier':
            raise ValueError(
                f'OnlineProbeHook config={self.config!r}: its model is not an ImageClassifier; '
                'give a config of configs/cls'
            )
        return cfg

    def data(self) -> tuple[Dataset, Dataset] | None:
        """Labeled images and queries; None if the hook is off."""
        return None if self.folder == '' else data_sets(self.read_config(), self.folder)

    def after_train_epoch(self, runner: Runner) -> None:
        if self.classifier is not None and is_due(self, runner):
            runner.call_hook('report_progress', phase='val')
            self.probe(runner, runner.epoch + 1)

    def probe(self, runner: Runner, epoch: int) -> None:
        """Evaluate the encoder and log the result."""
        with kept_random_state():
            scores = self.scores(bare_model(runner), lambda: runner.call_hook('report_progress'))
        scores = {f'probe/{name}': score for name, score in scores.items()}
        runner.logger.info(
            f'online probe, epoch {epoch}: '
            + ', '.join(f'{name} {score:.2f}{"" if name.endswith(RANK) else " %"}' for name, score in scores.items())
        )
        files = [hook.json_log_path for hook in runner.hooks if hasattr(hook, 'json_log_path')]
        runner.visualizer.add_scalars(scores, step=epoch, file_path=files[0] if files else None)

    def scores(self, model: nn.Module, progress: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return the accuracy of each task in percent, and RankMe; the same on all processes."""
        found = match(self.classifier.backbone, find_encoder(encoder_content(model), self.source))
        self.classifier.backbone.load_state_dict(found.state, strict=False)
        self.classifier.to(get_device())

        def extract(images: Subset) -> tuple[torch.Tensor, ...]:
            kept: list[torch.Tensor] = []
            with before_norm(self.classifier.backbone, kept.append):
                found = features_of(self.classifier, images, self.batch_size, self.workers, progress)
            return *found, torch.cat(kept)

        features, labels, kept = shared_features(extract, self.reference)
        reference, query = (features, labels), shared_features(extract, self.query)[:2]
        self.classifier.cpu()
        scores: list[dict[str, float] | None] = [None]
        if dist.is_main_process():  # the others wait in broadcast_object_list
            scores[0] = {
                task: knn_accuracy(reference, query, self.k) if task == 'knn' else linear_accuracy(reference, query)
                for task in self.tasks
            } | {RANK: rank_me(kept)}
        dist.broadcast_object_list(scores)
        return scores[0]
