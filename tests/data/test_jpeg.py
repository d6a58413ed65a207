"""Headers of JPEG files, made by Pillow and by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from bootmae.data.jpeg import PIXELS_FOR_GPU, parse_header

PICTURE = Image.fromarray(np.arange(40 * 24 * 3, dtype=np.uint8).reshape(24, 40, 3))  # 24 high, 40 wide


def jpeg(picture: Image.Image = PICTURE, orientation: int | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    if orientation is not None:
        options['exif'] = Image.Exif()
        options['exif'][0x0112] = orientation
    picture.save(buffer, 'JPEG', **options)
    return buffer.getvalue()


def with_frame(data: bytes, place: int, value: bytes) -> bytes:
    """Change bytes of the frame header; byte 0 is the number of bits."""
    start = data.index(b'\xff\xc0') + 4 + place
    return data[:start] + value + data[start + len(value) :]


@pytest.mark.parametrize('subsampling, expected', [(0, (1, 1)), (1, (2, 1)), (2, (2, 2))])
def test_the_usual_files(subsampling, expected):
    header = parse_header(jpeg(subsampling=subsampling))
    assert (header.height, header.width, header.components, header.bits) == (24, 40, 3, 8)
    assert (header.frame, header.subsampling, header.adobe, header.orientation) == (0, expected, None, 1)
    assert header.common
    assert header.for_gpu


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(orientation):
    header = parse_header(jpeg(orientation=orientation))
    assert header.orientation == orientation
    assert (header.height, header.width) == (24, 40)  # as stored
    assert header.common
    assert header.for_gpu == (orientation == 1)


def test_an_orientation_in_any_segment_counts():
    upright, turned = jpeg(orientation=1), jpeg(orientation=6)
    start = turned.index(b'\xff\xe1')
    segment = turned[start : start + 2 + int.from_bytes(turned[start + 2 : start + 4], 'big')]
    assert parse_header(upright[:2] + b'\xff' + segment + upright[2:]).orientation == 6  # after a fill byte
    assert parse_header(jpeg(orientation=9)).orientation == 1  # there is no such


@pytest.mark.parametrize(
    'case, common',
    [
        ('progressive', True),
        ('gray', True),
        ('cmyk', False),
        ('rgb', False),
        ('adobe rgb', False),
        ('12 bits', False),
        ('height later', False),
        ('411', True),
        ('odd sampling', True),
        ('huge', True),
    ],
)
def test_what_a_gpu_is_not_trusted_with(case, common):
    plain = jpeg(subsampling=0)
    adobe = b'\xff\xee\0\x0eAdobe\0\x64\0\0\0\0'
    data = {
        'progressive': jpeg(progressive=True),
        'gray': jpeg(PICTURE.convert('L')),
        'cmyk': jpeg(PICTURE.convert('CMYK')),
        'rgb': with_frame(with_frame(with_frame(plain, 6, b'R'), 9, b'G'), 12, b'B'),
        'adobe rgb': plain[:2] + adobe + b'\0' + plain[2:],
        '12 bits': with_frame(plain, 0, b'\x0c'),
        'height later': with_frame(plain, 1, b'\0\0'),
        '411': with_frame(plain, 7, b'\x41'),
        'odd sampling': with_frame(plain, 10, b'\x12'),
        'huge': with_frame(plain, 1, (60_000).to_bytes(2, 'big') * 2),
    }[case]
    header = parse_header(data)
    assert header.common == common
    assert header.for_gpu == (case == '411')
    assert {'gray': 1, 'cmyk': 4}.get(case, 3) == header.components
    assert (header.frame == 2) == (case == 'progressive')
    assert (header.adobe == 0) == (case == 'adobe rgb') or case == 'cmyk'
    assert (header.height * header.width > PIXELS_FOR_GPU) == (case == 'huge')


def test_other_formats_and_files_that_end_too_soon():
    data = jpeg()
    assert parse_header(b'\x89PNG\r\n') is None
    assert parse_header(b'') is None
    end = data.index(b'\xff\xc0') + 4 + 15  # of the frame header: 6 bytes, and 3 for each of 3 components
    assert parse_header(data[:end]) == parse_header(data)
    for cut in (2, 3, 30, end - 13, end - 1):
        with pytest.raises(ValueError, match='cut off or damaged'):
            parse_header(data[:cut])
    with pytest.raises(ValueError, match='without a frame header'):
        parse_header(data[:2] + data[data.index(b'\xff\xda') :])
