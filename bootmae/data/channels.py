"""Images of any number of channels and of 8 to 32 bits: TIFF, NumPy, PNG and whatever OpenCV reads.

Values are read as stored and scaled once, to float32 of 0 to 255 (:meth:`ChannelFormat.scale`). That is the unit of the
mean and standard deviation in data preprocessors, whatever the type of the files.

Shape letters: H x W image, F channels of a file, C channels that are used.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from mmpretrain.datasets.transforms import ResizeEdge
from torch.nn.functional import interpolate

from ..text import count_of
from .jpeg import END, START, is_whole
from .tar import readable

ENDING = 'npy'  # of the files that OpenCV does not read; TIFF has its usual endings
TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')  # the last two are BigTIFF
PLAIN_COLORS = (1, 2)  # its tag PhotometricInterpretation for gray where 0 is black, and RGB
NUMPY = b'\x93NUMPY'
AXES = ('last', 'first')
LEVELS = 255.0  # the highest value after scaling
ADVICE = 'tools/channel_statistics.py prints it'
COLOR_OR_GRAY = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
COLORS = {3: (2, 1, 0), 4: (2, 1, 0, 3)}  # OpenCV decodes to BGR and BGRA

Ranges = Sequence[float] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class ChannelFormat:
    """How image files hold their channels, and which values become 0 and 255.

    Args:
        number: Number of channels F in each file.
        axis: Place of the channels in TIFF and NumPy files: ``last`` (H, W, F), or ``first`` (F, H, W), as in TIFF
            files of several pages. An array (H, W) has one channel.
        select: Channels to use, counted from 0, in this order; all by default.
        ranges: The values that become 0 and 255: (low, high) of all channels, or a pair for each used channel. Values
            outside are clipped. By default the whole range of unsigned integers; other types need it.
        percentiles: (low, high) in percent: take the range of every channel from these percentiles of each image.

    Raises:
        ValueError: For arguments that do not fit one another.
    """

    number: int
    axis: str = 'last'
    select: Sequence[int] | None = None
    ranges: Ranges | None = None
    percentiles: Sequence[float] | None = None

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, _as_tuple(getattr(self, field.name)))
        if isinstance(self.number, bool) or not isinstance(self.number, int) or self.number < 1:
            raise ValueError(f'image_channels.number={self.number!r}: give the number of channels in a file')
        if self.axis not in AXES:
            raise ValueError(f'image_channels.axis={self.axis!r} must be one of {", ".join(map(repr, AXES))}')
        chosen = (0,) if self.select is None else self.select
        if not (isinstance(chosen, tuple) and chosen and set(chosen) <= set(range(self.number))):
            raise ValueError(f'image_channels.select={self.select}: the channels of a file are 0 to {self.number - 1}')
        if self.ranges is not None and self.percentiles is not None:
            raise ValueError(
                'image_channels.ranges and image_channels.percentiles both say what becomes 0 and 255: leave one out'
            )
        if self.ranges is not None:
            pairs = (self.ranges,) * self.count if _is_range(self.ranges) else self.ranges
            if not (isinstance(pairs, tuple) and len(pairs) == self.count and all(map(_is_range, pairs))):
                raise ValueError(
                    f'image_channels.ranges={self.ranges}: give (low, high), or such a pair for each of the '
                    f'{count_of(self.count, "used channel")}'
                )
            object.__setattr__(self, 'ranges', pairs)
        tails = (0, 100) if self.percentiles is None else self.percentiles
        if not (_is_range(tails) and tails[0] >= 0 and tails[1] <= 100):
            raise ValueError(f'image_channels.percentiles={self.percentiles}: give (low, high) within 0 and 100')

    @property
    def count(self) -> int:
        """Number of channels C that are used."""
        return self.number if self.select is None else len(self.select)

    def read(self, data: bytes) -> np.ndarray:
        """Decode a file to (H, W, C) of its stored type.

        Raises:
            ValueError: If it cannot be decoded, has another number of channels, or has NaN or infinity. Does not name
                the file.
        """
        array = decode(data)
        if array.ndim == 2:
            array = array[..., None]
        elif array.ndim == 3 and self.axis == 'first' and data.startswith((NUMPY, *TIFF)):
            array = array.transpose(1, 2, 0)
        if array.ndim != 3 or array.shape[2] != self.number:
            raise ValueError(self._explain(array))
        if self.select is not None:
            array = array[..., self.select]
        if array.dtype.kind not in 'uif' or array.dtype.itemsize > 8:
            raise ValueError(f'has values of type {array.dtype}: convert them to integers or floats')
        if array.dtype.kind == 'f' and not np.isfinite(array).all():
            wrong = int(np.flatnonzero(~np.isfinite(array).all(axis=(0, 1)))[0])
            raise ValueError(f'has NaN or infinity in channel {wrong}: replace such values in the file')
        return array

    def load(self, data: bytes) -> np.ndarray:
        """Decode a file and scale its values: float32 (H, W, C) of 0 to 255. Raises as :meth:`read` does."""
        image = self.read(data)
        return self.scale(image, self.limits(image))

    def _explain(self, array: np.ndarray) -> str:
        """Say why an array is not (H, W, F)."""
        if array.ndim != 3:
            return f'is an array {array.shape}, and an image has a height, a width and channels: remove the file'
        found = f'has {count_of(array.shape[2], "channel")} with image_channels.axis={self.axis!r}, not {self.number}'
        stored = array.transpose(2, 0, 1) if self.axis == 'first' else array
        axis, place = ('first', 0) if self.axis == 'last' else ('last', 2)
        fits = stored.shape[place] == self.number
        remedy = f'set image_channels.axis={axis!r}' if fits else 'correct image_channels.number, or remove the file'
        return f'{found}: {remedy}'

    def limits(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of each channel that become 0 and 255, for an image (H, W, C): twice (C,) float64.

        Raises:
            ValueError: If the type of the image has no range of its own. Does not name the file.
        """
        if self.ranges is not None:
            low, high = np.array(self.ranges, dtype=np.float64).T
        elif self.percentiles is not None:
            low, high = np.percentile(image, self.percentiles, axis=(0, 1))
        elif image.dtype.kind == 'u':
            low, high = np.zeros(self.count), np.full(self.count, float(np.iinfo(image.dtype).max))
        else:
            raise ValueError(
                f'has {image.dtype} values, which have no range of their own: set image_channels.ranges ({ADVICE})'
            )
        return low, high

    def scale(self, part: np.ndarray, limits: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Scale values (h, w, C) from ``limits`` to float32 of 0 to 255, and clip them.

        A channel whose limits are equal, such as a constant one under ``percentiles``, becomes 0.
        """
        values = part.astype(np.result_type(part.dtype, np.float32))  # float64 where float32 would round integers
        low, high = (each.astype(values.dtype) for each in limits)
        factor = np.divide(LEVELS, high - low, out=np.zeros_like(low), where=high > low)
        values -= low
        values *= factor
        return values.clip(0, LEVELS, out=values).astype(np.float32, copy=False)


def decode(data: bytes) -> np.ndarray:
    """Decode a file without changing its values: (H, W) or an array with channels, RGB if they are colors.

    Raises:
        ValueError: If it cannot be decoded. Does not name the file.
    """
    if data[:2] == START and not data.endswith(END) and not is_whole(data):
        raise ValueError('is cut off: a JPEG file without its end')
    if data.startswith(NUMPY):
        try:
            return np.load(io.BytesIO(data), allow_pickle=False)
        except Exception as error:  # a decoder may raise anything
            raise ValueError(f'cannot be decoded as a NumPy array: {error}') from error
    if data.startswith(TIFF):
        return _decode_tiff(data)
    # A JPEG file may be stored turned; of other formats all channels are kept, as they are.
    return _decode_with_opencv(data, COLOR_OR_GRAY if data[:2] == START else cv2.IMREAD_UNCHANGED)


def advice_for(data: bytes) -> str:
    """Return what to do about a file that is not read as a color image but as ``image_channels`` says; else nothing."""
    if not data.startswith((NUMPY, *TIFF)):
        return ''
    try:
        array = decode(data)
    except ValueError:
        return ''
    return f'holds {array.dtype} {array.shape}, which the setting image_channels reads (docs/channels.md)'


def _decode_with_opencv(data: bytes, flag: int) -> np.ndarray:
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:  # an empty file, or too many pixels
        raise ValueError(f'cannot be decoded as an image: {error.err}') from error
    if array is None:
        raise ValueError('cannot be decoded as an image')
    return array[..., COLORS[array.shape[2]]] if array.ndim == 3 and array.shape[2] in COLORS else array


def _decode_tiff(data: bytes) -> np.ndarray:
    import tifffile  # only these files need it

    page = None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0] if len(file.pages) == 1 else None
            return file.asarray()
    except Exception as error:  # a decoder may raise anything
        if 'imagecodecs' not in str(error):
            raise ValueError(f'cannot be decoded as TIFF: {error}') from error
        if page is not None and _opencv_keeps(page):  # it knows LZW and others, but not more than four channels
            with contextlib.suppress(ValueError):
                array = _decode_with_opencv(data, cv2.IMREAD_UNCHANGED)
                if (array.shape, array.dtype) == (page.shape, page.dtype):
                    return array
        raise ValueError(f'cannot be decoded as TIFF: {error}: pip install imagecodecs') from error


def _opencv_keeps(page) -> bool:
    """Whether OpenCV returns the values of a page of tifffile as they are stored.

    It multiplies colors by alpha, turns images upright, inverts those where 0 is white, converts other color spaces and
    scales values of other than whole bytes.
    """
    return (
        page.photometric in PLAIN_COLORS
        and not any(page.extrasamples)  # 0 is no alpha
        and page.tags.valueof('Orientation', 1) == 1
        and page.bitspersample == 8 * page.dtype.itemsize
    )


def resize_planes(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Resize scaled values (h, w, C) to (C, height, width), bicubic and antialiased, and clip them to 0 to 255."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    if image.shape[:2] != tuple(size):
        planes = interpolate(planes, size, mode='bicubic', antialias=True).clamp_(0, LEVELS)
    return planes[0]


def resize_floats(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Do the work of :func:`resize_planes`, but return an array (height, width, C)."""
    return resize_planes(image, size).permute(1, 2, 0).contiguous().numpy()


@TRANSFORMS.register_module()
class LoadChannels(BaseTransform):
    """Read an image as :class:`ChannelFormat` says: ``img`` is float32 (H, W, C) of 0 to 255.

    The setting ``image_channels`` of a config puts it in the place of LoadImageFromFile.

    Args:
        number, axis, select, ranges, percentiles: Arguments of :class:`ChannelFormat`.
        backend_args: Arguments of mmengine's file backend, as for LoadImageFromFile.

    Raises:
        ValueError: When reading, for a file that cannot be decoded or does not fit. Names the file.
    """

    checks_whole = True

    def __init__(
        self,
        number: int,
        axis: str = 'last',
        select: Sequence[int] | None = None,
        ranges: Ranges | None = None,
        percentiles: Sequence[float] | None = None,
        backend_args: dict | None = None,
    ):
        self.channels = ChannelFormat(number, axis, select, ranges, percentiles)
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        data = fileio.get(results['img_path'], backend_args=self.backend_args)
        try:
            image = self.channels.load(data)
        except ValueError as error:
            raise ValueError(f'{readable(results["img_path"])} {error}') from error
        shape = image.shape[:2]
        return dict(results, img=image, img_shape=shape, ori_shape=shape)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.channels})'


@TRANSFORMS.register_module()
class ResizeEdgeOfFloats(ResizeEdge):
    """mmpretrain's ResizeEdge (bicubic, Pillow) for images of any number of channels, float32 of 0 to 255."""

    def _resize_img(self, results: dict) -> None:
        (height, width), (new_width, new_height) = results['img'].shape[:2], results['scale']
        results['img'] = resize_floats(results['img'], (new_height, new_width))
        results['img_shape'] = (new_height, new_width)
        results['scale_factor'] = (new_width / width, new_height / height)


def format_of(dataset: object) -> ChannelFormat | None:
    """Return the format that a data set reads its files in; None for 8-bit color images."""
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return next((step.channels for step in steps if getattr(step, 'channels', None) is not None), None)


def _is_range(value) -> bool:
    """Whether a value of the config is (low, high)."""
    numbers = isinstance(value, tuple) and all(isinstance(each, Real) for each in value)
    return numbers and len(value) == 2 and value[0] < value[1]


def _as_tuple(value):
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value
