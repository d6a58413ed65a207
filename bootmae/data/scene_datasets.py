"""Digit scenes as data sets of mmpretrain, mmseg and mmdet, which write their files on first use.

Importing the package leaves this module out because it imports mmseg; configs import it where they need it.
"""

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS as MMDET_DATASETS
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS as MMSEG_DATASETS

from .images import ImageFiles
from .scenes import SPLITS, SceneSpec, write_scenes

# the colors of Okabe and Ito, which color-blind readers can distinguish, and three more
PALETTE = [
    (40, 40, 40),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (150, 90, 40),
    (150, 210, 40),
    (120, 60, 200),
]


@MMSEG_DATASETS.register_module()
class DigitSceneMasks(BaseSegDataset):
    """Semantic masks of digit scenes in the layout of ADE20K: background and digits; 0 in the files is unlabeled.

    Args:
        split: ``train`` or ``val``.
        data_root: Folder of the scenes, which is created if it does not exist.
        scenes: Arguments of :class:`SceneSpec`.
        kwargs: Arguments of mmseg's BaseSegDataset.
    """

    def __init__(self, split: str, data_root: str = 'data/digit_scenes', scenes: dict | None = None, **kwargs):
        folder = SPLITS[split][0]
        paths = dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}')
        spec = SceneSpec(**scenes or {})
        write_scenes(data_root, spec)
        metainfo = dict(
            classes=spec.classes, palette=[list(color) for color in PALETTE[: len(spec.classes)]], unlabeled=0
        )
        super().__init__(
            data_root=data_root,
            data_prefix=paths,
            img_suffix='.jpg',
            seg_map_suffix='.png',
            reduce_zero_label=True,
            metainfo=metainfo,
            **kwargs,
        )


@MMDET_DATASETS.register_module()
class DigitSceneInstances(CocoDataset):
    """Instances of digit scenes in the layout of COCO, with the arguments of :class:`DigitSceneMasks`."""

    def __init__(self, split: str, data_root: str = 'data/digit_scenes', scenes: dict | None = None, **kwargs):
        folder = SPLITS[split][1]
        spec = SceneSpec(**scenes or {})
        write_scenes(data_root, spec)
        metainfo = dict(classes=spec.names, palette=PALETTE[1 : len(spec.classes)])
        super().__init__(
            data_root=data_root,
            data_prefix=dict(img=f'{folder}/'),
            metainfo=metainfo,
            ann_file=f'annotations/instances_{folder}.json',
            **kwargs,
        )


@MMPRETRAIN_DATASETS.register_module()
class DigitSceneImages(ImageFiles):
    """Unlabeled digit scenes for pretraining, with the arguments of :class:`DigitSceneMasks`."""

    def __init__(self, split: str, data_root: str = 'data/digit_scenes', scenes: dict | None = None, **kwargs):
        write_scenes(data_root, SceneSpec(**scenes or {}))
        super().__init__(f'{data_root}/images/{SPLITS[split][0]}', **kwargs)
