from . import embedded, images, masks, sampler, samples, scenes  # noqa: F401
