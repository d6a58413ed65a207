"""Frozen features judged without training the encoder: k-NN and logistic regression.

Shape letters: N reference images, Q query images, D feature width, K classes.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.device import get_device
from mmengine.registry import MODELS
from mmengine.runner import set_random_seed
from mmpretrain.registry import DATASETS
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..report.rows import ResultRow
from .results import result_row
from .run import apply_init, load_config
from .signals import spare_workers

Features = tuple[torch.Tensor, torch.Tensor]  # (N, D) float32 and (N,) int64 labels


def build_encoder(cfg: Config, checkpoint: str | None, source: str = 'online', seed: int = 0) -> nn.Module:
    """The classifier of a downstream config in eval mode, its encoder from a checkpoint or untrained.

    Raises:
        FileNotFoundError, ValueError: if the checkpoint does not fit; see :func:`apply_init`.
    """
    if checkpoint:
        apply_init(cfg, checkpoint, source)
    set_random_seed(seed)
    model_cfg = cfg.model.to_dict()
    model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor.to_dict())
    model = MODELS.build(model_cfg)
    model.init_weights()
    return model.to(get_device()).eval()


def extract(model: nn.Module, loader: dict, pipeline: list, batch_size: int = 256, workers: int = 0) -> Features:
    """Features (before the head) and labels of all images of a dataset.

    Args:
        model: a classifier.
        loader: the config of a dataloader; its dataset is read in order, without augmentation.
        pipeline: transforms for evaluation.
    """
    return features_of(model, DATASETS.build(dict(loader['dataset'], pipeline=pipeline, test_mode=True)), batch_size,
                       workers)


@torch.no_grad()
def features_of(model: nn.Module, dataset: Dataset, batch_size: int = 256, workers: int = 0,
                progress: Callable[[], None] = lambda: None) -> Features:
    """Features (before the head) and labels of a dataset in its order; ``progress`` is called after each batch."""
    batches = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=default_collate)
    if workers:
        spare_workers(batches)
    features, labels = [], []
    for batch in batches:
        data = model.data_preprocessor(batch, training=False)
        features.append(model.backbone(data['inputs'])[-1].float().cpu())
        labels.extend(int(sample.gt_label) for sample in data['data_samples'])
        progress()
    return torch.cat(features), torch.tensor(labels)


def few_labels(labels: torch.Tensor, per_class: int, seed: int) -> torch.Tensor:
    """Indices of ``per_class`` random images of each class.

    Raises:
        ValueError: if a class has fewer.
    """
    rng, chosen = np.random.RandomState(seed), []
    for value in labels.unique():
        members = (labels == value).nonzero().flatten().numpy()
        if len(members) < per_class:
            raise ValueError(f'class {int(value)} has {len(members)} images, fewer than {per_class}: lower --labels')
        chosen.append(rng.choice(members, per_class, replace=False))
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def knn_accuracy(reference: Features, query: Features, k: int = 20, temperature: float = 0.07,
                 chunk: int = 1024) -> float:
    """Percent right of a k-NN vote, weighted by ``exp(cosine / temperature)`` (the usual protocol of Wu et al. 2018).

    Args:
        reference: labelled features.
        query: features to classify.
        k: neighbours; all if there are fewer.
        chunk: queries at a time.
    """
    device = get_device()
    bank, labels = F.normalize(reference[0], dim=1).to(device), reference[1].to(device)
    num_classes, right = int(labels.max()) + 1, 0
    for features, truth in zip(query[0].split(chunk), query[1].split(chunk), strict=True):
        similarity, index = (F.normalize(features, dim=1).to(device) @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(features), num_classes, device=device)
        votes.scatter_add_(1, labels[index], (similarity / temperature).exp())
        right += int((votes.argmax(dim=1).cpu() == truth).sum())
    return 100 * right / len(query[1])


def linear_accuracy(reference: Features, query: Features, c: float = 1.0) -> float:
    """Percent right of a logistic regression (L-BFGS, L2 penalty 1 / c) on standardised features."""
    from sklearn.linear_model import LogisticRegression  # seconds to import, and no other task needs it
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    probe.fit(reference[0].numpy(), reference[1].numpy())
    return 100 * float(probe.score(query[0].numpy(), query[1].numpy()))


def judge(config: str, checkpoint: str | None, seed: int = 0, tasks: Sequence[str] = ('knn', ),
          labels: Sequence[str] = ('all', ), k: int = 20, source: str = 'online', workers: int = 0,
          options: dict | None = None, data: str | None = None, method: str | None = None,
          label: str = 'reproduced') -> list[ResultRow]:
    """What ``tools/knn.py`` does for one encoder; see there. ``seed`` draws the labelled images and untrained weights.

    Raises:
        ValueError: for an unusable number of labels, or a checkpoint that does not fit.
        FileNotFoundError: if the checkpoint or the data is missing.
    """
    if bad := [n for n in labels if n != 'all' and not (n.isdecimal() and int(n) > 0)]:
        raise ValueError(f'--labels {bad[0]!r}: give "all" or a number of images per class')
    cfg = load_config(config, options)
    pipeline = cfg.test_dataloader.dataset.pipeline
    model = build_encoder(cfg, checkpoint, source, seed)
    reference = extract(model, cfg.train_dataloader, pipeline, workers=workers)
    query = extract(model, cfg.test_dataloader, pipeline, workers=workers)
    verdict = getattr(model.backbone, 'verdict', None)
    row = partial(result_row, checkpoint, verdict.hash if verdict else '', method=method, metric='accuracy', seed=seed,
                  data=data or cfg.train_dataloader.dataset.type, label=label)
    rows = []
    for number in labels:
        index = slice(None) if number == 'all' else few_labels(reference[1], int(number), seed)
        chosen = reference[0][index], reference[1][index]
        depth = f'block {model.backbone.depth} of {model.backbone.arch_depth}'
        for task in tasks:
            value, protocol = ((knn_accuracy(chosen, query, k), f'k={k}, {depth}') if task == 'knn' else
                               (linear_accuracy(chosen, query), f'logistic regression, {depth}'))
            rows.append(row(task=task, labels=number, value=value, protocol=protocol))
    return rows
