"""What the annotations of a COCO file come to: faults of boxes and masks, and annotations that a run would not use."""

from collections import Counter
from collections.abc import Iterator, Sequence

from ..text import count_of
from .coco import CocoFile
from .coco_shapes import fault_of_box, fault_of_mask
from .findings import CLASS_ABSENT, COMPLETED, LEFT_OUT, OTHER_CATEGORIES, FileFinding

CLASS_UNKNOWN, CLASS_LEFT_OUT, MOST_LEFT_OUT, MOST_OUTSIDE, NOTHING = FAULTS_OF_CONTENT = (
    'class unknown to the annotation file',
    'all annotations of a class are left out',
    'most of a data set is left out',
    'most boxes exceed their image',
    'no annotation of any class',
)
FAULTS_OF_MASKS = ('annotation without mask', 'mask invalid', 'mask empty')
PIXELS = 'boxes are [x, y, width, height] in pixels, neither fractions of the image nor corners'
ADVICE = {  # by reason why the loader leaves an annotation out
    "flag 'ignore'": "remove the key 'ignore'",
    'no overlap with its image': PIXELS,
    'area not above 0': "remove the key 'area', and it is computed, or give the area in pixels",
    'box below 1 pixel': PIXELS,
    'crowd': 'set iscrowd to 0 for single objects; a crowd is neither learnt nor evaluated',
}
IGNORED, OUTSIDE, NO_AREA, THIN, CROWD = ADVICE


def check_coco(
    file: CocoFile, classes: Sequence[str], with_masks: bool, training: bool = True, min_size: int = 0
) -> list[FileFinding]:
    """Check the annotations of a file without its images.

    Args:
        file: The annotation file.
        classes: Classes of the data set.
        with_masks: Whether masks are used; otherwise they are not checked.
        training: Whether the file must have all classes. A test may lack some.
        min_size: Training leaves out images whose shorter side is below this.
    """
    return [
        *_names(file, classes, training),
        *_left_out(file, classes, training),
        *_small_images(file, min_size),
        *_shapes(file, with_masks),
    ]


def _names(file: CocoFile, classes: Sequence[str], training: bool) -> Iterator[FileFinding]:
    """Compare classes and categories by name."""
    known = set(file.names)
    unknown = [name for name in classes if name not in known]
    others = [name for name in file.names if name not in set(classes)]
    spelt = {_plain(name): name for name in others}
    for name in unknown:
        alike = spelt.get(_plain(name))
        if training or alike or len(unknown) == len(classes):
            has = f'it has {alike!r}' if alike else f'it has {file.names[:10]}{" ..." if len(known) > 10 else ""}'
            advice = 'give the data set metainfo=dict(classes=...) with the names of the file'
            yield FileFinding(CLASS_UNKNOWN, file.path, f'{name!r}; {has}: {advice}')
        else:
            yield FileFinding(CLASS_ABSENT, file.path, f'{name}: not among the categories')
    names = {category['id']: category['name'] for category in file.categories}
    used = Counter(names[annotation['category_id']] for annotation in file.annotations)
    for name in classes:
        if name in known and not used[name]:
            yield FileFinding(CLASS_ABSENT, file.path, name)
    if number := sum(used[name] for name in others):
        shown = ', '.join([name for name in others if used[name]][:8])
        yield FileFinding(
            OTHER_CATEGORIES,
            file.path,
            f'{shown}: annotations that are not used: {number:,} of {len(file.annotations):,}',
        )


def _plain(name: str) -> str:
    """Return a name without case, blanks, punctuation and the ending of a plural."""
    return ''.join(filter(str.isalnum, str(name).casefold())).removesuffix('s')


def reason_to_leave_out(annotation: dict, image: dict) -> str | None:
    """Return why mmdet's loader skips an annotation of a class, in its order; None for one that is used.

    A crowd is loaded, but neither learnt nor evaluated.
    """
    x, y, width, height = annotation['bbox']
    across = min(x + width, image['width']) - max(x, 0)
    down = min(y + height, image['height']) - max(y, 0)
    if annotation.get('ignore'):
        return IGNORED
    if width < 1 or height < 1:
        return THIN
    if across <= 0 or down <= 0:
        return OUTSIDE
    if annotation['area'] <= 0:
        return NO_AREA
    return CROWD if annotation['iscrowd'] else None


def _left_out(file: CocoFile, classes: Sequence[str], training: bool) -> Iterator[FileFinding]:
    """Count the annotations that a run would not use."""
    total = count_of(len(file.annotations), 'annotation')
    for key, number in file.completed.items():
        how = 'is 0 there' if key == 'iscrowd' else 'is computed from the mask or the box'
        yield FileFinding(COMPLETED, file.path, f'{key} {how}: {number:,} of {total}')
    names = {category['id']: category['name'] for category in file.categories}
    images = {image['id']: image for image in file.images}
    reasons: dict[str, Counter] = {name: Counter() for name in classes}
    for annotation in file.annotations:
        name = names[annotation['category_id']]
        if name in reasons:
            reasons[name][reason_to_leave_out(annotation, images[annotation['image_id']])] += 1
    for name, found in reasons.items():
        if found and found[CROWD] == found.total():  # on purpose, or most of the file is
            yield FileFinding(CLASS_ABSENT, file.path, f'{name}: all of its {found.total():,} annotations are crowds')
        elif found and not found[None]:
            yield FileFinding(CLASS_LEFT_OUT, file.path, f'{name}: {_counted(found)}: {_advice(found)}')
    found = sum(reasons.values(), Counter())
    if 2 * found[None] < found.total():
        yield FileFinding(MOST_LEFT_OUT, file.path, f'annotations: {_counted(found)}: {_advice(found)}')
    elif found[None] < found.total():
        yield FileFinding(LEFT_OUT, file.path, _counted(found))
    if not found.total() and (training or file.annotations):
        yield FileFinding(NOTHING, file.path, f'the file has {total} of other categories')


def _counted(reasons: Counter) -> str:
    parts = ', '.join(f'{reason} ({number:,})' for reason, number in reasons.most_common() if reason)
    return f'{reasons.total() - reasons[None]:,} of {reasons.total():,}: {parts}'


def _advice(reasons: Counter) -> str:
    return ADVICE[next(reason for reason, _ in reasons.most_common() if reason)]


def _small_images(file: CocoFile, min_size: int) -> Iterator[FileFinding]:
    small = sum(min(image['width'], image['height']) < min_size for image in file.images)
    if small:
        detail = f'images: {small:,} of {len(file.images):,} are smaller than filter_cfg.min_size={min_size}'
        if 2 * small > len(file.images):
            yield FileFinding(MOST_LEFT_OUT, file.path, f'{detail}: lower it')
        else:
            yield FileFinding(LEFT_OUT, file.path, detail)


def _shapes(file: CocoFile, with_masks: bool) -> Iterator[FileFinding]:
    """Check each box, and each mask if masks are used."""
    images, outside = {image['id']: image for image in file.images}, 0
    found = []
    for annotation in file.annotations:
        image = images[annotation['image_id']]
        size = image['height'], image['width']
        faults = [fault_of_box(annotation['bbox'], size)]
        outside += faults[0][0] == 'box outside its image'
        if with_masks:
            faults.append(fault_of_mask(annotation.get('segmentation'), size, True))
        where = f'annotation {annotation["id"]} of {image["file_name"]}'
        found += [FileFinding(kind, file.path, f'{where}: {detail}') for kind, detail in faults if kind]
    if 2 * outside > len(file.annotations):
        yield FileFinding(MOST_OUTSIDE, file.path, f'{outside:,} of {len(file.annotations):,}: {PIXELS}')
    yield from found
