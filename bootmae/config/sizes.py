"""Image size, patch size and masks of the training pipeline, taken from the model."""

from mmengine.config import Config

from ..data.subsets import leaves


def fill_sizes(cfg: Config) -> None:
    """Complete the training pipeline with the sizes that the model states.

    A ``RandomResizedCrop`` without ``scale`` crops to the backbone's ``img_size``. A ``DrawMask`` draws the masks of
    ``model.masking`` on the backbone's patches. What a transform states itself stays.

    Args:
        cfg: changed in place.
    """
    backbone = cfg.get('model', {}).get('backbone', {})
    size = backbone.get('img_size', 224)
    masks = dict(img_size=size, patch_size=backbone.get('patch_size', 16)) | cfg.get('model', {}).get('masking', {})
    for dataset in leaves((cfg.get('train_dataloader') or {}).get('dataset') or {}):
        for step in dataset.get('pipeline', ()):
            missing = {'RandomResizedCrop': dict(scale=size), 'DrawMask': masks}.get(step.get('type'), {})
            for key, value in missing.items():
                step.setdefault(key, value)
