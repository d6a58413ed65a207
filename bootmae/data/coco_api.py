"""mmdet's access to COCO files: labels follow the names of the classes, and files are read by :mod:`coco`.

mmdet gives label i to the i-th category *of the file* whose name is a class, so the labels of two files with their
categories in another order differ, and a file without one of the classes shifts all later labels. The data set and the
metric both ask ``COCO.get_cat_ids``, which is therefore corrected here, in mmdet's own class.
"""

import functools
import types
from collections.abc import Sequence
from itertools import count

from .. import compat

CONVERTED = '.gt.json'  # mmdet's CocoMetric writes such a file itself if it has no ann_file; its ids may be texts


def install() -> None:
    """Correct mmdet, now or as soon as it is imported."""
    compat.after_import('mmdet.datasets.api_wrappers.coco_api', _patch_api)
    compat.after_import('mmdet.evaluation.metrics.coco_metric', _patch_metric)


def _patch_api(module: types.ModuleType) -> None:
    api = module.COCO
    if hasattr(api.__init__, '__wrapped__'):
        return
    read_as_is, ids_of_file = api.__init__, api.get_cat_ids

    @functools.wraps(read_as_is)
    def __init__(self, annotation_file=None) -> None:
        if annotation_file is None or type(self) is not api or str(annotation_file).endswith(CONVERTED):
            read_as_is(self, annotation_file)
            return
        read_as_is(self)
        from .coco import read_coco  # imports pydantic, which pretraining does not need

        file = read_coco(annotation_file)
        self.dataset = dict(
            images=[dict(image) for image in file.images],
            categories=[dict(category) for category in file.categories],
            # COCOeval takes an instance with id 0 for one that was not found
            annotations=[dict(annotation, id=number) for number, annotation in enumerate(file.annotations, 1)],
        )
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    @functools.wraps(ids_of_file)
    def get_cat_ids(self, cat_names: Sequence[str] = (), sup_names=(), cat_ids=()) -> list[int]:
        if not cat_names or isinstance(cat_names, str) or sup_names or cat_ids or type(self) is not api:
            return ids_of_file(self, cat_names, sup_names, cat_ids)
        ids = {category['name']: category['id'] for category in self.dataset['categories']}
        for name in cat_names:
            if name not in ids:  # predictions of a class that the file lacks need an id too
                ids[name] = next(number for number in count(1) if number not in self.cats)
                self.cats[ids[name]] = dict(id=ids[name], name=name)
                self.dataset['categories'].append(self.cats[ids[name]])
        return [ids[name] for name in cat_names]

    api.__init__, api.get_cat_ids = __init__, get_cat_ids


def _patch_metric(module: types.ModuleType) -> None:
    """Let the results of COCOeval by class keep the order of its categories, as the metric assumes; it sorts them."""
    for name in ('COCOeval', 'COCOevalMP'):
        evaluator = vars(module)[name]
        if not issubclass(evaluator, _InGivenOrder):
            vars(module)[name] = type(name, (_InGivenOrder, evaluator), {})


class _InGivenOrder:
    """Mixin for COCOeval."""

    def evaluate(self) -> None:
        self.given = list(self.params.catIds)
        super().evaluate()

    def accumulate(self, p=None) -> None:
        super().accumulate(p)
        if self.params.useCats:
            order = [list(self.params.catIds).index(category) for category in self.given]
            # (thresholds, recalls, classes, areas, counts), and for recall without the second
            self.eval['precision'] = self.eval['precision'][:, :, order]
            self.eval['scores'] = self.eval['scores'][:, :, order]
            self.eval['recall'] = self.eval['recall'][:, order]
