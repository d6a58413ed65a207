"""Real images that come with installed packages: digits and crops of photographs. Nothing is downloaded.

They serve tests, first runs and small comparisons on a machine without data. Results on them show that a
pipeline works and that pretraining helps; they do not transfer to ImageNet.
"""

from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..text import count_of
from .subsets import few_labels

# Class name: (distribution, import name, file). Left out: drawings, binary and synthetic images (horse, logo, phantom,
# chessboards, color wheel), pages of text, motorcycle_right (stereo partner of motorcycle_left), microaneurysms (102
# pixels), lfw_subset (25 pixels), and cell and clock_motion (almost featureless).
PHOTOS = {
    'astronaut': ('scikit-image', 'skimage', 'data/astronaut.png'),
    'brick': ('scikit-image', 'skimage', 'data/brick.png'),
    'camera': ('scikit-image', 'skimage', 'data/camera.png'),
    'chelsea': ('scikit-image', 'skimage', 'data/chelsea.png'),
    'china': ('scikit-learn', 'sklearn', 'datasets/images/china.jpg'),
    'coffee': ('scikit-image', 'skimage', 'data/coffee.png'),
    'coins': ('scikit-image', 'skimage', 'data/coins.png'),
    'flower': ('scikit-learn', 'sklearn', 'datasets/images/flower.jpg'),
    'grace_hopper': ('matplotlib', 'matplotlib', 'mpl-data/sample_data/grace_hopper.jpg'),
    'grass': ('scikit-image', 'skimage', 'data/grass.png'),
    'gravel': ('scikit-image', 'skimage', 'data/gravel.png'),
    'hubble_deep_field': ('scikit-image', 'skimage', 'data/hubble_deep_field.jpg'),
    'immunohistochemistry': ('scikit-image', 'skimage', 'data/ihc.png'),
    'moon': ('scikit-image', 'skimage', 'data/moon.png'),
    'motorcycle': ('scikit-image', 'skimage', 'data/motorcycle_left.png'),
    'retina': ('scikit-image', 'skimage', 'data/retina.jpg'),
    'rocket': ('scikit-image', 'skimage', 'data/rocket.jpg'),
    'text': ('scikit-image', 'skimage', 'data/text.png'),
}
# Crop sizes hold for photographs whose shorter side is at most this long; larger ones get larger crops.
NOMINAL_SIDE = 512
# Unused pixels between the training and the validation half, the width of a JPEG chroma block.
GAP = 16
# A crop with a smaller standard deviation of gray levels (plain sky, black border) is drawn again.
MIN_CONTRAST = 4.0
MAX_DRAWS = 100
DIGITS_VAL_PER_CLASS = 50


class EmbeddedImages(BaseDataset):
    """Base class of data sets that hold all images in memory.

    A sample enters the pipeline with ``img`` (BGR uint8, H x W x 3, as from LoadImageFromFile), ``img_shape``,
    ``ori_shape``, ``gt_label`` and ``sample_idx``, so pipelines need no loading transform.
    """

    def __init__(self, split: str, size: int, labels_per_class: int | None, subset_seed: int, **kwargs):
        if split not in ('train', 'val'):
            raise ValueError(f"split={split!r} must be 'train' or 'val'")
        if size < 1:
            raise ValueError(f'size={size} must be a positive number of pixels')
        if labels_per_class is not None and split != 'train':
            raise ValueError(
                f'labels_per_class={labels_per_class} is for the training split; '
                'drop it for validation, whose size must not change'
            )
        self.split, self.size = split, size
        self.labels_per_class, self.subset_seed = labels_per_class, subset_seed
        # mmengine serializes for the memory of workers with millions of samples, and then collects garbage for long.
        super().__init__(ann_file='', **dict(serialize_data=False) | kwargs)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all images of the split, RGB uint8 (n, size, size, 3), and their labels (n,)."""
        raise NotImplementedError

    def load_data_list(self) -> list[dict]:
        """Prepare the images of the split and return dict(row, gt_label) for each sample."""
        pixels, labels = self.draw()
        self._pixels = np.ascontiguousarray(pixels[..., ::-1])  # converted to BGR once, not for every sample
        rows = np.arange(len(labels))
        if self.labels_per_class is not None:
            rows = few_labels(labels, self.labels_per_class, self.subset_seed)
        return [dict(row=int(row), gt_label=int(labels[row])) for row in rows]

    def get_data_info(self, idx: int) -> dict:
        """Return a sample before the pipeline, with a copy of its image that transforms may change."""
        info = super().get_data_info(idx)
        info['img'] = self._pixels[info['row']].copy()
        info['img_shape'] = info['ori_shape'] = info['img'].shape[:2]
        return info

    def images(self, indices: Iterable[int]) -> np.ndarray:
        """Return images before any transform: RGB uint8 (n, size, size, 3)."""
        rows = [super(EmbeddedImages, self).get_data_info(int(i))['row'] for i in indices]
        return np.ascontiguousarray(self._pixels[rows][..., ::-1])

    def describe(self) -> str:
        """Return one line for the log: number of images, number of classes, source."""
        num_classes = len(self.metainfo['classes'])
        classes = count_of(num_classes, 'class', 'classes')
        return f'{count_of(len(self), "image")}, {classes}, {type(self).__name__} {self.split}'

    def extra_repr(self) -> list[str]:
        """Return the lines for mmpretrain's ``repr``."""
        return [self.describe()] if self._fully_initialized else []


@DATASETS.register_module()
class DigitImages(EmbeddedImages):
    """The 1,797 handwritten digits of scikit-learn, enlarged from 8 x 8 pixels.

    Validation holds a fixed draw of 50 images of each digit, training the other 1,297. Both splits share their writers.

    Args:
        split: 'train' or 'val'.
        size: Side of the square images in pixels, enlarged bicubically.
        labels_per_class: Number of training images of each class to keep. Smaller subsets are part of larger ones.
        subset_seed: Seed of that draw.
        kwargs: Arguments of mmpretrain's BaseDataset, such as ``pipeline`` and ``test_mode``.

    Raises:
        ValueError: For an invalid split, size or subset.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, split: str, size: int = 32, labels_per_class: int | None = None, subset_seed: int = 0, **kwargs):
        super().__init__(split, size, labels_per_class, subset_seed, **kwargs)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        images, labels = digits()
        val = np.zeros(len(labels), dtype=bool)
        val[few_labels(labels, DIGITS_VAL_PER_CLASS, seed=0)] = True
        chosen = val if self.split == 'val' else ~val
        gray = np.round(images[chosen] * (255 / 16)).astype(np.uint8)
        shape = (self.size, self.size)
        enlarged = np.stack([cv2.resize(image, shape, interpolation=cv2.INTER_CUBIC) for image in gray])
        return np.repeat(enlarged[..., None], 3, axis=3), labels[chosen]


@DATASETS.register_module()
class PhotoCrops(EmbeddedImages):
    """Square crops of the 18 photographs in ``PHOTOS``; the class of a crop is its photograph.

    Training crops come from one half of each photograph (left, or upper if it is taller than wide), validation crops
    from the other. A strip of 16 pixels between the halves is unused, so that the splits share no pixel and no JPEG
    block. The boxes are fixed by ``crop_seed``. Texture and color are enough to classify the other half of a
    photograph; no recognition of objects is needed.

    Args:
        split: 'train' or 'val'.
        size: Side of the crops in pixels after resizing.
        crop_size: Smallest and largest side of the crops before resizing, in pixels of a photograph whose shorter side
            is at most 512; scaled for larger ones.
        crops_per_image: Number of crops of each photograph, by default 256 for training and 64 for validation.
        crop_seed: Seed of the boxes.
        labels_per_class: Number of training crops of each class to keep. Smaller subsets are part of larger ones.
        subset_seed: Seed of that draw.
        kwargs: Arguments of mmpretrain's BaseDataset, such as ``pipeline`` and ``test_mode``.

    Attributes:
        boxes: (n, 3) left, top and side of all crops of the split, sorted by photograph.

    Raises:
        ValueError: For an invalid split, size or subset.
        FileNotFoundError: If an installed package lacks its photograph. Names the package.
    """

    METAINFO = dict(classes=tuple(PHOTOS))

    def __init__(
        self,
        split: str,
        size: int = 32,
        crop_size: tuple[int, int] = (48, 96),
        crops_per_image: int | None = None,
        crop_seed: int = 0,
        labels_per_class: int | None = None,
        subset_seed: int = 0,
        **kwargs,
    ):
        if crops_per_image is None:
            crops_per_image = 256 if split == 'train' else 64
        if crops_per_image < 1:
            raise ValueError(f'crops_per_image={crops_per_image} must be positive')
        smallest, largest = crop_size
        if not 8 <= smallest <= largest <= 160:
            raise ValueError(
                f'crop_size={crop_size} must be (smallest, largest) within 8 and 160 pixels: '
                'a crop must fit into half of the smallest photograph'
            )
        self.crop_size, self.crops_per_image, self.crop_seed = (smallest, largest), crops_per_image, crop_seed
        super().__init__(split, size, labels_per_class, subset_seed, **kwargs)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        self.boxes, crops = draw_crops(self.split, self.size, self.crop_size, self.crops_per_image, self.crop_seed)
        return crops, np.repeat(np.arange(len(PHOTOS)), self.crops_per_image)


@DATASETS.register_module()
class GrayPhotoCrops(PhotoCrops):
    """:class:`PhotoCrops` in gray, for which texture and shape are needed: color tells most photographs apart."""

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        crops, labels = super().draw()
        gray = np.stack([cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in crops])
        return np.repeat(gray[..., None], 3, axis=3), labels


@lru_cache(maxsize=2)
def draw_crops(
    split: str, size: int, crop_size: tuple[int, int], per_image: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes and the pixels of the crops of :class:`PhotoCrops`, int (n, 3) and uint8 (n, size, size, 3)."""
    boxes, crops = [], []
    for number, name in enumerate(PHOTOS):
        # Each photograph and split has its own stream, so more crops leave the first ones unchanged.
        rng = np.random.default_rng((seed, number, split == 'val'))
        image = photo(name)
        region = half(image.shape[:2], split)
        for _ in range(per_image):
            box = draw_box(image, region, crop_size, rng)
            boxes.append(box)
            crops.append(cut(image, box, size))
    found = np.array(boxes), np.stack(crops)
    for array in found:
        array.flags.writeable = False
    return found


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of scikit-learn, float (1797, 8, 8) from 0 to 16, and their labels (1797,), both read-only.

    They are those of ``sklearn.datasets.load_digits``, whose import takes longer than a short training.

    Raises:
        FileNotFoundError: If the file is missing. Names package, version and remedy.
    """
    table = np.loadtxt(installed_file('scikit-learn', 'sklearn', 'datasets/data/digits.csv.gz'), delimiter=',')
    images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def installed_file(distribution: str, module: str, path: str) -> Path:
    """Return the path of a file in an installed package, which is not imported.

    Raises:
        FileNotFoundError: If the file is missing. Names package, version and remedy.
    """
    spec = find_spec(module)
    if spec is None:
        raise FileNotFoundError(f'{path} is part of {distribution}, which is not installed: pip install {distribution}')
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file():
        raise FileNotFoundError(f'no {file}: {reinstall(distribution)}')
    return file


def reinstall(distribution: str) -> str:
    """Return how to repair an installed package."""
    try:
        release = version(distribution)
    except PackageNotFoundError:
        release = '(unknown version)'
    return f'{distribution} {release} is not complete, pip install --force-reinstall {distribution} repairs it'


@cache
def photo(name: str) -> np.ndarray:
    """Return a photograph of ``PHOTOS``, RGB uint8 (H, W, 3), read-only and decoded once per process.

    Raises:
        FileNotFoundError: If the photograph is missing. Names package, version and remedy.
    """
    file = installed_file(*PHOTOS[name])
    image = cv2.imread(str(file))
    if image is None:
        raise FileNotFoundError(f'{file} cannot be read: {reinstall(PHOTOS[name][0])}')
    image = np.ascontiguousarray(image[:, :, ::-1])
    image.flags.writeable = False
    return image


def half(shape: tuple[int, int], split: str) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom (exclusive) of the half of an image (H, W) that belongs to a split."""
    height, width = shape
    first_end, second_start = max(shape) // 2 - GAP // 2, max(shape) // 2 + GAP // 2
    if width >= height:
        return (0, 0, first_end, height) if split == 'train' else (second_start, 0, width, height)
    return (0, 0, width, first_end) if split == 'train' else (0, second_start, width, height)


def draw_box(
    image: np.ndarray, region: tuple[int, int, int, int], crop_size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int]:
    """Draw left, top and side of a square in ``region`` that is not featureless; after 100 tries take any."""
    left, top, right, bottom = region
    scale = max(1.0, min(image.shape[:2]) / NOMINAL_SIDE)
    for _ in range(MAX_DRAWS):
        side = round(scale * rng.integers(crop_size[0], crop_size[1] + 1))
        x, y = rng.integers(left, right - side + 1), rng.integers(top, bottom - side + 1)
        if image[y : y + side : 4, x : x + side : 4].mean(axis=2).std() >= MIN_CONTRAST:
            break
    return int(x), int(y), side


def cut(image: np.ndarray, box: tuple[int, int, int], size: int) -> np.ndarray:
    """Cut the square ``box`` out of an image and resize it to (size, size, 3)."""
    x, y, side = box
    method = cv2.INTER_AREA if side >= size else cv2.INTER_CUBIC
    return cv2.resize(image[y : y + side, x : x + side], (size, size), interpolation=method)
