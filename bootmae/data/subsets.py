"""Which labeled images are used: a few of each class, or all but a share that is held out."""

from collections.abc import Sequence

import numpy as np


def few_labels(
    labels: Sequence[int] | np.ndarray,
    per_class: int,
    seed: int,
    names: Sequence[str] | None = None,
    remedy: str = 'lower labels_per_class',
) -> np.ndarray:
    """Sorted positions of ``per_class`` samples of each class; a smaller number gives a subset of a larger one's.

    Args:
        names: of all classes, for messages; each of them must have its samples. By default the classes are the
            labels that occur.
        remedy: what to do where a class has too few.

    Errors: ValueError naming the class that has too few, for a number below 1, and for a negative seed.
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
                f'labels_per_class={per_class}, but class {shown} has {len(positions)} training images: {remedy}'
            )
        chosen.append(np.random.default_rng((seed, int(label))).permutation(positions)[:per_class])
    return np.sort(np.concatenate(chosen))


def held_out(labels: Sequence[int] | np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which samples are held out (n,), bool: of each class the rounded share, but at least one, and never all.

    A smaller share is a subset of a larger one's.

    Errors: ValueError for a share that is not between 0 and 1, a negative seed, and a class of one sample.
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
        # A stream of its own: with that of few_labels, the images held out would be those that it takes of all.
        mask[np.random.default_rng((seed, int(label), 1)).permutation(positions)[:count]] = True
    return mask


def check_seed(name: str, seed: int) -> None:
    """Refuse what numpy would refuse without naming it."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f'{name}={seed!r} must be a whole number from 0 up')
