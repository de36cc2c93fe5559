"""Slide images as one small interface, sections from disk, and elements that are written whole or not at all."""

import lazy_loader

# The stub says where each name is, also those that other rooms ask for; users see these.
__getattr__, _, _ = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["SlideImage", "open_image", "read_section", "write_elements"]


def __dir__() -> list[str]:
    return __all__
