"""Typed errors. Each message names what was found, what was expected, and what to do."""

from __future__ import annotations


class STGCHBError(Exception):
    """Base of all errors that the package raises on purpose."""


class InputError(STGCHBError, ValueError):
    """An argument or an object holds something that cannot be used."""


class MissingKeyError(STGCHBError, KeyError):
    """A key that is needed is absent from an AnnData or SpatialData object."""

    def __str__(self) -> str:
        # KeyError shows repr(message), which turns a readable sentence into a quoted one.
        return str(self.args[0]) if self.args else ""


class MissingFileError(STGCHBError, FileNotFoundError):
    """A file or folder that is needed is not there."""


class CoordinateError(InputError):
    """Spot coordinates are missing, not finite, negative, or do not fit the image."""


class ImageError(InputError):
    """An image cannot be read, or is no 8-bit RGB image."""


class DamageError(ImageError):
    """Part of an image cannot be decoded; the rest of it may be whole."""


class TissueError(InputError):
    """No tissue was found where query positions were to be laid."""


class StainError(InputError):
    """The stain of a slide cannot be told, so it cannot be normalised."""


class ScaleError(InputError):
    """The physical size of a pixel is unknown or contradictory."""


class EncoderError(InputError):
    """An unknown encoder, or weights that do not belong to it."""


class MissingExtraError(EncoderError, ImportError):
    """An optional dependency that is needed is not installed."""


class WeightsUnavailableError(MissingFileError):
    """Encoder weights could not be downloaded or are not at the path given."""


class ExpressionError(InputError):
    """Expression is not what it was said to be (counts, or log-normalised values)."""


class SliceError(InputError):
    """Slices cannot be told apart, or one is too small to be used."""


class GraphError(InputError):
    """The spot graph is missing, has the wrong shape, or joins spots of two slices."""


class QueryError(InputError):
    """A query cannot be predicted by this model."""


class NotTrainedError(InputError):
    """The model has to be trained before this is possible."""


class ModelFileError(InputError):
    """A saved model is damaged, incomplete, or of another kind."""


class StoreError(STGCHBError, OSError):
    """A store on disk could not be written to; it is as it was before."""


class CacheError(STGCHBError, OSError):
    """What has to lie on disk could not be written there; nothing half-written is left."""


class CheckpointError(InputError):
    """A checkpoint of an interrupted training is damaged, or belongs to another training."""


class DeviceError(InputError):
    """Several devices cannot train this way, or their memory is too small."""


class ClusterError(STGCHBError, RuntimeError):
    """Workers of a cluster cannot do what they are asked for, or the cluster was lost."""


class DownloadError(MissingFileError):
    """A data set could not be downloaded."""
