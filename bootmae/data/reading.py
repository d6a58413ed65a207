"""Fast reading of training images: decoding, random crop, resizing and flip in one transform.

Shape letters: H x W upright image, S_h x S_w output. A box is (top, left, height, width) in pixels.
"""

import contextlib
import io
import math
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform, RandomFlip
from mmcv.transforms.utils import cache_randomness
from mmengine import fileio
from mmpretrain.datasets.transforms import RandomResizedCrop
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from torch.nn.functional import interpolate

from .channels import ChannelFormat, advice_for, resize_planes
from .jpeg import END, JpegHeader, is_whole, parse_header
from .tar import readable

Box = tuple[int, int, int, int]
MODES = ('cpu', 'gpu')
# EXIF orientation: whether to transpose the stored image, then flip it vertically and horizontally, to turn it upright.
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# A photograph is decoded at 1/2, 1/4 or 1/8 of its size if its crop stays this many times larger than the output.
# benchmarks/README.md lists the errors for other margins.
MARGIN = 2


@TRANSFORMS.register_module()
class ClampedResizedCrop(RandomResizedCrop):
    """mmpretrain's RandomResizedCrop with a box that is drawn once and clamped to the image.

    Linear probing in facebookresearch/mae and BootMAE crops in this way. The base class draws up to ten boxes until one
    fits, and falls back to a center crop. The arguments are those of the base class; ``max_attempts`` has no effect.
    """

    @cache_randomness
    def rand_crop_params(self, img: np.ndarray) -> Box:
        height, width = img.shape[:2]
        area = height * width * np.random.uniform(*self.crop_ratio_range)
        aspect = math.exp(np.random.uniform(*map(math.log, self.aspect_ratio_range)))
        w, h = min(round(math.sqrt(area * aspect)), width), min(round(math.sqrt(area / aspect)), height)
        return np.random.randint(0, height - h + 1), np.random.randint(0, width - w + 1), h, w


@TRANSFORMS.register_module()
class ReadCrop(BaseTransform):
    """LoadImageFromFile, RandomResizedCrop (bicubic, Pillow) and RandomFlip (horizontal) in one transform.

    The upstream classes draw crop and flip in the order of the three-step pipeline, so the random numbers are the same.
    Pixels differ by the rounding of the resizing, and slightly more if a large photograph is decoded at a reduced size;
    tests/data/test_reading.py states the bounds.

    Added keys are those of the three transforms: ``img``, ``img_shape``, ``ori_shape``, and with a flip ``flip`` and
    ``flip_direction``.

    Args:
        crop: Arguments of mmpretrain's RandomResizedCrop; interpolation and backend are bicubic and pillow.
        flip: Arguments of mmcv's RandomFlip; None for no flip.
        mode: With ``cpu``, ``img`` is the crop. With ``gpu``, ``img`` holds the bytes of the file, a uint8 tensor
            (bytes,), and ``crop_box`` (5,) int64 holds the box and whether to flip it, for :class:`DeviceStage`. Files
            that the GPU should not decode are cropped on the CPU and get a box that covers the whole crop.
        clamped: Draw the box as :class:`ClampedResizedCrop` does.
        planes: Return the crop as a uint8 tensor (3, S_h, S_w) and not as an array (S_h, S_w, 3). The channels are BGR
            in both cases. Mode ``gpu`` implies it.
        backend_args: Arguments of mmengine's file backend, as for LoadImageFromFile.
        channels: Arguments of :class:`ChannelFormat`, for other images than 8-bit color. The crop is then
            float32 of 0 to 255.

    Attributes:
        checks_whole: True, since this transform itself refuses truncated files.

    Raises:
        ValueError: For another mode, interpolation, backend, or direction of flips; when reading, for a file that is
            truncated or cannot be decoded. Names the file.
    """

    checks_whole = True

    def __init__(
        self,
        crop: dict,
        flip: dict | None = None,
        mode: str = 'cpu',
        clamped: bool = False,
        planes: bool = False,
        backend_args: dict | None = None,
        channels: dict | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f'mode={mode!r} of ReadCrop must be one of {", ".join(map(repr, MODES))}')
        kind = ClampedResizedCrop if clamped else RandomResizedCrop
        self.crop = kind(**{'interpolation': 'bicubic', 'backend': 'pillow', **crop})
        self.flip = None if flip is None else RandomFlip(**flip)
        if (self.crop.interpolation, self.crop.backend) != ('bicubic', 'pillow'):
            raise ValueError(f'ReadCrop resizes as interpolation=bicubic with backend=pillow do, not {self.crop}')
        if self.flip is not None and self.flip.direction != 'horizontal':
            raise ValueError(f'ReadCrop flips horizontally, not direction={self.flip.direction!r}')
        self.mode, self.planes, self.backend_args = mode, planes or mode == 'gpu', backend_args
        self.size = tuple(self.crop.scale)
        self.channels = None if channels is None else ChannelFormat(**channels)
        if self.channels is not None and mode == 'gpu':
            raise ValueError('ReadCrop reads channels on the CPU: use reader=cpu')

    def transform(self, results: dict) -> dict:
        data = fileio.get(results['img_path'], backend_args=self.backend_args)
        try:
            return self.read(data, results) if self.channels is None else self.read_channels(data, results)
        except ValueError as error:
            raise ValueError(f'{readable(results["img_path"])} {error}') from error

    def read(self, data: bytes, results: dict) -> dict:
        """Do the work of :meth:`transform` on the bytes of a file; errors do not name the file."""
        header = check(data)
        image = None if header is not None and self.late(header) else decode(data)
        shape = upright_shape(header) if image is None else image.shape[:2]
        box, flipped = self.draw(shape, results)
        if self.mode == 'gpu' and image is None and header.for_gpu:
            place = (*box, flipped)
            img = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # a copy, since torch requires writable memory
        else:
            place = (0, 0, *self.size, False)
            crop = cut_jpeg(data, header, box, self.size) if image is None else resize(image, box, self.size)
            img = finish(crop, flipped, self.planes)
        if self.mode == 'gpu':
            results['crop_box'] = np.array(place, dtype=np.int64)
        return dict(results, img=img, img_shape=(*self.size, 3), ori_shape=shape)

    def read_channels(self, data: bytes, results: dict) -> dict:
        """Do the work of :meth:`read` on a file of other channels than 8-bit color."""
        image = self.channels.read(data)
        shape = image.shape[:2]
        box, flipped = self.draw(shape, results)
        top, left, height, width = box
        part = self.channels.scale(image[top : top + height, left : left + width], self.channels.limits(image))
        crop = resize_planes(part, self.size)
        crop = (crop.flip(2) if flipped else crop).contiguous()
        img = crop if self.planes else crop.permute(1, 2, 0).contiguous().numpy()
        return dict(results, img=img, img_shape=(*self.size, self.channels.count), ori_shape=shape)

    def late(self, header: JpegHeader) -> bool:
        """Return whether to draw the box before decoding, which the GPU or a reduced size may do."""
        large = reduction((0, 0, *upright_shape(header)), self.size) > 1
        return header.common and (large or (self.mode == 'gpu' and header.for_gpu))

    def draw(self, shape: tuple[int, int], results: dict) -> tuple[Box, bool]:
        """Draw a box of an image (H, W) and whether to flip it; store the flip in ``results``."""
        # The upstream method only reads the shape; this array takes no memory.
        box = self.crop.rand_crop_params(np.broadcast_to(np.uint8(0), shape))
        if self.flip is None:
            return box, False
        direction = self.flip._choose_direction()
        # The same values as mmcv: a numpy str, or None.
        results['flip'], results['flip_direction'] = direction is not None, direction
        return box, direction is not None

    def __repr__(self) -> str:
        return f'{type(self).__name__}(mode={self.mode!r}, crop={self.crop}, flip={self.flip})'


def check(data: bytes) -> JpegHeader | None:
    """Return the header of a JPEG file, None for another format.

    Raises:
        ValueError: If a JPEG file is truncated. Does not name the file.
    """
    header = parse_header(data)
    if header is not None and not data.endswith(END) and not is_whole(data):
        raise ValueError('is cut off: a JPEG file without its end')
    return header


def decode(data: bytes) -> np.ndarray:
    """Decode an image to (H, W, 3), BGR and upright, as LoadImageFromFile does.

    Raises:
        ValueError: If it cannot be decoded. Does not name the file.
    """
    try:
        image = mmcv.imfrombytes(data, flag='color', backend='cv2')
    except cv2.error as error:  # an empty file, or too many pixels
        raise ValueError(f'cannot be decoded as an image: {error.err}') from error
    if image is None:
        raise ValueError(advice_for(data) or 'cannot be decoded as an image')
    return image


def read_image(path: str, channels: ChannelFormat | None = None) -> np.ndarray:
    """Read an image file, or an image in a tar archive, as RGB uint8 (H, W, 3), upright.

    With ``channels`` the result is float32 (H, W, C) of 0 to 255.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated or cannot be decoded.
    """
    try:
        data = fileio.get(path)
        if channels is not None:
            return channels.load(data)
        check(data)
        return np.ascontiguousarray(decode(data)[..., ::-1])
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f'there is no image {path} (looked in {Path.cwd()})') from None
    except IsADirectoryError:
        raise ValueError(f'{path} is a folder: give the paths of its images, or the folder alone') from None
    except ValueError as error:
        raise ValueError(f'{readable(path)} {error}: give JPEG or PNG files, or a folder of them') from error
    except (OSError, ImportError, KeyError) as error:  # addresses such as http:// and s3://, too
        raise ValueError(f'{path} cannot be read ({error}): give the path of a file') from error


def upright_shape(header: JpegHeader) -> tuple[int, int]:
    """Return height and width of the upright image."""
    turned = TURNS[header.orientation][0]
    return (header.width, header.height) if turned else (header.height, header.width)


def stored_box(box: Box, header: JpegHeader) -> Box:
    """Convert a box of the upright image to the coordinates of the stored image."""
    transposed, down, across = TURNS[header.orientation]
    (height, width), (top, left, box_height, box_width) = upright_shape(header), box
    top = height - top - box_height if down else top
    left = width - left - box_width if across else left
    return (left, top, box_width, box_height) if transposed else (top, left, box_height, box_width)


def cut_jpeg(data: bytes, header: JpegHeader, box: Box, size: tuple[int, int]) -> torch.Tensor:
    """Decode, crop and resize a common JPEG file to uint8 (3, S_h, S_w), BGR, upright.

    Raises:
        ValueError: If it cannot be decoded.
    """
    factor = reduction(box, size)
    if factor > 1:
        with contextlib.suppress(OSError, SyntaxError, Image.DecompressionBombError):  # OpenCV may still read it
            return cut_reduced(data, header, box, size, factor)
    image = decode(data)
    if image.shape[:2] != upright_shape(header):
        raise ValueError(
            f'is of {image.shape[0]} x {image.shape[1]} pixels, but its header says '
            f'{" x ".join(map(str, upright_shape(header)))}'
        )
    return resize(image, box, size)


def reduction(box: Box, size: tuple[int, int]) -> int:
    """Return the factor by which decoding may reduce a JPEG: 1, 2, 4 or 8."""
    ratio = min(box[2] / size[0], box[3] / size[1]) / MARGIN
    return 1 if ratio < 2 else min(8, 2 ** int(math.log2(ratio)))


def cut_reduced(data: bytes, header: JpegHeader, box: Box, size: tuple[int, int], factor: int) -> torch.Tensor:
    """Do the work of :func:`cut_jpeg` on an image decoded at 1 / factor of its size; turn only the output upright.

    Raises:
        OSError, SyntaxError, DecompressionBombError: If Pillow cannot decode it.
    """
    transposed, down, across = TURNS[header.orientation]
    # A reduced pixel covers factor x factor pixels of the file, however the reduced size is rounded.
    top, left, height, width = (side / factor for side in stored_box(box, header))
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (header.width // factor, header.height // factor))
        out = image.resize(
            size if transposed else size[::-1], Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        )
    rgb = np.asarray(out.convert('RGB'))
    rgb = rgb.transpose(1, 0, 2) if transposed else rgb
    bgr = rgb[:: -1 if down else 1, :: -1 if across else 1, ::-1]
    return torch.from_numpy(bgr.copy()).permute(2, 0, 1)


def resize(image: np.ndarray, box: Box, size: tuple[int, int]) -> torch.Tensor:
    """Crop a uint8 image (H, W, 3) and resize the box to (3, S_h, S_w), bicubic and antialiased.

    The horizontal pass comes first, as in Pillow up to 12; Pillow 13 sometimes reverses the order. Both clip values
    beyond black and white between the passes.
    """
    top, left, height, width = box
    planes = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)
    return interpolate(planes[None], size, mode='bicubic', antialias=True)[0]


def finish(crop: torch.Tensor, flipped: bool, planes: bool) -> torch.Tensor | np.ndarray:
    """Flip a crop (3, S_h, S_w) if asked; return an array (S_h, S_w, 3) unless ``planes``."""
    crop = (crop.flip(2) if flipped else crop).contiguous()
    return crop if planes else cv2.merge(list(crop.numpy()))
