"""Data sets, their reading, order and checks; importing it registers the classes with the OpenMMLab registries."""

from .. import compat

compat.apply()

from . import coco_api, device, embedded, images, masks, reading, sampler, samples, scenes, tar  # noqa: E402, F401

coco_api.install()
