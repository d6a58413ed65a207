from . import embedded, images, masks, seeding  # noqa: F401
