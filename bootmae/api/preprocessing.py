"""From images of any kind to the input of an encoder."""

import os
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps

from ..data.reading import read_image
from ..text import count_of
from .arguments import height_and_width

Picture: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
METHODS = tuple(Image.Resampling.__members__)
REDUCIBLE = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV')  # modes of 8 bits in Pillow


@dataclass(frozen=True)
class Preprocessing:
    """How images become the input of an encoder.

    An image is scaled to cover ``resize``, and ``size`` is cut out at the center. An image that has this size already
    stays as it is. Then the channels are normalized. For another preprocessing set
    ``encoder.preprocessing = dataclasses.replace(encoder.preprocessing, ...)``.

    Attributes:
        size: Height and width of the input.
        mean: Mean of each channel (RGB, of 0..255).
        std: Standard deviation of each channel.
        resize: Height and width that the image covers before the crop. By default 8/7 of ``size`` in whole patches, 256
            for 224, as in the evaluation pipelines of the configs.
        interpolation: ``bicubic`` or another method of Pillow, with antialiasing.

    Raises:
        ValueError: If a size is none, Pillow has no such method, or mean and std are for values of 0 to 1.

    >>> import bootmae, numpy
    >>> preprocessing = bootmae.Preprocessing((32, 32), (127.5,) * 3, (127.5,) * 3, resize=(36, 36))
    >>> preprocessing(numpy.full((90, 60, 3), 255, dtype='uint8'))[:, 0, 0]
    tensor([1., 1., 1.])
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[int, int]
    interpolation: str = 'bicubic'

    def __post_init__(self):
        for name in ('size', 'resize'):
            object.__setattr__(self, name, height_and_width(getattr(self, name), name))
        if str(self.interpolation).upper() not in METHODS:
            raise ValueError(f'interpolation={self.interpolation!r}: give one of {", ".join(METHODS).lower()}')
        if len(self.mean) != len(self.std) or min(self.std) <= 0 or max(self.std) < 1:
            raise ValueError(
                f'mean={self.mean}, std={self.std}: give a number for each channel, of values from 0 to 255 and not '
                'from 0 to 1'
            )

    def __call__(self, image: Picture) -> torch.Tensor:
        """Convert an image (a path, PIL image, or RGB uint8 array (H, W, 3)) to a tensor (3, height, width).

        Raises:
            FileNotFoundError, ValueError: See :func:`as_array`.
        """
        return self.normalize(self.crop(as_array(image)))

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Scale and crop an RGB uint8 image (H, W, 3) to ``size``."""
        if image.shape[:2] == self.size:
            return image
        (rows, columns), (height, width) = image.shape[:2], (max(pair) for pair in zip(self.resize, self.size))
        if height * columns >= width * rows:  # truncated, as mmpretrain's ResizeEdge does
            width = max(width, int(height * columns / rows))
        else:
            height = max(height, int(width * rows / columns))
        method = Image.Resampling[self.interpolation.upper()]
        resized = np.asarray(Image.fromarray(image).resize((width, height), method))
        top, left = (round((side - wanted) / 2) for side, wanted in zip((height, width), self.size))
        return resized[top : top + self.size[0], left : left + self.size[1]]

    @property
    def largest(self) -> float:
        """Largest absolute value of a normalized image."""
        return max(max(mean, 255 - mean) / std for mean, std in zip(self.mean, self.std))

    def normalize(self, image: np.ndarray) -> torch.Tensor:
        """Convert an RGB uint8 image (H, W, 3) of any size to a normalized tensor (3, H, W)."""
        if len(self.mean) != image.shape[2]:
            raise ValueError(
                f'the encoder reads {count_of(len(self.mean), "channel")}, not color images: give preprocessed images '
                'as one tensor of (images, channels, height, width)'
            )
        return torch.from_numpy((image - np.float32(self.mean)) / np.float32(self.std)).permute(2, 0, 1)


def as_array(image: Picture) -> np.ndarray:
    """Return an image as RGB uint8 (H, W, 3), upright.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or object is not such an image.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(os.path.expanduser(image))
    if isinstance(image, Image.Image):
        if image.mode not in REDUCIBLE:
            raise ValueError(f'a PIL image of mode {image.mode}: scale its values to 0..255 and convert it to L or RGB')
        try:
            image = np.array(ImageOps.exif_transpose(image).convert('RGB'))
        except (OSError, SyntaxError, ValueError) as error:  # the file is read only now
            raise ValueError(f'{getattr(image, "filename", "") or "a PIL image"} cannot be read: {error}') from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
        return image
    raise ValueError(
        f'{described(image)} is not an image here: give a path, a PIL image, or an RGB uint8 array of (height, width, '
        '3); preprocessed images as one tensor of (images, channels, height, width)'
    )


def described(image: Any) -> str:
    """Return what an object is, for a message: type and shape of arrays and tensors."""
    kind = {np.ndarray: 'an array', torch.Tensor: 'a tensor'}.get(type(image))
    return f'{kind} {str(image.dtype).removeprefix("torch.")} {tuple(image.shape)}' if kind else f'{image!r:.60}'


def as_list(images: Any) -> list[Picture]:
    """Return one image, or several, as a list.

    Raises:
        ValueError: If there is no image, or the argument holds none.
    """
    single = isinstance(images, str | os.PathLike | Image.Image) or getattr(images, 'ndim', None) in (1, 2, 3)
    try:
        listed = [images] if single else list(images)
    except TypeError:
        listed = [images]  # as_array says what it is
    if not listed:
        raise ValueError('no images were given: give a list with at least one, or a folder')
    return listed
