"""Each kind of damage to an image, a mask or a COCO file has its own finding; valid files have none."""

import io
import os
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from bootmae.data.file_checks import Job, inspect_files, inspect_headers
from bootmae.data.findings import FileFinding


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    """Blocks of random colors."""
    blocks = np.random.RandomState(seed).randint(0, 255, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width])


def encoded(image: Image.Image, format: str = 'JPEG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_bytes(data: bytes, at: float, new: bytes) -> bytes:
    start = int(len(data) * at)
    return data[:start] + new + data[start + len(new) :]


JPEG, PNG = encoded(picture()), encoded(picture(), 'PNG')
DEEP = cv2.imencode('.png', np.full((48, 64, 3), 40_000, np.uint16))[1].tobytes()
WIDE = encoded(Image.new('L', (20_000, 6_000)), 'PNG')
FAULTS = {
    'empty file': b'',
    'truncated': JPEG[: len(JPEG) // 2],
    'truncated png': PNG[: len(PNG) // 2],
    'unreadable': with_bytes(PNG, 0.5, b'xxxx'),
    'corrupt': with_bytes(JPEG, 0.7, bytes(30)),
    'not an image': b'<html>404 Not Found</html>',
}
NOTES = {
    'CMYK': encoded(picture().convert('CMYK')),
    '16-bit': DEEP,
    '16-bit gray': encoded(Image.fromarray(np.full((48, 64), 40_000, np.uint16)), 'PNG'),
    'EXIF-rotated': encoded(picture(), exif=turned(6)),
    'tiny (below 16 pixels)': encoded(picture(1, 1)),
    'tiny (below 16 pixels), long': encoded(picture(15, 64)),
    'huge (above 100 megapixels)': WIDE,
    'JPEG with extraneous bytes': JPEG.replace(b'\xff\xdb', b'\1\2\3\xff\xdb', 1),  # before its first table
}


@pytest.fixture
def look(tmp_path):
    """``look(data, mask=..., **job)``: (kind, fault) of all findings about an image file with these bytes."""

    def run(data: bytes, mask: bytes | None = None, **job) -> list[FileFinding]:
        (tmp_path / 'image').write_bytes(data)
        if mask is not None:
            (tmp_path / 'mask.png').write_bytes(mask)
            job['mask'] = str(tmp_path / 'mask.png')
        run.outcome = inspect_files(Job(str(tmp_path / 'image'), **job))
        return [(finding.kind, finding.fault) for finding in run.outcome.findings]

    return run


@pytest.mark.parametrize('kind', FAULTS)
def test_faults_of_images(look, kind):
    expected = 'truncated' if kind.startswith('truncated') else kind
    assert look(FAULTS[kind]) == [(expected, True)]
    assert look.outcome.findings[0].path.endswith('image')


def test_a_jpeg_that_goes_on_as_zeros(look):
    """Both decoders accept it, although the last rows are wrong."""
    kept = len(JPEG) * 97 // 100
    assert look(JPEG[:kept] + bytes(len(JPEG) - kept)) == [('truncated', True)]
    assert look.outcome.findings[0].detail == 'a JPEG file without its end'


@pytest.mark.parametrize('kind', NOTES)
def test_notes_of_images(look, kind):
    assert look(NOTES[kind]) == [(kind.split(',')[0].replace(' gray', ''), False)]


@pytest.mark.parametrize(
    'data',
    [
        JPEG,
        PNG,
        encoded(picture(), 'WEBP'),
        encoded(picture(), progressive=True),
        encoded(picture().convert('L')),
        encoded(picture().convert('P'), 'PNG'),
        encoded(picture(), exif=turned(1)),
        encoded(picture(16, 16), 'BMP'),
    ],
)
def test_sound_images(look, data):
    assert look(data) == []
    assert look(data, size=(16, 16) if data[:2] == b'BM' else (48, 64)) == []


def test_every_truncation_of_a_jpeg_is_found(look):
    start = JPEG.index(b'\xff\xda') + 14  # of the coded pixels
    for length in np.linspace(2, len(JPEG) - 40, 40).astype(int):
        kinds = look(JPEG[:length])
        assert [fault for _, fault in kinds] == [True], length
        assert length < start or kinds[0][0] == 'truncated', length


def test_settings_of_the_program_neither_matter_nor_change(look, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert look(FAULTS['truncated']) == [('truncated', True)]
    assert look(JPEG) == []
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (True, 100)


def test_an_image_that_opencv_does_not_take_is_not_decoded(look):
    """A small file that claims 4e9 pixels takes neither time nor memory."""
    data = encoded(Image.new('1', (8, 8)), 'PNG')
    head = b'IHDR' + (65_000).to_bytes(4, 'big') * 2 + data[24:29]
    assert look(data[:12] + head + zlib.crc32(head).to_bytes(4, 'big') + data[33:]) == [('too large', True)]


def test_messages_of_libraries_do_not_reach_the_screen(look, capfd):
    print('before', file=sys.stderr, flush=True)
    assert look(FAULTS['corrupt']) == [('corrupt', True)]
    os.write(2, b'after\n')
    assert capfd.readouterr().err == 'before\nafter\n'


def test_missing_files(tmp_path):
    job = Job(str(tmp_path / 'a.jpg'), mask=str(tmp_path / 'a.png'))
    outcome = inspect_files(job)
    assert [(f.kind, f.path) for f in outcome.findings] == [('missing image', job.image), ('missing mask', job.mask)]
    assert outcome.digest is None
    assert [f.kind for f in inspect_files(Job(str(tmp_path))).findings] == ['unreadable'], 'a folder'


def test_sizes_of_annotations_are_those_of_the_turned_image(look):
    assert look(JPEG, size=(48, 63)) == [('size differs from the annotation', True)]
    assert look.outcome.findings[0].detail == 'the file is 64 x 48, the annotation says 63 x 48'
    assert look(NOTES['EXIF-rotated'], size=(64, 48)) == [('EXIF-rotated', False)]
    assert look(NOTES['EXIF-rotated'], size=(48, 64)) == [('EXIF orientation of an annotated image', True)]
    assert 'orientation 6, stored as 64 x 48: the image is turned on reading' in look.outcome.findings[0].detail
    assert look(NOTES['EXIF-rotated'], size=(48, 64), turned=False) == []


# --- masks ---


def mask_of(*values: int, height: int = 48, width: int = 64, dtype=np.uint8) -> Image.Image:
    mask = np.zeros((height, width), dtype)
    mask[:, : len(values)] = values
    return Image.fromarray(mask)


ALLOWED = frozenset({0, 1, 2, 255})


def test_sound_masks(look):
    palette = mask_of(1, 2).convert('P')
    palette.putpalette(range(256))
    for mask in (mask_of(1, 2, 255), palette, mask_of(1, 2, dtype=np.uint16)):
        assert look(JPEG, encoded(mask, 'PNG'), allowed=ALLOWED) == []
        assert tuple(look.outcome.labels) == ((0, 1, 2, 255) if mask.mode == 'L' else (0, 1, 2))


@pytest.mark.parametrize(
    'mask, kind',
    [
        (encoded(mask_of(1, 3, 7), 'PNG'), 'label outside the classes'),
        (encoded(mask_of(1, 300, dtype=np.uint16), 'PNG'), 'label outside the classes'),
        (encoded(mask_of(1, height=47), 'PNG'), 'mask of another size'),
        (encoded(picture(), 'PNG'), 'mask with several channels'),
        (encoded(mask_of(1), 'PNG')[:60], 'unreadable mask'),
        (b'', 'empty file'),
    ],
)
def test_faults_of_masks(look, mask, kind):
    assert look(JPEG, mask, allowed=ALLOWED) == [(kind, True)]
    assert look.outcome.findings[0].path.endswith('mask.png')


def test_wrong_labels_are_counted(look):
    look(JPEG, encoded(mask_of(1, 7, 7, 9), 'PNG'), allowed=ALLOWED)
    assert look.outcome.findings[0].detail.startswith('7 (96 pixels), 9 (48 pixels): the data set has 0..2: set')


def test_a_mask_is_compared_with_the_turned_image(look):
    data = NOTES['EXIF-rotated']
    assert look(data, encoded(mask_of(height=64, width=48), 'PNG')) == [('EXIF-rotated', False)]
    assert look(data, encoded(mask_of(), 'PNG')) == [('EXIF orientation of an annotated image', True)]


@pytest.mark.parametrize('orientation', range(2, 9))
def test_an_orientation_that_the_size_does_not_prove_is_a_fault(look, orientation):
    """A mirrored image, and a square one, have the same size as stored."""
    for image, size in ((picture(48, 48), (48, 48)), (picture(), (48, 64))):
        data = encoded(image, exif=turned(orientation))
        assert look(data, size=size) == [('EXIF orientation of an annotated image', True)]
        assert inspect_headers(look.outcome.job).findings == look.outcome.findings, 'the same without decoding'
        assert look(data) == [('EXIF-rotated', False)], 'without annotations there is nothing to be wrong'
