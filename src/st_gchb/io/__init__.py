"""Read slide images and sections of any common format, and write elements atomically into a SpatialData store."""

from st_gchb._lazy import attach_stub

# The stub maps every name to its module, including those for other subpackages; __all__ lists the public ones.
__getattr__, _, _ = attach_stub(__name__, __file__)
__all__ = [
    "READERS",
    "Reader",
    "SlideImage",
    "SlideLevel",
    "open_image",
    "read_cohort",
    "read_geojson",
    "read_lazyslide",
    "read_section",
    "register_reader",
    "write_elements",
    "write_geojson",
    "write_lazyslide",
    "write_ome_tiff",
]


def __dir__() -> list[str]:
    return __all__
