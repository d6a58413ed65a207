"""Parts of data sets: indices spread evenly, a few images of each class, held-out images, and wrapped data sets."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..text import count_of


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside wrappers such as ConcatDataset and RepeatDataset.

    Args:
        dataset: A data set or the config of one; a config yields configs.
    """
    part = dataset.get if isinstance(dataset, dict) else lambda name: getattr(dataset, name, None)
    inner = part('datasets') or [part('dataset')]
    for child in inner:
        yield from leaves(child) if child is not None else [dataset]


def spread(count: int, limit: int | None) -> np.ndarray:
    """Indices spread evenly over ``count`` samples; a list sorted by class keeps some of each class.

    Args:
        count: Number of samples.
        limit: Number of indices. None and larger numbers give all of them.
    """
    return np.arange(count) if limit is None or limit >= count else np.arange(limit) * count // limit


def few_labels(
    labels: Sequence[int] | np.ndarray,
    per_class: int,
    seed: int,
    names: Sequence[str] | None = None,
    remedy: str = 'lower labels_per_class',
) -> np.ndarray:
    """Draw ``per_class`` samples of each class and return their sorted positions.

    A smaller number gives a subset of a larger one. Training on few labels and evaluating frozen features (k-NN,
    logistic regression) both call this function, so the same labels and the same seed give the same images.

    Args:
        labels: Class numbers of all samples.
        per_class: Number of samples of each class.
        seed: Seed of the draw.
        names: Names of all classes, each of which must have its samples. By default the classes are the labels that
            occur.
        remedy: Advice for the error message about a class with too few samples.

    Raises:
        ValueError: If a class has too few samples, the number is below 1, or the seed is negative.
    """
    if per_class < 1:
        raise ValueError(f'labels_per_class={per_class} must be at least 1, or None for all')
    check_seed('subset_seed', seed)
    labels, chosen = np.asarray(labels), []
    for label in np.unique(labels) if names is None else range(len(names)):
        positions = np.flatnonzero(labels == label)
        if len(positions) < per_class:
            shown = label if names is None or names[label] == str(label) else f'{label} ({names[label]})'
            raise ValueError(
                f'labels_per_class={per_class}, but class {shown} has '
                f'{count_of(len(positions), "training image")}: {remedy}'
            )
        chosen.append(np.random.default_rng((seed, int(label))).permutation(positions)[:per_class])
    return np.sort(np.concatenate(chosen))


def held_out(labels: Sequence[int] | np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw a validation split: a bool mask (N,) of the samples that are held out.

    Each class gives its rounded share, at least one sample and never all. A smaller share is a subset of a larger
    one, which scikit-learn's stratified splits do not promise.

    Raises:
        ValueError: If the share is not between 0 and 1, the seed is negative, or a class has a single sample.
    """
    if not 0 < share < 1:
        raise ValueError(f'share={share} must lie between 0 and 1, such as 0.1')
    check_seed('seed', seed)
    labels = np.asarray(labels)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) < 2:
            raise ValueError(
                f'class {label} has a single image, which cannot be both in training and held out: '
                'add images to it, or remove it'
            )
        count = min(max(1, round(share * len(positions))), len(positions) - 1)
        # The extra 1 separates this stream from that of few_labels; otherwise both would draw the same images.
        mask[np.random.default_rng((seed, int(label), 1)).permutation(positions)[:count]] = True
    return mask


def check_seed(name: str, seed: int) -> None:
    """Raise a ValueError that names the setting for a seed that numpy would refuse."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f'{name}={seed!r} must be a whole number from 0 up')
