"""Whether the values in image files fill the range of their type: OpenCV reduces 16 bits to 8 by dropping the lower 8.

12 bits stored in 16 are then read as 0 to 15 of 255, and a model sees images that are almost black.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .channels import ChannelFormat
from .jpeg import START

NARROW = 63  # of 255: a file of more than 8 bits that is read as at most this uses less than a quarter of its range
DARK = 15  # of 255: class numbers, masks of 0 and 1, black frames
EIGHT_BIT = (START, b'RIFF', b'GIF8', b'BM')  # JPEG, WebP, GIF and BMP start so


@dataclass(frozen=True)
class ValueRange:
    """Values of an image file, and what reading makes of them.

    Attributes:
        low, high: Smallest and largest value in the file.
        kind: Type of the values, such as ``uint16``.
        seen_low, seen_high: Smallest and largest value after reading, of 255.
        clipped: Share of the values outside of the ranges of a :class:`ChannelFormat`; None for 8-bit color images.
    """

    low: float
    high: float
    kind: str
    seen_low: int
    seen_high: int
    clipped: float | None = None

    @property
    def deep(self) -> bool:
        """Whether values are scaled on reading, as those of more than 8 bits are."""
        return self.kind != 'uint8' or self.clipped is not None

    @property
    def narrow(self) -> bool:
        """Whether values that are scaled give a dark image."""
        return self.deep and self.seen_high <= NARROW

    @property
    def dark(self) -> bool:
        """Whether an 8-bit file is almost black."""
        return not self.deep and self.seen_high <= DARK

    def __str__(self) -> str:
        if not self.deep:
            return f'values {self.low} to {self.high} of 255'
        return (
            f'{self.kind} values {self.low:,} to {self.high:,} are read as {self.seen_low} to {self.seen_high} of 255'
        )


def value_range(data: bytes, decoded: np.ndarray) -> ValueRange:
    """Return the values of an image file.

    Args:
        data: Its bytes.
        decoded: The image as it is read for training, uint8.
    """
    seen = int(decoded.min()), int(decoded.max())
    stored = stored_values(data)
    if stored is None or stored.itemsize == 1:
        return ValueRange(*seen, 'uint8', *seen)
    return ValueRange(int(stored.min()), int(stored.max()), stored.dtype.name, *seen)


def channel_range(channels: ChannelFormat, data: bytes) -> tuple[ValueRange, tuple[int, int]]:
    """Return the values of an image file that is read with a format of channels, and its height and width.

    Raises:
        ValueError: If it cannot be read. Does not name the file.
    """
    image = channels.read(data)
    limits = channels.limits(image)
    scaled = channels.scale(image, limits)
    outside = (image < limits[0]) | (image > limits[1])
    ends = image.min().item(), image.max().item()
    seen = int(scaled.min()), int(scaled.max())
    return ValueRange(*ends, image.dtype.name, *seen, float(outside.mean())), image.shape[:2]


def stored_values(data: bytes) -> np.ndarray | None:
    """Decode an image that may have more than 8 bits, without a conversion; None for all others."""
    if data.startswith(EIGHT_BIT) or (data.startswith(b'\x89PNG') and data[24:25] != b'\x10'):
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
