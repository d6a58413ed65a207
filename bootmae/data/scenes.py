"""Digit scenes: handwritten digits of many sizes over real photographs, with masks and instances.

They replace ADE20K and COCO in demos and tests without data. Digits and photographs come with installed packages, see
:mod:`bootmae.data.embedded`. Training and validation share neither a digit nor a part of a photograph.

Shape letters: H and W image size, K digits of a scene, S side of a digit.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.ops import masks_to_boxes

from .embedded import PHOTOS, DigitImages, half, photo

UNLABELED, BACKGROUND = 0, 1  # values in masks, as in ADE20K; the digits follow
SPLITS = {'train': ('training', 'train2017'), 'val': ('validation', 'val2017')}  # folders of ADE20K and of COCO
VERSION = 1  # of the drawing; scenes of another version on disk are refused
INK, EDGE = 0.5, 0.15  # opacity: from INK on a pixel belongs to the digit; between EDGE and INK it is unlabeled
DARKENED = 0.4  # brightness of the photograph, so that bright digits stand out
MIN_SHOWN = 0.85  # share of a digit that later digits must leave visible
MAX_TRIES = 50  # positions to try before a digit is left out


@dataclass(frozen=True)
class SceneSpec:
    """Settings of a set of scenes.

    Args:
        train: Number of training scenes.
        val: Number of validation scenes.
        size: Height and width in pixels.
        digits: Smallest and largest number of digits in a scene.
        side: Smallest and largest side of a digit in pixels, drawn log-uniformly.
        values: Digits that occur, ascending; each is a class.
        seed: Seed of all draws.
    """

    train: int = 400
    val: int = 80
    size: tuple[int, int] = (96, 144)
    digits: tuple[int, int] = (2, 4)
    side: tuple[int, int] = (40, 64)
    values: tuple[int, ...] = tuple(range(10))
    seed: int = 0

    def __post_init__(self):
        for name in ('size', 'digits', 'side', 'values'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if min(self.train, self.val, self.digits[0]) < 1 or self.digits[0] > self.digits[1]:
            raise ValueError(
                f'{self}: each split needs a scene and each scene a digit, with digits=(smallest, largest)'
            )
        if not 8 <= self.side[0] <= self.side[1] <= min(self.size):
            raise ValueError(f'{self}: side=(smallest, largest) must lie between 8 and the smaller side of size')
        if not self.values or list(self.values) != sorted(set(self.values) & set(range(10))):
            raise ValueError(f'{self}: values must be some of 0..9 in ascending order')

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the instance classes."""
        return tuple(map(str, self.values))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the semantic classes."""
        return ('background', *self.names)


@dataclass
class Scene:
    """One scene.

    Attributes:
        image: RGB uint8 (H, W, 3).
        labels: Classes of the digits (K,), counted from 0.
        masks: Visible part of each digit, bool (K, H, W).
        semantic: Mask in the format of ADE20K, uint8 (H, W).
    """

    image: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    semantic: np.ndarray


@cache
def _digits(split: str, values: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of a split as opacity (n, 8, 8) in 0..1, and their classes (n,)."""
    pixels, digits = DigitImages(split, size=8).draw()
    chosen = np.isin(digits, values)
    return pixels[chosen, ..., 0].astype(np.float32) / 255, np.asarray(np.searchsorted(values, digits[chosen]))


def _background(size: tuple[int, int], split: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a darkened crop of a photograph's half for the split, at a random scale: (H, W, 3) float32."""
    image = photo(sorted(PHOTOS)[rng.integers(len(PHOTOS))])
    left, top, right, bottom = half(image.shape[:2], split)
    scale = min(rng.uniform(1.0, 2.5), (bottom - top) / size[0], (right - left) / size[1])
    height, width = (int(n * scale) for n in size)
    y, x = rng.integers(top, bottom - height + 1), rng.integers(left, right - width + 1)
    crop = cv2.resize(image[y : y + height, x : x + width], size[::-1], interpolation=cv2.INTER_AREA)
    return crop[:, :: rng.choice((-1, 1))] * np.float32(DARKENED)


def _color(rng: np.random.Generator) -> np.ndarray:
    """Draw a bright color."""
    return rng.uniform(150, 255, 3)


def draw_scene(spec: SceneSpec, split: str, index: int) -> Scene:
    """Draw scene ``index`` of a split, which depends on the arguments alone."""
    rng = np.random.default_rng((spec.seed, split == 'val', index))
    opacities, classes = _digits(split, spec.values)
    (height, width), (low, high) = spec.size, np.log(spec.side)
    image, owner = _background(spec.size, split, rng), np.full(spec.size, -1)
    edge, full, labels = np.zeros(spec.size, dtype=bool), [], []
    for _ in range(rng.integers(spec.digits[0], spec.digits[1] + 1)):
        chosen, side = rng.integers(len(classes)), int(np.exp(rng.uniform(low, high)))
        opacity = cv2.resize(opacities[chosen], (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        ink = opacity >= INK
        for _ in range(MAX_TRIES):
            y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
            place = slice(y, y + side), slice(x, x + side)
            left = np.bincount(owner[place][~ink & (owner[place] >= 0)], minlength=len(full))
            outside = [np.count_nonzero(owner == k) - np.count_nonzero(owner[place] == k) for k in range(len(full))]
            if all(seen + out >= MIN_SHOWN * n for seen, out, n in zip(left, outside, full)):
                break
        else:
            continue
        image[place] += opacity[..., None] * (_color(rng) - image[place])
        edge[place] = np.where(ink, False, edge[place] | (opacity > EDGE))
        owner[place][ink] = len(full)
        full.append(np.count_nonzero(ink))
        labels.append(int(classes[chosen]))
    image = (image + rng.normal(0, 4, image.shape)).clip(0, 255).round().astype(np.uint8)
    return _labeled(image, np.array(labels), owner, edge)


def _labeled(image: np.ndarray, labels: np.ndarray, owner: np.ndarray, edge: np.ndarray) -> Scene:
    """Build a scene from the digit that owns each pixel (H, W), -1 for none, and the mask of blurred edges (H, W)."""
    semantic = np.where(owner >= 0, labels[owner] + BACKGROUND + 1, BACKGROUND).astype(np.uint8)
    semantic[edge & (owner < 0)] = UNLABELED
    masks = owner == np.arange(len(labels))[:, None, None]
    return Scene(image, labels, masks, semantic)


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Return the boxes of masks: (K, H, W) bool -> (K, 4) float x1, y1, x2, y2, right and bottom exclusive."""
    boxes = masks_to_boxes(torch.from_numpy(masks)).double().numpy()
    return boxes + (0, 0, 1, 1)


def _annotations(scene: Scene, image_id: int, first: int) -> Iterator[dict]:
    """Yield the COCO annotations of the digits of a scene, with ids counted from ``first``."""
    for k, (label, mask, box) in enumerate(zip(scene.labels, scene.masks, boxes_of(scene.masks))):
        code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        x1, y1, x2, y2 = box.tolist()
        yield dict(
            id=first + k,
            image_id=image_id,
            category_id=int(label) + 1,
            iscrowd=0,
            bbox=[x1, y1, x2 - x1, y2 - y1],
            area=int(mask.sum()),
            segmentation=dict(size=list(code['size']), counts=code['counts'].decode()),
        )


def _write_split(root: Path, spec: SceneSpec, split: str) -> None:
    ade, coco = SPLITS[split]
    folders = root / 'images' / ade, root / 'annotations' / ade, root / coco
    for folder in folders:
        folder.mkdir(parents=True)
    images, annotations = [], []
    for index in range(getattr(spec, split)):
        scene, name = draw_scene(spec, split, index), f'{index + 1:06d}'
        cv2.imwrite(str(folders[0] / f'{name}.jpg'), scene.image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))
        cv2.imwrite(str(folders[1] / f'{name}.png'), scene.semantic)
        os.link(folders[0] / f'{name}.jpg', folders[2] / f'{name}.jpg')
        images.append(dict(id=index + 1, file_name=f'{name}.jpg', height=spec.size[0], width=spec.size[1]))
        annotations += _annotations(scene, index + 1, len(annotations) + 1)
    categories = [dict(id=label + 1, name=name) for label, name in enumerate(spec.names)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'annotations' / f'instances_{coco}.json').write_text(json.dumps(content))


def write_scenes(root: str | Path, spec: SceneSpec) -> Path:
    """Write the scenes to a folder, in the layouts of ADE20K and COCO, unless it holds them already.

    ``images/`` and ``annotations/{training,validation}`` follow ADE20K with ``reduce_zero_label``: 0 is unlabeled (the
    blurred edge of a digit), 1 the background, then the digits. ``{train,val}2017`` and
    ``annotations/instances_*.json`` follow COCO. The folder is created atomically, so several processes may call this
    function at once.

    Raises:
        ValueError: If the folder exists and holds other scenes.
    """
    root, manifest = Path(root), json.dumps(asdict(spec) | dict(version=VERSION))
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f'.{root.name}.', dir=root.parent))
        try:
            temporary.chmod(0o755)
            for split in SPLITS:
                _write_split(temporary, spec, split)
            (temporary / 'scenes.json').write_text(manifest)
            temporary.rename(root)
        except OSError:
            if not (root / 'scenes.json').is_file():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    found = root / 'scenes.json'
    if not found.is_file() or json.loads(found.read_text()) != json.loads(manifest):
        raise ValueError(
            f'{root} does not hold the scenes {spec} (version {VERSION}): delete the folder, or choose another one'
        )
    return root
