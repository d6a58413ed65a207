"""JPEG files that are cut off. OpenCV may decode them without a word, and what is missing becomes grey.

Up to 4.10 OpenCV does so with any cut of a baseline JPEG; all versions, and Pillow too, take one whose missing part is
filled with zeros, as a crash or a download that has reserved its space leaves it.
"""

import os

START, END, SCAN = b'\xff\xd8', b'\xff\xd9', 0xDA  # markers


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
    while data[place:place + 1] == b'\xff' and place + 4 <= len(data):
        kind = data[place + 1]
        if kind == SCAN:
            return data.find(END, place) >= 0
        place += 1 if kind == 0xFF else 2 + int.from_bytes(data[place + 2:place + 4], 'big')  # fill bytes; a segment
    return False
