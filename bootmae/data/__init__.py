from . import device, embedded, images, masks, reading, sampler, samples, scenes, tar  # noqa: F401
