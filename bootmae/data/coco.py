"""COCO annotation files. Data sets, metrics and checks read them here, so that all see the same entries."""

import functools
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from .coco_shapes import area_of
from .findings import DataFault, FileFinding

INVALID, NOT_UNIQUE, NO_CATEGORY, NO_IMAGE = FAULTS_OF_STRUCTURE = (
    'annotation file invalid',
    'not unique',
    'unknown category',
    'annotation without image',
)
Id = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]  # numpy sorts the ids of images and categories
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Pixels = Annotated[int, Field(strict=True, ge=1)]
OTHER_KEYS = ConfigDict(extra='allow')


@with_config(OTHER_KEYS)
class ImageEntry(TypedDict):
    """An image of the file."""

    id: Id
    file_name: str
    width: Pixels
    height: Pixels


@with_config(OTHER_KEYS)
class AnnotationEntry(TypedDict):
    """An instance. Segmentations are checked only where they are used, see :func:`coco_shapes.fault_of_mask`."""

    id: Annotated[int, Field(strict=True)]
    image_id: Id
    category_id: Id
    bbox: Annotated[list[Number], Field(min_length=4, max_length=4)]
    area: NotRequired[Number]
    iscrowd: NotRequired[Annotated[int, Field(ge=0, le=1)]]


@with_config(OTHER_KEYS)
class CategoryEntry(TypedDict):
    """A category."""

    id: Id
    name: Annotated[str, Field(strict=True, min_length=1)]


@with_config(OTHER_KEYS)
class Content(TypedDict):
    """What a file holds. Test files of COCO have no annotations."""

    images: Annotated[list[ImageEntry], Field(min_length=1)]
    categories: Annotated[list[CategoryEntry], Field(min_length=1)]
    annotations: NotRequired[list[AnnotationEntry]]


CONTENT = TypeAdapter(Content)
ADVICE = {
    'id': 'number the entries with whole numbers, such as 1, 2, 3, ...',
    'image_id': 'give the id of an image of this file, a whole number',
    'category_id': 'give the id of a category of this file, a whole number',
    'bbox': 'give [x, y, width, height] in pixels, four finite numbers',
    'area': "give the area in pixels, or remove the key 'area', and it is computed",
    'iscrowd': "give 0 or 1, or remove the key 'iscrowd', which then is 0",
    'width': 'give the width of the image in pixels, a whole number',
    'height': 'give the height of the image in pixels, a whole number',
    'file_name': "give the path of the image below the data set's data_prefix['img']",
    'name': 'give the name of the class, a text',
}
SECTIONS = ('images', 'categories', 'annotations')


@dataclass
class CocoFile:
    """The entries of an annotation file, complete.

    Attributes:
        path: The file.
        images, categories, annotations: Its lists.
        completed: Number of annotations by optional key (``iscrowd``, ``area``) that the file left out.
    """

    path: str
    images: list[dict]
    categories: list[dict]
    annotations: list[dict]
    completed: Counter = field(default_factory=Counter)

    @property
    def names(self) -> list[str]:
        """Names of the categories in the order of the file."""
        return [category['name'] for category in self.categories]


def read_coco(path: str | os.PathLike) -> CocoFile:
    """Read an annotation file, check its structure, and add what it may leave out: ``iscrowd`` (0) and ``area``.

    The newest file is kept in memory until :func:`forget_files`, because a run reads each one several times.

    Raises:
        FileNotFoundError: if there is no such file.
        DataFault: for a file whose structure is wrong. The message names the entry, the key and the remedy.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no annotation file {path}: check data_root and ann_file')
    status = os.stat(path)
    return _read(str(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _read(path: str, *version: int) -> CocoFile:
    with open(path, 'rb') as lines:
        data = lines.read().removeprefix(b'\xef\xbb\xbf')
    try:
        content: Any = CONTENT.validate_json(data)
    except ValidationError as error:
        raise DataFault(list(_faults_of_schema(path, data, error)), with_kind=True) from None
    file = CocoFile(path, content['images'], content['categories'], content.get('annotations', []))
    if faults := list(_faults_of_references(file)):
        raise DataFault(faults, with_kind=True)
    sizes = {image['id']: (image['height'], image['width']) for image in file.images}
    for annotation in file.annotations:
        if 'iscrowd' not in annotation:
            annotation['iscrowd'] = 0
            file.completed['iscrowd'] += 1
        if 'area' not in annotation:
            size = sizes[annotation['image_id']]
            annotation['area'] = area_of(annotation['bbox'], annotation.get('segmentation'), size)
            file.completed['area'] += 1
    return file


forget_files = _read.cache_clear


def _faults_of_schema(path: str, data: bytes, error: ValidationError) -> Iterator[FileFinding]:
    """Yield one finding for each section, key and kind of error, with its first entry and the number of entries."""
    groups: dict[tuple, list] = {}
    for one in error.errors(include_url=False):
        place = one['loc']
        groups.setdefault((*place[:1], *place[2:3], one['type']), []).append(one)
    content = None if any(group[0]['type'] == 'json_invalid' for group in groups.values()) else json.loads(data)
    for group in groups.values():
        more = f' (and {len(group) - 1:,} more of these)' if len(group) > 1 else ''
        yield FileFinding(INVALID, path, _describe(group[0], content) + more)


def _describe(error: Any, content: Any) -> str:
    """Say what is wrong, in the words of COCO files: section, entry, key, value and remedy."""
    section, number, key = [*error['loc'][:3], None, None, None][:3]
    if error['type'] == 'json_invalid':
        return f'not a JSON file: {error["msg"].removeprefix("Invalid JSON: ")}'
    if number is None:
        what = f'{section!r}' if section else 'the file'
        if error['type'] == 'missing':
            return f'has no list {what}: a COCO file is one object with the lists images, annotations and categories'
        if error['type'] == 'too_short':
            return f'its list {what} is empty'
        return f'{what} is a {type(error["input"]).__name__}: a COCO file is one object with the lists ' + (
            'images, annotations and categories'
        )
    entry = content[section][number]
    where = f'{section}[{number}]'
    if not isinstance(entry, dict):
        return f'{where} is {_shown(entry)}, not an object'
    if 'id' in entry and key != 'id':
        where += f' (id {_shown(entry["id"])})'
    found = f'is {_shown(entry[key])}' if key in entry else 'is missing'
    return f'{where}: {key} {found}: {ADVICE[key]}'


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _faults_of_references(file: CocoFile) -> Iterator[FileFinding]:
    """Yield findings for ids and names that are not unique, and for images and categories that are unknown."""
    for section, key in (*((section, 'id') for section in SECTIONS), ('categories', 'name')):
        for value, count in Counter(entry[key] for entry in getattr(file, section)).items():
            if count > 1:
                advice = (
                    'give its annotations to one category and remove the others'
                    if key == 'name'
                    else 'number the entries 1, 2, 3, ...; files that are merged need new numbers'
                )
                yield FileFinding(NOT_UNIQUE, file.path, f'{section}: {key} {value!r} occurs {count} times: {advice}')
    known = {section: {entry['id'] for entry in getattr(file, section)} for section in SECTIONS[:2]}
    for number, annotation in enumerate(file.annotations):
        where = f'annotations[{number}] (id {annotation["id"]})'
        if annotation['category_id'] not in known['categories']:
            category = annotation['category_id']
            yield FileFinding(
                NO_CATEGORY, file.path, f'{where}: the file has no category {category}: {ADVICE["category_id"]}'
            )
        if annotation['image_id'] not in known['images']:
            image = annotation['image_id']
            yield FileFinding(NO_IMAGE, file.path, f'{where}: the file has no image {image}: {ADVICE["image_id"]}')
