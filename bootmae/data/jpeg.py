"""JPEG files before they are decoded: what their header says, and whether they are whole.

A file that is cut off, OpenCV may decode without a word, and what is missing becomes gray: up to 4.10 with any cut of a
baseline JPEG; all versions, and Pillow too, where the missing part is filled with zeros, as a crash or a download that
has reserved its space leaves it.
"""

import os
from dataclasses import dataclass
from typing import Literal

START, END, SCAN = b'\xff\xd8', b'\xff\xd9', 0xDA  # markers
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start-of-frame markers; the three are tables
EXIF, ADOBE = b'Exif\0\0', b'Adobe'
ORIENTATION = 0x0112
# Luma samples a chroma sample, across and down, that every decoder knows: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1.
SUBSAMPLING = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)})
PIXELS_FOR_GPU = 2**26  # 200 MB decoded; a damaged header may claim 13 GB


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What a JPEG file says of itself before its pixels.

    Attributes:
        height: in pixels, as stored, that is before it is turned upright; 0 where the file gives it after the pixels.
        width: in pixels, as stored.
        components: 1 gray, 3 color, 4 CMYK or YCCK.
        bits: of a component.
        frame: number of the coding: 0 baseline, 1 extended sequential, 2 progressive, more for rare ones.
        subsampling: luma samples a chroma sample, (across, down); None where the file has no such two numbers.
        adobe: color transform of an Adobe segment, 0 for RGB, 1 for YCbCr; None without one.
        orientation: of the EXIF segment, 1 upright to 8; 1 without one.
        ids: names of the components; RGB files may say so by these.
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
        """8-bit gray or YCbCr, sequential or progressive: what all decoders of the CPU turn into the same RGB."""
        color = self.components == 3 and self.adobe in (None, 1) and self.ids != b'RGB'
        return (color or self.components == 1) and self.bits == 8 and self.frame <= 2 and self.height * self.width > 0

    @property
    def for_gpu(self) -> bool:
        """Whether a GPU's decoder is trusted with it: ``common``, color, sequential, upright, of usual subsampling."""
        return (
            self.common
            and self.frame <= 1
            and self.orientation == 1
            and self.subsampling in SUBSAMPLING
            and self.height * self.width <= PIXELS_FOR_GPU
        )


def parse_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG file's bytes, of which the part before the pixels is enough; None for another format.

    Raises:
        ValueError: for a JPEG file that ends, or goes wrong, before its frame header.
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
            # An orientation in any of several segments counts: readers differ in which they take.
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
    """The orientation in an EXIF segment's first directory; 1 where there is none, or no valid one."""
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
    """Refuse a JPEG file without an end marker behind its pixels; says nothing of other formats.

    Meant for files that have just been decoded: two short reads, 10 us.

    Raises:
        ValueError: naming the file.
        OSError: if there is no such file.
    """
    with open(path, 'rb', buffering=0) as file:
        if file.read(2) != START:
            return
        file.seek(-2, os.SEEK_END)
        if file.read(2) == END:
            return
        file.seek(0)
        data = file.read()  # of which some are followed by other data
    if not is_whole(data):
        raise ValueError(f'{path} is cut off: a JPEG file without its end')


def is_whole(data: bytes) -> bool:
    """Whether a JPEG file's bytes have an end marker behind the pixels; that of a thumbnail before them is none."""
    place = len(START)
    while data[place : place + 1] == b'\xff' and place + 4 <= len(data):
        kind = data[place + 1]
        if kind == SCAN:
            return data.find(END, place) >= 0
        place += 1 if kind == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], 'big')  # fill bytes; a segment
    return False
