from . import embedded, images, masks, scenes, seeding  # noqa: F401
