"""Typed errors. Each message names what was found, what was expected, and what to do."""

from __future__ import annotations

import signal


class STGCHBError(Exception):
    """Base of all errors that the package raises on purpose: ``except STGCHBError`` catches each of them.

    :class:`TerminatedError` alone is none of them: it ends a process that was told to end.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _shown_as_public(cls)


def _shown_as_public(cls: type[BaseException]) -> None:
    """Name a type by the module from which users import it, in tracebacks and in the documentation."""
    if cls.__module__ == __name__:
        cls.__module__ = "st_gchb.errors"


_shown_as_public(STGCHBError)


class InputError(STGCHBError, ValueError):
    """An argument or an object holds something that cannot be used.

    Raised by every function that checks what it is given; the base of the more special kinds below.
    """


class ArgumentError(InputError, TypeError):
    """An argument or a setting is not what its annotation says, is unknown, or is missing."""


class MissingKeyError(STGCHBError, KeyError):
    """A key that is needed is absent from an AnnData or SpatialData object, or a column from a table.

    Raised where ``obs``, ``obsm``, ``obsp``, ``uns``, ``layers`` or the elements of a SpatialData are read.
    """

    def __str__(self) -> str:
        # KeyError shows repr(message), which turns a readable sentence into a quoted one.
        return str(self.args[0]) if self.args else ""


class MissingFileError(STGCHBError, FileNotFoundError):
    """A file or folder that is needed is not there.

    Raised where images, sections, models, tables of slides and data sets are opened.
    """


class CoordinateError(InputError):
    """Spot coordinates are missing, not finite, or do not fit the image.

    Raised when spots are registered, embedded or predicted.
    """


class ImageError(InputError):
    """An image cannot be read, or is no 8-bit RGB image.

    Raised by :func:`st_gchb.io.open_image` and wherever an image is handed over.
    """


class DamageError(ImageError):
    """Part of an image cannot be decoded; the rest of it may be whole.

    Raised while patches are read, unless spots on that part are to be left out.
    """


class TissueError(InputError):
    """No tissue was found where query positions were to be laid.

    Raised by :func:`st_gchb.pp.find_tissue` and :func:`st_gchb.pp.tile_tissue`.
    """


class StainError(InputError):
    """The stain of a slide cannot be told, so it cannot be normalized.

    Raised by :func:`st_gchb.pp.fit_stain` and where patches are embedded with ``stain_norm``.
    """


class ScaleError(InputError):
    """The physical size of a pixel is unknown or contradictory.

    Raised wherever a length in µm is turned into pixels.
    """


class EncoderError(InputError):
    """An unknown encoder, or weights that do not belong to it.

    Raised by :func:`st_gchb.pp.get_encoder` and wherever an encoder is named.
    """


class MissingExtraError(EncoderError, ImportError):
    """An optional dependency that is needed is not installed.

    The message holds the command that installs it.
    """


class WeightsUnavailableError(MissingFileError):
    """Encoder weights could not be downloaded or are not at the path given.

    Raised by :func:`st_gchb.pp.get_encoder`, and by a model that has to embed a query's patches.
    """


class ExpressionError(InputError):
    """Expression is not what it was said to be (counts, or log-normalized values).

    Raised when a reference is registered or trained on, and when predictions are compared with measured values.
    """


class SliceError(InputError):
    """Slices cannot be told apart, or one is too small to be used.

    Raised when a reference is registered and when slices are left out.
    """


class GraphError(InputError):
    """The spot graph is missing, has the wrong shape, or joins spots of two slices.

    Raised by :func:`st_gchb.pp.spatial_graph`, by training and by prediction.
    """


class StaleError(InputError):
    """Features or a graph were made from other positions, images or sizes of pixels than the object holds now.

    Raised when a reference is registered and when a query brings its features.
    """


class QueryError(InputError):
    """A query cannot be predicted by this model: its features, scale or graph are not those of the reference.

    Raised by :meth:`STGCHB.predict <st_gchb.model.STGCHB.predict>`.
    """


class NotTrainedError(InputError):
    """The model has to be trained before this is possible.

    Raised by prediction, latent representations and saving.
    """


class ModelFileError(InputError):
    """A saved model is damaged, incomplete, or of another kind.

    Raised by :meth:`STGCHB.load <st_gchb.model.STGCHB.load>`.
    """


class StoreError(STGCHBError, OSError):
    """A file, folder or store could not be written to; what was there before is as it was.

    Raised before work begins where the place can be tried out, else when it is written to.
    """


class CacheError(STGCHBError, OSError):
    """What has to lie on disk while the work goes on could not be written there; nothing half-written is left.

    Raised where the feature maps of a trunk's last stage find no room in the cache folder.
    """


class CheckpointError(InputError):
    """A checkpoint of an interrupted training is damaged, or belongs to another training.

    Raised by ``model.train(resume=True)``.
    """


class DivergenceError(InputError):
    """A training ran away: its loss or its weights are no longer finite numbers.

    Raised by ``model.train``.
    """


class DeviceError(InputError):
    """A device is not there, several devices cannot train this way, or their memory is too small.

    Raised by training, by encoders and by loading.
    """


class ClusterError(STGCHBError, RuntimeError):
    """Workers of a cluster cannot do what they are asked for, or the cluster was lost.

    Raised by :func:`st_gchb.cohort.predict_slides` and :func:`st_gchb.cohort.embed_slides`.
    """


class DownloadError(MissingFileError):
    """A data set could not be downloaded, and is not in the folder named either.

    Raised by the functions of :mod:`st_gchb.datasets`.
    """


class TerminatedError(SystemExit):
    """The process was told to end by SIGTERM or SIGHUP, as a queue does at its time limit, while the package worked.

    Raised by training, by evaluation and by the prediction of many slides, after what was half-done is put in order and
    the signal handlers are as before. A script that does not catch it ends with the status that a shell gives to the
    signal, 143 for SIGTERM. Like ``KeyboardInterrupt``, which Ctrl-C raises, it is no ``Exception``: a loop over many
    trainings that goes on after errors does not go on after this one.

    Parameters
    ----------
    message
        What was ended, and how to go on.
    number
        Of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)
        self.code = 128 + number


_shown_as_public(TerminatedError)
