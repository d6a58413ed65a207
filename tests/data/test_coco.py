"""COCO files: their structure is checked once, and what a run would not use is counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as masks

from bootmae.data.coco import forget_files, read_coco
from bootmae.data.coco_checks import check_coco
from bootmae.data.coco_shapes import decode_runs
from bootmae.data.findings import DataFault, FileFinding

BOX, POLYGON = [2, 3, 10, 8], [[2, 3, 12, 3, 12, 11, 2, 11]]
REMOVED = object()


def content_of(*annotations: dict, **changes) -> dict:
    """An annotation file of one image and two categories."""
    entries = [
        dict(id=number, image_id=5, category_id=1, bbox=BOX, area=80, iscrowd=0, segmentation=POLYGON) | entry
        for number, entry in enumerate(annotations, 1)
    ]
    entries = [{key: value for key, value in entry.items() if value is not REMOVED} for entry in entries]
    return (
        dict(
            images=[dict(id=5, file_name='a.jpg', height=48, width=64)],
            annotations=entries,
            categories=[dict(id=1, name='cat'), dict(id=7, name='dog')],
        )
        | changes
    )


@pytest.fixture
def write(tmp_path):
    """``write(content)``: the path of an annotation file."""

    def write(content, name: str = 'f.json') -> Path:
        forget_files()
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / name

    yield write
    forget_files()


@pytest.fixture
def check(write):
    """``check(content, ...)``: (kind, detail) of all findings."""

    def check(content, classes=('cat', 'dog'), with_masks=True, **options) -> list[tuple[str, str]]:
        check.findings = check_coco(read_coco(write(content)), classes, with_masks, **options)
        return [(finding.kind, finding.detail) for finding in check.findings]

    return check


def runs_of(*box: int) -> dict:
    mask = np.zeros((48, 64), np.uint8, order='F')
    mask[box[1] : box[3], box[0] : box[2]] = 1
    code = masks.encode(mask)
    return dict(size=list(code['size']), counts=code['counts'].decode())


# --- structure ---

IMAGE, CATEGORY = dict(id=5, file_name='a.jpg', height=48, width=64), dict(id=1, name='cat')
STRUCTURE = {
    'no object': ([1], 'the file is a list: a COCO file is one object with the lists'),
    'no JSON': ('version https://git-lfs', 'not a JSON file: expected value at line 1 column 1'),
    'cut': ('{"images": [', 'not a JSON file: EOF while parsing'),
    'empty': ('', 'not a JSON file: EOF'),
    'no categories': (dict(images=[IMAGE], annotations=[]), "has no list 'categories'"),
    'images by name': (content_of(dict(), images={'a.jpg': 1}), "'images' is a dict"),
    'no image': (content_of(images=[]), "its list 'images' is empty"),
    'image without width': (
        content_of(dict(), images=[dict(id=5, file_name='a.jpg', height=48)]),
        'images[0] (id 5): width is missing: give the width of the image in pixels',
    ),
    'annotation is a list': (content_of() | dict(annotations=[[1, 2]]), 'annotations[0] is [1, 2], not an object'),
    'no id': (content_of(dict(id=REMOVED), dict(id=REMOVED)), 'annotations[0]: id is missing: number the entries'),
    'no box': (content_of(dict(), dict(bbox=REMOVED)), 'annotations[1] (id 2): bbox is missing: give [x, y, width'),
    'box null': (content_of(dict(bbox=None)), 'annotations[0] (id 1): bbox is None: give [x, y, width'),
    'short box': (content_of(dict(bbox=[2, 3, 8])), 'bbox is [2, 3, 8]: give [x, y, width, height] in pixels'),
    'box of texts': (content_of(dict(bbox=['2', 3, 8, 8])), "bbox is ['2', 3, 8, 8]: give"),
    'box not finite': (content_of(dict(bbox=[2, 3, float('nan'), 8])), 'bbox is [2, 3, nan, 8]: give'),
    'id is a text': (content_of(dict(id='x7')), "annotations[0]: id is 'x7': number the entries with whole numbers"),
    'image id is a text': (content_of(dict(image_id='5')), "annotations[0] (id 1): image_id is '5': give the id of an"),
    'category id is a fraction': (content_of(dict(category_id=1.5)), 'category_id is 1.5: give the id of a category'),
    'large image id': (content_of(dict(), images=[IMAGE | dict(id=2**70)]), 'images[0]: id is 1180591620717411303424'),
    'area is a text': (content_of(dict(area='80')), "area is '80': give the area in pixels, or remove the key"),
    'iscrowd is 2': (content_of(dict(iscrowd=2)), 'iscrowd is 2: give 0 or 1, or remove the key'),
    'name is a number': (content_of(categories=[dict(id=1, name=3)]), 'categories[0] (id 1): name is 3: give the name'),
    'id twice': (content_of(dict(), dict(id=1)), 'annotations: id 1 occurs 2 times: number the entries 1, 2, 3'),
    'image twice': (content_of(dict(), images=[IMAGE] * 2), 'images: id 5 occurs 2 times'),
    'one name twice': (
        content_of(dict(), categories=[CATEGORY, dict(id=2, name='cat')]),
        "categories: name 'cat' occurs 2 times: give its annotations to one category and remove the others",
    ),
    'unknown image': (content_of(dict(), dict(image_id=6)), 'annotations[1] (id 2): the file has no image 6'),
    'unknown category': (content_of(dict(category_id=3)), 'annotations[0] (id 1): the file has no category 3'),
}


@pytest.mark.parametrize('case', STRUCTURE)
def test_structure(write, case):
    content, message = STRUCTURE[case]
    path = write(content)
    with pytest.raises(DataFault) as error:
        read_coco(path)
    assert str(error.value).startswith(f'{path}: ')
    assert message in str(error.value)
    assert error.value.findings[0].fault


def test_equal_faults_are_one_finding(write):
    with pytest.raises(
        DataFault, match=r'annotations\[0\]: id is missing: .* \(and 2 more of these\) \(and 1 more fault'
    ):
        read_coco(write(content_of(*[dict(id=REMOVED)] * 3, dict(bbox=[]))))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='no annotation file .*none.json: check data_root and ann_file'):
        read_coco(tmp_path / 'none.json')


def test_what_may_be_missing_is_added(write):
    """iscrowd is 0; the area is that of the mask, as in COCO's own files, or of the box."""
    lacking = dict(iscrowd=REMOVED, area=REMOVED)
    cut = [[2, 3, 12, 3, 12, 11]]
    file = read_coco(
        write(
            content_of(
                dict(),
                lacking | dict(segmentation=cut),
                lacking | dict(segmentation=runs_of(3, 4, 20, 30)),
                lacking | dict(segmentation=dict(size=[48, 64], counts=[10, 5, 48 * 64 - 15])),
                lacking | dict(segmentation=REMOVED),
                lacking | dict(segmentation=[[1, 2]]),
            )
        )
    )
    expected = [80, 40, 17 * 26, 5, 80, 80]
    assert [annotation['area'] for annotation in file.annotations] == expected
    assert {annotation['iscrowd'] for annotation in file.annotations} == {0}
    details = [f.detail for f in check_coco(file, ('cat', 'dog'), False) if f.kind == 'keys that the annotations lack']
    assert details == [
        'iscrowd is 0 there: 5 of 6 annotations',
        'area is computed from the mask or the box: 5 of 6 annotations',
    ]


def test_a_byte_order_mark_and_other_keys(write):
    content = content_of(dict(attributes=dict(color='red')), info=dict(year=2026))
    file = read_coco(write('\ufeff' + json.dumps(content)))
    assert file.annotations[0]['attributes'] == dict(color='red')


# --- boxes, masks and classes ---

SOUND = [
    dict(),
    dict(category_id=7, bbox=[-0.5, 0, 64.9, 48.9], segmentation=runs_of(3, 4, 20, 30)),
    dict(segmentation=dict(size=[48, 64], counts=[10, 5, 48 * 64 - 15])),
]


def test_sound_annotations(check):
    assert check(content_of(*SOUND)) == []
    assert check(content_of(dict(segmentation=None), SOUND[1]), ['dog', 'cat'], with_masks=False) == []
    assert check(content_of(dict(segmentation=[[]]), SOUND[1]), with_masks=False) == [], 'masks are not used'


@pytest.mark.parametrize(
    'change, kind, detail',
    [
        (dict(bbox=[2, 3, 0, 8]), 'box empty', '0.0 x 8.0 pixels'),
        (dict(bbox=[2, 3, 8, -1]), 'box empty', '8.0 x -1.0 pixels'),
        (dict(bbox=[60, 3, 8, 8]), 'box outside its image', 'x 60 to 68, y 3 to 11 of 64 x 48'),
        (dict(bbox=[2, -3, 8, 8]), 'box outside its image', 'y -3 to 5'),
        (dict(segmentation=[]), 'annotation without mask', ''),
        (dict(segmentation=[[2, 3, 12, 3]]), 'mask invalid', 'polygon of 4 numbers'),
        (dict(segmentation=[POLYGON[0], [2, 3, 12, 3, 5, 6, 7]]), 'mask invalid', 'polygon of 7 numbers'),
        (dict(segmentation=['a.png']), 'mask invalid', 'give a list of polygons'),
        (dict(segmentation=[2, 3, 12, 3, 12, 11]), 'mask invalid', 'give a list of polygons'),
        (dict(segmentation=[[2, 3, 12, 3, 12, None]]), 'mask invalid', 'polygon of 6 numbers'),
        (dict(segmentation=[[2, 3, 12, 3, 12, 60]]), 'mask outside its image', 'y 3 to 60 of 64 x 48'),
        (dict(segmentation=dict(size=[64, 48], counts='x')), 'mask invalid', r'size [64, 48]'),
        (dict(segmentation=dict(size=[48, 64])), 'mask invalid', 'counts None: give run lengths'),
        (dict(segmentation=dict(size=[48, 64], counts=[10, 5])), 'mask invalid', 'add up to 15 of 3072'),
        (dict(segmentation=dict(size=[48, 64], counts=[3072])), 'mask empty', ''),
        (
            dict(segmentation=runs_of(3, 4, 20, 30) | dict(counts=runs_of(3, 4, 20, 30)['counts'][:-2])),
            'mask invalid',
            '',
        ),
    ],
)
def test_faults_of_annotations(check, change, kind, detail):
    content = content_of(change, dict(), dict(category_id=7))
    check(content)
    (finding,) = [finding for finding in check.findings if finding.fault]
    assert (finding.kind, Path(finding.path).name) == (kind, 'f.json')
    assert detail in finding.detail
    assert finding.detail.startswith('annotation 1 of a.jpg: ')


def test_classes_of_an_annotation_file(check):
    assert check(content_of(dict())) == [('class absent', 'dog')]
    unknown = 'class unknown to the annotation file'
    advice = 'give the data set metainfo=dict(classes=...) with the names of the file'
    assert check(content_of(dict()), ['cat', 'cow']) == [(unknown, f"'cow'; it has ['cat', 'dog']: {advice}")]
    assert check(content_of(dict()), ['cat', 'cow'], training=False) == [
        ('class absent', 'cow: not among the categories')
    ]
    others = ('categories that are not classes', 'dog: annotations that are not used: 1 of 3')
    assert check(content_of(*SOUND), ['cat']) == [others]
    assert check(content_of(*SOUND), ['cat', 'Dogs'], training=False) == [
        (unknown, f"'Dogs'; it has 'dog': {advice}"),
        others,
    ]
    kinds = [kind for kind, _ in check(content_of(*SOUND), ['cow', 'hen'], training=False)]
    assert kinds == [unknown, unknown, others[0], 'no annotation of any class']


# --- annotations that vanish ---


@pytest.mark.parametrize(
    'change, reason, advice',
    [
        (dict(area=0), 'area not above 0', "remove the key 'area', and it is computed"),
        (dict(area=-3), 'area not above 0', "remove the key 'area'"),
        (dict(bbox=[0.1, 0.2, 0.5, 0.4]), 'box below 1 pixel', 'in pixels, neither fractions of the image nor corners'),
        (dict(bbox=[70, 3, 8, 8]), 'no overlap with its image', 'boxes are [x, y, width, height]'),
        (dict(ignore=1), "flag 'ignore'", "remove the key 'ignore'"),
    ],
)
def test_a_class_or_most_annotations_that_vanish_are_faults(check, change, reason, advice):
    """The counts are those of mmdet's loader, see tests/data/test_coco_labels.py."""
    dogs = [dict(category_id=7)] * 3
    found = dict(check(content_of(*dogs, *[change] * 2), with_masks=False))
    assert found['all annotations of a class are left out'].startswith(f'cat: 2 of 2: {reason} (2): ')
    assert advice in found['all annotations of a class are left out']
    assert found['left out by the loader'] == f'2 of 5: {reason} (2)'
    found = dict(check(content_of(*dogs, dict(), *[change] * 5), with_masks=False))
    assert 'all annotations of a class are left out' not in found
    assert found['most of a data set is left out'].startswith(f'annotations: 5 of 9: {reason} (5): ')
    found = dict(check(content_of(*dogs, dict(), change), with_masks=False))
    assert found['left out by the loader'] == f'1 of 5: {reason} (1)'


def test_crowds(check):
    """A class of crowds is possible in COCO; a file of crowds is a mistake."""
    crowd, dogs = dict(iscrowd=1), [dict(category_id=7)] * 3
    found = dict(check(content_of(*dogs, crowd, crowd)))
    assert found == {
        'class absent': 'cat: all of its 2 annotations are crowds',
        'left out by the loader': '2 of 5: crowd (2)',
    }
    found = dict(check(content_of(*dogs, *[crowd] * 5)))
    assert found['most of a data set is left out'].startswith(
        'annotations: 5 of 8: crowd (5): set iscrowd to 0 for sin'
    )


def test_images_below_the_smallest_size(check):
    images = [dict(id=number, file_name=f'{number}.jpg', height=48, width=20 * number) for number in range(1, 6)]
    some, most = 'left out by the loader', 'most of a data set is left out'
    sound = content_of(dict(), dict(category_id=7), images=images)
    assert check(sound, min_size=48) == [(some, 'images: 2 of 5 are smaller than filter_cfg.min_size=48')]
    assert check(sound, min_size=49) == [(most, 'images: 5 of 5 are smaller than filter_cfg.min_size=49: lower it')]


def test_corners_in_place_of_sizes(check):
    """Boxes as x1, y1, x2, y2 exceed the image."""
    found = dict(check(content_of(*[dict(bbox=[40, 30, 60, 45])] * 2, dict(category_id=7)), with_masks=False))
    assert found['most boxes exceed their image'].startswith('2 of 3: boxes are [x, y, width, height] in pixels')


def test_no_annotation(check):
    assert ('no annotation of any class', 'the file has 0 annotations of other categories') in check(content_of())
    kinds = [kind for kind, _ in check(content_of(), training=False)]
    assert kinds == ['class absent'] * 2, "COCO's test files have no annotations; see check_metric"


def test_findings_are_of_their_file(check):
    check(content_of(dict(bbox=[2, 3, 0, 8]), *SOUND))
    assert {(type(finding), Path(finding.path).name) for finding in check.findings} == {(FileFinding, 'f.json')}


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.RandomState(0)
    for share in (0.01, 0.5, 0.9):
        mask = np.asfortranarray((rng.rand(37, 53) < share).repeat(rng.randint(1, 9), 0).astype(np.uint8))
        runs = decode_runs(masks.encode(mask)['counts'])
        assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs), mask.flatten(order='F'))
