"""Visualize a checkpoint: reconstructions, attention of the class token, principal components of the features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.utils import to_2tuple

from .. import registry  # noqa: F401
from ..checkpoints.folders import checkpoint_file
from ..checkpoints.hub import is_name
from ..config.encoder import read_model
from ..data.channels import ENDING, ChannelFormat, resize_floats
from ..data.embedded import PHOTOS, DigitImages, PhotoCrops, photo
from ..data.images import ImageFiles
from ..data.reading import read_image
from ..data.scan import EXTENSIONS
from ..data.subsets import spread
from ..models import BootMAE
from ..text import count_of
from ..visualization.attention import class_attention, patch_features, principal_components
from ..visualization.decoders import load_decoder
from ..visualization.panels import attention_overlay, captioned_grid, component_colors
from ..visualization.reconstruct import as_colors, brightness, draw_masks, hide, reconstruct, shown_channels

KINDS = ('reconstruction', 'attention', 'pca')
SMALL = 96  # pixels; smaller images show crops of the photographs, because whole photographs become unrecognizable
SHOWN_HEADS = 16


@dataclass
class DrawOptions:
    """Options of ``tools/visualize.py``, whose ``--help`` explains them."""

    checkpoint: str
    config: str | None = None
    images: Sequence[str] = ('embedded',)
    size: tuple[int, int] | None = None
    count: int = 6
    seed: int = 0
    block: int | None = None
    heads: int | None = None
    source: str = 'online'
    statistics: str | None = None
    target: str | None = None
    channels: Sequence[int] | None = None
    cfg_options: dict | None = None


def visualize(options: DrawOptions, what: Sequence[str] | None = None, out: str | None = None) -> list[Path]:
    """Draw pictures of a checkpoint and return their paths.

    Args:
        options: checkpoint, images and other options.
        what: some of ``KINDS``; default: all.
        out: output folder, or the name of a PNG file.

    Raises:
        FileNotFoundError: if the checkpoint or an image is missing.
        ValueError: if a file cannot be used, or has no decoder for reconstructions.
    """
    what = list(dict.fromkeys(what or KINDS))
    if unknown := [kind for kind in what if kind not in KINDS]:
        raise ValueError(f'--what {unknown[0]!r}: use {", ".join(KINDS)}')
    if options.count < 1:
        raise ValueError(f'--count {options.count}: draw at least one image')
    options = replace(options, checkpoint=checkpoint_file(options.checkpoint))
    targets = targets_of(options.checkpoint, what, out)
    pictures = {kind: _DRAW[kind](options) for kind in what}  # draw all pictures before any file is written
    for kind, data in pictures.items():
        targets[kind].parent.mkdir(parents=True, exist_ok=True)
        targets[kind].write_bytes(data)
    return [targets[kind] for kind in what]


def targets_of(checkpoint: str, what: Sequence[str], out: str | None) -> dict[str, Path]:
    """Return the path of each picture."""
    if out and out.lower().endswith('.png'):
        path = Path(out)
        return {kind: path if len(what) == 1 else path.with_stem(f'{path.stem}-{kind}') for kind in what}
    path = Path(checkpoint)
    places = [place.name for place in path.absolute().parents[:3]]
    run = '-'.join(reversed(places[1:])) if places[0] == 'run' else places[0]  # run is that of a suite's cell
    name = checkpoint.partition(':')[2] if is_name(checkpoint) else f'{run}-{path.stem}'
    folder = Path(out) if out else Path('work_dirs/visualize') / name
    return {kind: folder / f'{kind}.png' for kind in what}


def draw_reconstruction(options: DrawOptions) -> bytes:
    """Draw each image original, masked, and predicted with and without each patch's own statistics."""
    if options.source != 'online':
        raise ValueError(
            f'--source {options.source}: the decoders belong to the online encoder; use --what attention pca'
        )
    found = load_decoder(
        options.checkpoint,
        options.config,
        options.size,
        options.target,
        options.heads,
        options.cfg_options,
        options.statistics,
    )
    images = load_images(options.images, found.img_size, options.count, found.channels)
    ids_shuffle, num_masked = draw_masks(found.model, len(images), options.seed)
    columns = {'original': images}
    kinds = (
        {'own statistics': 'own', 'one mean, deviation': 'one'} if found.normalized else {'predicted pixels': 'none'}
    )
    for heading, statistics in kinds.items():
        columns[heading] = reconstruct(found.model, images, ids_shuffle, num_masked, found.patch_size, statistics)
    blockwise = isinstance(found.model, BootMAE)
    mask = 'block-wise' if blockwise else 'uniformly random'
    text = (
        f'{title(options.checkpoint, found.kind)}: {num_masked} of {ids_shuffle.shape[1]} patches masked '
        f'({mask}, seed {options.seed}). Only masked patches are predicted; the visible ones are pasted from the '
        'original. '
    )
    over = 'of each color' if blockwise else 'over all colors together'
    chosen, limits, note = display(images, options.channels, found.channels)
    columns = {heading: as_colors(images, chosen, limits) for heading, images in columns.items()}
    original = columns.pop('original')
    masked = hide(original, ids_shuffle, num_masked, found.patch_size)
    columns = {'original': original, 'masked': masked} | columns
    return captioned_grid(columns, text + note + (LEAK.format(over=over) if found.normalized else PIXELS))


LEAK = (
    'The model predicts normalized patches. “Own statistics” puts the mean and variance of each original patch '
    "back ({over}): that leaks brightness and contrast of what was hidden, and only the structure is the model's. "
    '“One mean, deviation” gives all predicted patches those of the visible patches of all these images: nothing '
    'hidden leaks, so brightness and contrast are wrong there and edges of patches show.'
)
PIXELS = 'The model predicts pixels as they are: nothing of a masked patch is put back.'


def display(
    images: np.ndarray, channels: Sequence[int] | None, kind: ChannelFormat | None
) -> tuple[list[int], np.ndarray | None, str]:
    """Return the channels to draw, their values that become black and white, and what the caption says about it."""
    chosen = shown_channels(images, channels)
    if kind is None:
        return chosen, None, ''
    note = f'Shown channels: {", ".join(map(str, chosen))}, from their 1st to their 99th percentile. '
    return chosen, brightness(images, chosen), note


def draw_attention(options: DrawOptions) -> bytes:
    """Draw the attention of the class token in one block, averaged over the heads and per head."""
    found = prepare(options)
    maps = class_attention(found.model, found.inputs)
    shown = maps[:, :SHOWN_HEADS].numpy()
    columns = {'image': found.images, 'mean': attention_overlay(found.images, maps.mean(dim=1).numpy())}
    columns |= {f'head {index}': attention_overlay(found.images, shown[:, index]) for index in range(shown.shape[1])}
    share = maps.sum(dim=(2, 3)).mean().item()
    more = f' The first {SHOWN_HEADS} of {maps.shape[1]} heads.' if maps.shape[1] > SHOWN_HEADS else ''
    return captioned_grid(
        columns,
        f'{found.title}: attention of the class token to the patches in block '
        f'{found.block_name}.{more} Each map is drawn relative to its own largest value: compare '
        f'places within a map, not brightness between maps. On average {100 * share:.0f} % of the '
        f'attention goes to patches, the rest to the class token itself.{found.notes}',
    )


def draw_pca(options: DrawOptions) -> bytes:
    """Draw the first three principal components of the patch features as colors."""
    found = prepare(options)
    components, shares = principal_components(patch_features(found.model, found.inputs))
    colors = component_colors(components.numpy(), found.images.shape[1:3])
    percent = ', '.join(f'{100 * share:.0f} %' for share in shares)
    return captioned_grid(
        {'image': found.images, 'components': colors},
        f'{found.title}: the first three principal components of the patch features after block '
        f'{found.block_name} (without final norm), over all these images together, as red, green and '
        f'blue. They hold {percent} of the variance. Colors are comparable between the images of '
        'this picture, and not between pictures: patches of one color have similar features, and '
        f'position is a part of them.{found.notes}',
    )


_DRAW: dict[str, Callable[[DrawOptions], bytes]] = dict(
    reconstruction=draw_reconstruction, attention=draw_attention, pca=draw_pca
)


@dataclass
class Prepared:
    """An encoder built for the image size, and the images."""

    model: torch.nn.Module
    images: np.ndarray  # RGB uint8 (n, H, W, 3)
    inputs: torch.Tensor  # (n, C, H, W), normalized
    title: str
    block_name: str
    notes: str  # assumptions, for the caption


def prepare(options: DrawOptions) -> Prepared:
    """Build the encoder of a file up to the requested block, and normalize the images as in its training."""
    found = read_model(
        options.checkpoint,
        options.source,
        options.size,
        options.block,
        options.heads,
        options.statistics,
        options.config,
        options.cfg_options,
    )
    count = found.model.patch_embed.proj.in_channels
    if not count == len(found.mean) == (3 if found.channels is None else found.channels.count):
        raise ValueError(
            f'{options.checkpoint} reads {count_of(count, "channel")}: give --config, or --cfg-options with its '
            'image_channels, and files of that kind by --images'
        )
    images = load_images(options.images, found.model.img_size, options.count, found.channels)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    inputs = (x - torch.tensor(found.mean).view(-1, 1, 1)) / torch.tensor(found.std).view(-1, 1, 1)
    chosen, limits, note = display(images, options.channels, found.channels)
    return Prepared(
        found.model,
        as_colors(images, chosen, limits),
        inputs,
        title(options.checkpoint, found.encoder.kind),
        f'{found.model.depth - 1} of 0 to {found.model.arch_depth - 1}',
        ''.join(f' {sentence}' for sentence in [*found.notes, note.rstrip()] if sentence),
    )


def title(checkpoint: str, kind: str) -> str:
    return f'{checkpoint if is_name(checkpoint) else Path(checkpoint).name} [{kind}]'


def load_images(
    where: Sequence[str], size: int | tuple[int, int], count: int, channels: ChannelFormat | None = None
) -> np.ndarray:
    """Load images of one size, evenly spaced over all available images.

    Args:
        where: ``embedded`` (photographs from installed packages), ``digits``, folders, or image files.
        size: height and width; images are scaled to cover it and cropped at the center.
        count: maximum number of images.
        channels: how files are read if not as 8-bit color.

    Returns:
        RGB uint8 (n, height, width, 3), or with ``channels`` float32 (n, height, width, C) of 0..255.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if a file is not an image.
    """
    shape: tuple[int, int] = to_2tuple(size)
    if channels is not None and list(where) in (['embedded'], ['digits']):
        raise ValueError(f'--images {where[0]} are 8-bit color images: give files or a folder of the kind of the model')
    if list(where) == ['embedded'] and min(shape) >= SMALL:
        return np.stack([cover(photo(sorted(PHOTOS)[k]), shape) for k in spread(len(PHOTOS), count)])
    if list(where) in (['embedded'], ['digits']):
        make = partial(PhotoCrops, crops_per_image=1) if where[0] == 'embedded' else DigitImages
        data = make(split='val', size=max(shape), pipeline=[])
        return np.stack([cover(image, shape) for image in data.images(spread(len(data), count))])
    files = []
    for place in map(Path, where):
        if place.is_dir() or not place.exists():
            data = ImageFiles(
                roots=str(place), extensions=[*EXTENSIONS, ENDING] if channels else EXTENSIONS, pipeline=[]
            )
            files += [data.get_data_info(index)['img_path'] for index in range(len(data))]
        else:
            files.append(str(place))
    return np.stack([cover(read_image(files[k], channels), shape) for k in spread(len(files), count)])


def cover(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image to cover a size and crop it at the center: (height, width, C)."""
    scale = max(wanted / side for wanted, side in zip(size, image.shape[:2]))
    shape = [max(wanted, round(side * scale)) for wanted, side in zip(size, image.shape[:2])]
    if image.dtype != np.uint8:
        resized = resize_floats(image, (shape[0], shape[1]))
    else:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = image if tuple(shape) == image.shape[:2] else cv2.resize(image, shape[::-1], interpolation=method)
    top, left = ((side - wanted) // 2 for side, wanted in zip(shape, size))
    return np.ascontiguousarray(resized[top : top + size[0], left : left + size[1]])
