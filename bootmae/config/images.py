"""Other images for a config (``--data``), and whether its number of classes is that of the class folders."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..data.channels import ENDING
from ..data.images import normalize_extensions
from ..data.roots import resolve_roots
from ..data.scan import EXTENSIONS, SPLIT_NAMES, class_folders, shorten
from ..data.scan_tar import scan_tar_classes
from ..data.subsets import leaves
from ..text import count_of
from .checks import metric_configs

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
QUERIES = ('val', 'test')  # folders of the images for evaluation beside train


def apply_images(cfg: Config, paths: str | Sequence[str]) -> None:
    """Read other images than those of the config, as its task needs them.

    - Pretraining: every path is a folder of any depth or an archive. Of a folder with ``train`` and ``val`` (or
      ``test``) only ``train`` is used, so that images for evaluation stay unseen.
    - Classification: one folder with ``train`` and ``val`` (or ``test``), in each a folder per class; or two folders of
      class folders, for training and for evaluation, or two archives. Those of the first give the class numbers.
    - Segmentation and detection: one folder, the ``data_root`` of all data sets.

    Changes the data sets of all loaders, and the ``ann_file`` of evaluators.

    Raises:
        ValueError: The config reads no image files, or not as many paths; or a folder has no part for evaluation.
    """
    given: list = [*paths] if isinstance(paths, list | tuple) else [paths]
    if not all(isinstance(path, str | os.PathLike) and str(path) for path in given):
        raise ValueError(f'--data (images) {given}: give paths as texts, in quotes if they look like numbers in YAML')
    paths = [os.fspath(path) for path in given]
    found = list(datasets(cfg, LOADERS))
    rooted = [leaf for _, leaf in found if 'data_root' in leaf and leaf.get('type') != 'ImageFiles']
    files = [(loader, leaf) for loader, leaf in found if leaf.get('type') == 'ImageFiles']
    if rooted:
        _move_root(cfg, rooted, paths)
    elif not files:
        kinds = ', '.join(sorted({str(leaf.get('type')) for _, leaf in found})) or 'no data set'
        raise ValueError(
            f'--data: {cfg.filename} reads {kinds}, not image files; use a config for your own images, such as '
            'configs/pretrain/bootmae_small_data.py (docs/own_data.md)'
        )
    elif any(leaf.get('labels') for _, leaf in files):
        _use_classes(files, paths)
    else:
        for _, leaf in files:
            roots = [_train_part(path) for path in paths]
            leaf.update(roots=roots if len(roots) > 1 else roots[0], split=None)


def datasets(cfg: Config, loaders: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """The data sets of loaders, each with the name of its loader."""
    for name in loaders:
        dataset = (cfg.get(name) or {}).get('dataset')
        if dataset:
            yield from ((name, leaf) for leaf in leaves(dataset))


def _train_part(path: str) -> str:
    whole = Path(path).expanduser()
    splits = {name for name in SPLIT_NAMES if (whole / name).is_dir()}
    return os.path.join(path, 'train') if 'train' in splits and len(splits) > 1 else path


def _use_classes(files: Sequence[tuple[str, dict]], paths: Sequence[str]) -> None:
    if len(paths) > 2:
        raise ValueError(
            f'--data has {len(paths)} paths, but a classification config takes one folder with train/ and val/, or '
            'two: the images for training and those for evaluation'
        )
    for loader, leaf in files:
        if len(paths) == 2:
            leaf.update(roots=paths[loader != 'train_dataloader'], split=None)
            if loader != 'train_dataloader' and leaf.get('labels') == 'folder':
                with suppress(OSError, ValueError):  # those of the training images, which their data set raises too
                    leaf.classes = class_names(leaf, paths[0], None)
            continue
        leaf.roots = paths[0]
        if os.path.isdir(root := os.path.expanduser(paths[0])):
            leaf.split = _split_of(root, loader, leaf.get('split'))


def _split_of(root: str, loader: str, split: str | None) -> str:
    """The folder below a root that a loader reads."""
    names = ('train',) if loader == 'train_dataloader' else tuple(dict.fromkeys((split or 'val', *QUERIES)))
    present = [name for name in names if os.path.isdir(os.path.join(root, name))]
    if not present:
        raise ValueError(
            f'--data {root} has no folder {" or ".join(names)}: give a folder with train/ and val/, in each a folder '
            'per class; or two folders, --data TRAIN VAL; tools/hold_out.py makes both of one folder of classes'
        )
    return present[0]


def _move_root(cfg: Config, rooted: Sequence[dict], paths: Sequence[str]) -> None:
    old = {leaf['data_root'] for leaf in rooted}
    if len(paths) > 1 or len(old) > 1:
        raise ValueError(
            f'--data gives one data_root to all data sets of {cfg.filename}: '
            + (f'{len(paths)} paths are too many' if len(paths) > 1 else f'it has several, {shorten(sorted(old))}')
        )
    for leaf in rooted:
        leaf['data_root'] = paths[0]
    for loader in ('val', 'test'):
        for evaluator in metric_configs(cfg, loader):
            file, root = str(evaluator.get('ann_file') or ''), str(next(iter(old)))
            if root and Path(file).is_relative_to(root):
                evaluator.ann_file = os.path.join(paths[0], Path(file).relative_to(root))


def check_classes(cfg: Config) -> None:
    """Compare the number of classes of a classification config with the class folders.

    Folders are not searched for images; archives are listed.

    Raises:
        ValueError: They differ, or training and validation images have other classes.
    """
    numbers = class_numbers(cfg)
    if not numbers:
        return
    names: dict[str, list[str]] = {}
    for loader, leaf in datasets(cfg, LOADERS[:2]):
        if leaf.get('type') == 'ImageFiles' and leaf.get('labels') == 'folder' and not leaf.get('classes'):
            names[loader] = class_names(leaf, leaf['roots'], leaf.get('split'))
    if found := names.get('train_dataloader'):
        root = next(leaf for _, leaf in datasets(cfg, LOADERS[:1]))['roots']
        compare_classes(found, numbers, str(root))
        other = set(names.get('val_dataloader', ())) - set(found)
        if other and not set(found) <= SPLIT_NAMES:
            raise ValueError(
                f'val_dataloader has the class folders {shorten(sorted(other))}, which train_dataloader has not: '
                'correct their names, or remove them'
            )


def class_names(leaf: dict, roots: str | Sequence[str], split: str | None) -> list[str]:
    """The classes that a data set of image files finds in other roots, in label order.

    Raises:
        FileNotFoundError, ValueError: A root is missing, or archives hold no classes.
    """
    found = resolve_roots(roots, split)
    if folders := [root for root in found if os.path.isdir(root)]:
        return class_folders(folders[0])
    extensions, changed = normalize_extensions(leaf.get('extensions', EXTENSIONS)), tuple(map(os.path.getmtime, found))
    try:
        return list(_packed_classes(tuple(found), extensions, split, changed))
    except FileNotFoundError:  # no images, unless an option sets image_channels, which is applied later
        return list(_packed_classes(tuple(found), extensions | {ENDING}, split, changed))


@lru_cache(maxsize=8)  # a command loads its config several times, and archives of a million images take a minute
def _packed_classes(
    archives: tuple[str, ...], extensions: frozenset[str], split: str | None, changed: tuple[float, ...]
) -> tuple[str, ...]:
    """The classes in archives that were last changed at these times."""
    return tuple(scan_tar_classes(archives, extensions, None, split).names or ())


def class_numbers(cfg: Config) -> dict[str, int]:
    """The settings of a classifier that hold the number of classes; empty for other models."""
    if cfg.get('model', {}).get('type') != 'ImageClassifier':
        return {}
    groups = {
        'model.head': cfg.model.get('head'),
        'model.data_preprocessor': cfg.model.get('data_preprocessor'),
        'data_preprocessor': cfg.get('data_preprocessor'),
    }
    return {
        f'{name}.num_classes': group['num_classes']
        for name, group in groups.items()
        if isinstance(group, dict) and isinstance(group.get('num_classes'), int)
    }


def compare_classes(names: Sequence[str], numbers: dict[str, int], where: str) -> None:
    """Raise a ValueError if the settings of a classifier have another number of classes than a data set."""
    wrong = {key: number for key, number in numbers.items() if number != len(names)}
    if wrong:
        raise ValueError(
            f'{where} has {count_of(len(names), "class", "classes")} ({shorten(names)}), but '
            f'{", ".join(f"{key}={number}" for key, number in wrong.items())}: correct the folder, or add '
            f'--cfg-options {" ".join(f"{key}={len(names)}" for key in numbers)}'
        )


def check_class_number(dataset: Any, cfg: Config) -> None:
    """Compare the classes of data sets that were built with a classifier's number, see :func:`compare_classes`."""
    numbers = class_numbers(cfg)
    for leaf in leaves(dataset) if numbers else ():
        names = (getattr(leaf, 'metainfo', None) or {}).get('classes')
        if names:
            roots = getattr(leaf, 'roots', None)
            compare_classes(list(map(str, names)), numbers, shorten(roots) if roots else type(leaf).__name__)
