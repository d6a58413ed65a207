"""Reading the header of a JPEG file, and checking that the file is complete.

Decoders may silently fill the missing part of a truncated file with gray. OpenCV up to 4.10 does so for every truncated
baseline JPEG. All versions of OpenCV, and Pillow, do so if the missing part consists of zeros, which a crash or an
interrupted download with preallocated space leaves behind.
"""

import os
from dataclasses import dataclass
from typing import Literal

START, END, SCAN = b'\xff\xd8', b'\xff\xd9', 0xDA  # markers
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start-of-frame markers; the other three are tables
EXIF, ADOBE = b'Exif\0\0', b'Adobe'
ORIENTATION = 0x0112
# Luma samples per chroma sample (horizontal, vertical) that all decoders know: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1.
SUBSAMPLING = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)})
PIXELS_FOR_GPU = 2**26  # 200 MB decoded; a damaged header may ask for 13 GB


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Header of a JPEG file.

    Attributes:
        height: Height in pixels as stored, before the EXIF orientation is applied. 0 if the file gives it only after
            the pixels.
        width: Width in pixels as stored.
        components: 1 for gray, 3 for color, 4 for CMYK or YCCK.
        bits: Bits of a component.
        frame: Coding: 0 baseline, 1 extended sequential, 2 progressive, higher numbers are rare.
        subsampling: Luma samples per chroma sample (horizontal, vertical); None for other layouts.
        adobe: Color transform of an Adobe segment, 0 for RGB and 1 for YCbCr; None without such a segment.
        orientation: EXIF orientation from 1 (upright) to 8; 1 without an EXIF segment.
        ids: Names of the components, which may mark RGB files.
    """

    height: int
    width: int
    components: int
    bits: int
    frame: int
    subsampling: tuple[int, int] | None
    adobe: int | None
    orientation: int
    ids: bytes

    @property
    def common(self) -> bool:
        """Whether all CPU decoders agree on its RGB values: 8-bit gray or YCbCr, sequential or progressive."""
        color = self.components == 3 and self.adobe in (None, 1) and self.ids != b'RGB'
        return (color or self.components == 1) and self.bits == 8 and self.frame <= 2 and self.height * self.width > 0

    @property
    def for_gpu(self) -> bool:
        """Whether the GPU may decode it: ``common``, color, sequential, upright, with a usual subsampling."""
        return (
            self.common
            and self.frame <= 1
            and self.orientation == 1
            and self.subsampling in SUBSAMPLING
            and self.height * self.width <= PIXELS_FOR_GPU
        )


def parse_header(data: bytes) -> JpegHeader | None:
    """Parse the header of a JPEG file.

    Args:
        data: Bytes of the file; those before the pixels are enough.

    Returns:
        The header, or None for another format.

    Raises:
        ValueError: If a JPEG file ends, or is damaged, before its frame header.
    """
    if data[:2] != START:
        return None
    place, adobe, orientation = len(START), None, 1
    while data[place : place + 1] == b'\xff' and place + 4 <= len(data):
        kind = data[place + 1]
        if kind == 0xFF:  # fill byte
            place += 1
            continue
        start, place = place + 4, place + 2 + int.from_bytes(data[place + 2 : place + 4], 'big')
        if kind in FRAMES:
            return _frame(kind, data[start:place], adobe, orientation)
        if kind == 0xE1 and data.startswith(EXIF, start):
            # Readers differ in which of several EXIF segments they take, so an orientation in any of them counts.
            orientation = max(orientation, _orientation(data[start + len(EXIF) : place]))
        elif kind == 0xEE and data.startswith(ADOBE, start) and place - start >= 12:
            adobe = data[start + 11]
        elif kind == SCAN:
            break
    raise ValueError('cut off or damaged: a JPEG file without a frame header')


def _frame(kind: int, segment: bytes, adobe: int | None, orientation: int) -> JpegHeader:
    components = segment[5] if len(segment) > 5 else 0
    if not components or len(segment) < 6 + 3 * components:
        raise ValueError('cut off or damaged: a JPEG file with an incomplete frame header')
    across = [samples >> 4 for samples in segment[7 : 6 + 3 * components : 3]]
    down = [samples & 15 for samples in segment[7 : 6 + 3 * components : 3]]
    plain = components == 3 and across[1:] == down[1:] == [1, 1]
    return JpegHeader(
        height=int.from_bytes(segment[1:3], 'big'),
        width=int.from_bytes(segment[3:5], 'big'),
        components=components,
        bits=segment[0],
        frame=kind - 0xC0,
        subsampling=(across[0], down[0]) if plain else None,
        adobe=adobe,
        orientation=orientation,
        ids=segment[6 : 6 + 3 * components : 3],
    )


def _orientation(tiff: bytes) -> int:
    """Read the orientation from the first directory of an EXIF segment; 1 if it is missing or invalid."""
    orders: dict[bytes, Literal['little', 'big']] = {b'II*\0': 'little', b'MM\0*': 'big'}
    order = orders.get(tiff[:4])
    if order is None:
        return 1
    place = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[place : place + 2], order)
    for entry in range(place + 2, min(place + 2 + 12 * count, len(tiff) - 11), 12):
        if int.from_bytes(tiff[entry : entry + 2], order) == ORIENTATION:
            value = int.from_bytes(tiff[entry + 8 : entry + 10], order)
            return value if 1 <= value <= 8 else 1
    return 1


def check_whole(path: str) -> None:
    """Raise an error for a JPEG file without an end marker behind its pixels; accept all other formats.

    For a file that has just been decoded it takes two short reads, 10 us.

    Raises:
        ValueError: If the file is truncated. Names the file.
        OSError: If the file cannot be opened.
    """
    with open(path, 'rb', buffering=0) as file:
        if file.read(2) != START:
            return
        file.seek(-2, os.SEEK_END)
        if file.read(2) == END:
            return
        file.seek(0)
        data = file.read()  # some files have other data behind the end marker
    if not is_whole(data):
        raise ValueError(f'{path} is cut off: a JPEG file without its end')


def is_whole(data: bytes) -> bool:
    """Return whether the bytes of a JPEG file have an end marker behind the pixels, not only one of a thumbnail."""
    place = len(START)
    while data[place : place + 1] == b'\xff' and place + 4 <= len(data):
        kind = data[place + 1]
        if kind == SCAN:
            return data.find(END, place) >= 0
        place += 1 if kind == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], 'big')  # fill bytes; a segment
    return False
