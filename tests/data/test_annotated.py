"""Checks of annotated images; tests/config/test_checks.py has those that need a model."""

import pytest
from mmseg.datasets import BaseSegDataset

from bootmae.data.annotated import annotated_files


@pytest.mark.parametrize(('masks', 'images'), [('labels', ['2.png']), ('train_masks', ['2.png']), ('train/masks', [])])
def test_images_with_the_suffix_of_the_masks(tmp_path, masks, images):
    """They are left out by mmseg; below the folder of images such files are masks."""
    for name in ('train/1.jpg', 'train/2.png', f'{masks}/1.png', f'{masks}/2.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    dataset = BaseSegDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='train', seg_map_path=masks),
        metainfo=dict(classes=('a', 'b')),
        pipeline=[],
    )
    found = [finding.path for finding in annotated_files(dataset)[1] if finding.kind == 'image with another suffix']
    assert found == [str(tmp_path / 'train' / name) for name in images]
