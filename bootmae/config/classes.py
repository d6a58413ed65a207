"""Class names, from the setting ``classes`` or the training annotations: the same ones in all loaders and heads."""

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..data.coco import read_coco
from ..data.scan import shorten
from ..data.subsets import leaves

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
CLASSES = 'classes'  # the setting
HEADS = ('decode_head', 'auxiliary_head', 'bbox_head', 'roi_head')  # of segmentors and detectors


def fill_classes(cfg: Config, options: Collection[str] = ()) -> None:
    """Complete the heads and data sets of a segmentor or detector whose config states the classes once, as ``classes``.

    ``classes=None`` stands for the categories of the training annotations in their order, if the file is there.

    Changes each ``num_classes`` of the heads and the ``metainfo`` of the data sets.

    Args:
        cfg: A config.
        options: Keys of the options that have changed it.

    Raises:
        ValueError: ``classes`` is no list of names, an option gives a number or names, too, or one gives classes to a
            model of another kind.
    """
    heads = heads_with_classes(cfg)
    if CLASSES in options and not heads:
        raise ValueError(f'{CLASSES}={cfg[CLASSES]} has no effect: {cfg.filename} is no segmentor or detector')
    if CLASSES not in cfg or not heads:
        return
    if twice := [key for key in options if {'num_classes', 'metainfo'} & set(key.split('.'))]:
        raise ValueError(
            f'{twice[0]}: {cfg.filename} states the classes as {CLASSES}; give {CLASSES}=NAME,NAME instead'
        )
    parts = [part for loader in LOADERS for part in leaves((cfg.get(loader) or {}).get('dataset') or {})]
    names = cfg[CLASSES]
    if names is None and parts and own_classes(parts[0]) is not None and os.path.isfile(annotation_path(parts[0])):
        names = read_coco(annotation_path(parts[0])).names
    if not isinstance(names, list | tuple | None) or not all(isinstance(name, str | int) for name in names or ()):
        raise ValueError(f'{CLASSES}={names!r}: give a list of names, such as {CLASSES}=("background", "road")')
    if not names:
        return
    for head in heads:
        set_numbers(cfg.model[head], len(names))
    for part in parts:
        palette = (part.get('metainfo') or {}).get('palette', names)
        same = {} if len(palette) == len(names) else dict(palette=[])
        part['metainfo'] = dict(part.get('metainfo') or {}, classes=tuple(map(str, names)), **same)


def set_numbers(node: Any, number: int) -> None:
    """Set each ``num_classes`` of a head's config."""
    if isinstance(node, dict) and isinstance(node.get('num_classes'), int):
        node['num_classes'] = number
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        set_numbers(child, number)


def apply_class_names(cfg: Config, recorded: Sequence[str] | None = None) -> None:
    """Let all loaders number the classes alike.

    mmdet gives its CocoDataset the 80 classes of COCO unless ``metainfo`` names others, and then finds no instance of
    own classes. Data sets without ``metainfo`` get the names of the training data: those that a checkpoint records,
    those of its ``metainfo``, or the categories of its file in their order. They keep the classes of their type if the
    file has no other names and a head has their number.

    Changes ``metainfo`` of data sets.

    Args:
        cfg: A config.
        recorded: Classes of the checkpoint that is to be tested, see :func:`recorded_classes`.

    Raises:
        FileNotFoundError: if an annotation file is missing.
        ValueError: if ``classes`` is empty, the structure of a file is wrong, two data sets have other classes, or
            there is no training file to take names from.
    """
    if cfg.get(CLASSES, True) in ((), []):
        raise ValueError(
            f'{cfg.filename}: {CLASSES} names no class; give the names of the labels 0, 1, ... in the config, such as '
            f'{CLASSES} = ("background", "road"), or as --cfg-options {CLASSES}=background,road'
        )
    parts = [(loader, part) for loader in LOADERS for part in leaves((cfg.get(loader) or {}).get('dataset') or {})]
    named = [(loader, part, part['metainfo']['classes']) for loader, part in parts if has_names(part)]
    for loader, _, names in named[1:]:
        first, _, expected = named[0]
        if not isinstance(names, str) and not isinstance(expected, str) and list(names) != list(expected):
            raise ValueError(
                f'{loader} has metainfo classes={tuple(names)[:8]} and {first} {tuple(expected)[:8]}: labels are '
                'positions in this list, so give both the same one'
            )
    unnamed = [(loader, part) for loader, part in parts if not has_names(part) and own_classes(part) is not None]
    if not unnamed:
        return
    if recorded:
        same = tuple(recorded) == own_classes(unnamed[0][1])
        names, where = None if same else tuple(recorded), 'recorded in the checkpoint'
    elif named and named[0][0] == LOADERS[0]:
        names, where = named[0][2], 'metainfo of train_dataloader'
    else:
        names, where = names_of_file(unnamed, head_numbers(cfg.get('model') or {}))
    if names is None:
        return
    shown = names if isinstance(names, str) else ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
    print_log(f'class names of data sets without metainfo=dict(classes=...): {shown} ({where})', logger='current')
    for _, part in unnamed:
        part['metainfo'] = dict(part.get('metainfo') or {}, classes=names)


def recorded_classes(content: dict) -> tuple[str, ...]:
    """Return the class names in the order of the labels of the run that wrote a checkpoint; empty if not recorded."""
    meta = content.get('meta')
    data = meta.get('dataset_meta') if isinstance(meta, dict) else None
    names = data.get('classes') if isinstance(data, dict) else None
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def check_same_classes(expected: Sequence[str], dataset: Any, where: str) -> None:
    """Raise a ValueError if the labels of a data set mean other classes than they should.

    Args:
        expected: Class names in the order of the labels.
        dataset: The data set, which may be wrapped. One with the numbers of labels in place of names passes.
        where: What has the expected classes, for the message.
    """
    for leaf in leaves(dataset):
        names = tuple(map(str, (getattr(leaf, 'metainfo', None) or {}).get('classes') or ()))
        numbers = [list(one) == list(map(str, range(len(one)))) for one in (expected, names)]
        other = [label for label, pair in enumerate(zip(expected, names)) if not _same_name(*pair)]
        if numbers[1] and getattr(leaf, 'labels', None) == 'list':
            continue  # the labels of a list without names of its own
        if other and (not any(numbers) or all(map(str.isdecimal, (*expected, *names)))):
            roots, label = getattr(leaf, 'roots', None), other[0]
            remedy = 'set classes of ImageFiles, or rename its folders' if roots else 'set metainfo=dict(classes=...)'
            raise ValueError(
                f'{where} has the classes {shorten(expected)}, and {shorten(roots or [type(leaf).__name__])} has '
                f'{shorten(names)}: label {label} is {expected[label]} there and {names[label]} here. Give the data '
                f'the same names in the same order: {remedy}'
            )


def _same_name(first: str, second: str) -> bool:
    return first == second or (first.isdecimal() and second.isdecimal() and int(first) == int(second))


def heads_with_classes(cfg: Config) -> list[str]:
    """Return the names of the heads of a segmentor or detector; none for other models."""
    return [head for head in HEADS if head in (cfg.get('model') or {})]


def has_names(part: dict) -> bool:
    """Whether the config of a data set names its classes."""
    return 'classes' in (part.get('metainfo') or {})


def names_of_file(unnamed: list[tuple[str, dict]], heads: Iterator[int]) -> tuple[tuple[str, ...] | None, str]:
    """Return the categories of the training file and where they are from; None to keep the classes of the type."""
    loader, part = unnamed[0]
    absent = loader == LOADERS[0] and not os.path.isfile(annotation_path(part))
    if absent and unnamed[-1][0] != loader:  # a test somewhere else
        loader, part = unnamed[-1]
    path, own = annotation_path(part), own_classes(part)
    names = tuple(read_coco(path).names)
    if set(names) == set(own) or (set(names) < set(own) and len(own) in heads):
        return None, ''
    if loader != LOADERS[0]:
        raise ValueError(
            f'{path} has categories that are not classes of {part["type"]}, {", ".join(names[:8])}, and there is no '
            'training file to take the order of the names from: give every data set metainfo=dict(classes=...) as in '
            'training'
        )
    return names, f'the categories of {path}'


def own_classes(part: dict) -> tuple[str, ...] | None:
    """Return the classes that the type of a COCO data set brings along; None for other data, or files elsewhere."""
    file = part.get('ann_file')
    if not file or '://' in str(file) or part.get('backend_args'):
        return None
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(part['type']) if isinstance(part['type'], str) else part['type']
    api = getattr(kind, 'COCOAPI', None)
    return tuple(kind.METAINFO.get('classes', ())) if getattr(api, '__name__', '') == 'COCO' else None


def annotation_path(part: dict) -> str:
    """Return the path of a data set's annotation file, joined as mmengine does."""
    return os.path.join(part.get('data_root') or '', part['ann_file'])


def head_numbers(node: Any) -> Iterator[int]:
    """Yield each ``num_classes`` of a model's config."""
    if isinstance(node, dict):
        if isinstance(node.get('num_classes'), int):
            yield node['num_classes']
        node = node.values()
    elif not isinstance(node, list | tuple):
        return
    for child in node:
        yield from head_numbers(child)
