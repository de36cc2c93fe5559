"""Typed errors of the package. Each message names what was found, what was expected, and what to do."""

from __future__ import annotations

import signal


class STGCHBError(Exception):
    """Base class of all errors that the package raises deliberately: ``except STGCHBError`` catches each of them.

    The only exception is :class:`TerminatedError`, which ends a process that received a signal to end.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _shown_as_public(cls)


def _shown_as_public(cls: type[BaseException]) -> None:
    """Set a type's module to the one from which users import it, for tracebacks and the documentation."""
    if cls.__module__ == __name__:
        cls.__module__ = "st_gchb.errors"


_shown_as_public(STGCHBError)


class InputError(STGCHBError, ValueError):
    """An argument or an object holds something that cannot be used.

    Raised by every function that validates its input; base class of the more specific errors below.
    """


class ArgumentError(InputError, TypeError):
    """An argument or a setting does not match its annotation, is unknown, or is missing."""


class MissingKeyError(STGCHBError, KeyError):
    """A required key is absent from an AnnData or SpatialData object, or a column from a table.

    Raised where ``obs``, ``obsm``, ``obsp``, ``uns``, ``layers`` or the elements of a SpatialData are read.
    """

    def __str__(self) -> str:
        # KeyError shows repr(message), which turns a readable sentence into a quoted one.
        return str(self.args[0]) if self.args else ""


class MissingFileError(STGCHBError, FileNotFoundError):
    """A required file or folder does not exist.

    Raised when images, sections, models, tables of slides and data sets are opened.
    """


class CoordinateError(InputError):
    """Spot coordinates are missing, not finite, or do not fit the image.

    Raised when spots are registered, embedded or predicted.
    """


class ImageError(InputError):
    """An image cannot be read, or is not an 8-bit RGB image.

    Raised by :func:`st_gchb.io.open_image` and wherever an image is passed.
    """


class DamageError(ImageError):
    """Part of an image cannot be decoded; the rest of it may be intact.

    Raised while patches are read, unless spots on that part are to be excluded.
    """


class TissueError(InputError):
    """No tissue was found on which query positions could be laid.

    Raised by :func:`st_gchb.pp.find_tissue` and :func:`st_gchb.pp.tile_tissue`.
    """


class StainError(InputError):
    """The stain of a slide cannot be estimated, so it cannot be normalized.

    Raised by :func:`st_gchb.pp.fit_stain` and when patches are embedded with ``stain_norm``.
    """


class ScaleError(InputError):
    """The physical size of a pixel is unknown or contradictory.

    Raised wherever a length in µm is converted to pixels.
    """


class EncoderError(InputError):
    """An encoder is unknown, or its weights do not belong to it.

    Raised by :func:`st_gchb.pp.get_encoder` and wherever an encoder is named.
    """


class MissingExtraError(EncoderError, ImportError):
    """An optional dependency that is required here is not installed.

    The message contains the command that installs it.
    """


class WeightsUnavailableError(MissingFileError):
    """Encoder weights could not be downloaded, or are not at the given path.

    Raised by :func:`st_gchb.pp.get_encoder`, and by a model that has to embed a query's patches.
    """


class HubError(STGCHBError, OSError):
    """A model hub could not be reached, broke off, or refused; nothing was loaded, and no half of a model uploaded.

    Raised by :meth:`STGCHB.from_pretrained <st_gchb.model.STGCHB.from_pretrained>` and
    :meth:`STGCHB.push_to_hub <st_gchb.model.STGCHB.push_to_hub>`.
    """


class HubAccessError(HubError, PermissionError):
    """A model hub asks for a login, a right, or the acceptance of terms.

    The message contains the steps by which access is had.
    """


class HubNotFoundError(HubError, MissingFileError):
    """A model hub has no repository, or no revision, of this name."""


class WeightsAccessError(WeightsUnavailableError, HubAccessError):
    """The weights of an encoder are shared under terms that have not been accepted, or without a login.

    Raised by :func:`st_gchb.pp.get_encoder`; the message contains the steps by which access is had.
    """


class ModelCardError(InputError):
    """A model card has no license, or says nothing of the training data.

    Raised before anything is written or uploaded.
    """


class ExpressionError(InputError):
    """Expression is not of the declared kind (counts, or log-normalized values).

    Raised when a reference is registered or trained on, and when predictions are compared with measured values.
    """


class SliceError(InputError):
    """Slices cannot be told apart, or one is too small to be used.

    Raised when a reference is registered and when slices are held out.
    """


class GraphError(InputError):
    """The spot graph is missing, has the wrong shape, or connects spots of two slices.

    Raised by :func:`st_gchb.pp.spatial_graph`, by training and by prediction.
    """


class StaleError(InputError):
    """Features or a graph were computed from positions, images or pixel sizes that the object no longer holds.

    Raised when a reference is registered and when a query comes with its own features.
    """


class QueryError(InputError):
    """A query cannot be predicted by this model: its features, scale or graph do not match the reference's.

    Raised by :meth:`STGCHB.predict <st_gchb.model.STGCHB.predict>`.
    """


class NotTrainedError(InputError, AttributeError):
    """The operation requires a trained model, or an attribute of the model exists only after training.

    Raised by prediction, latent representations, saving and :attr:`STGCHB.module <st_gchb.model.STGCHB.module>`. It is
    an ``AttributeError`` too, as scikit-learn's ``NotFittedError``, so that ``hasattr`` and completion work.
    """


class ModelFileError(InputError):
    """A saved model is damaged, incomplete, or of another kind.

    Raised by :meth:`STGCHB.load <st_gchb.model.STGCHB.load>`.
    """


class StoreError(STGCHBError, OSError):
    """A file, folder or store could not be written to; its previous contents are unchanged.

    Raised before any computation where the location can be tested in advance, otherwise on writing.
    """


class CacheError(STGCHBError, OSError):
    """Data that a computation keeps on disk could not be written; no partial file is left.

    Raised if the cache folder has no room for patches, or for the feature maps that the encoder's last stage takes.
    """


class CheckpointError(InputError):
    """A checkpoint of an interrupted training run is damaged, or belongs to another run.

    Raised by ``model.train(resume=True)``.
    """


class DivergenceError(InputError):
    """Training diverged: the loss or the weights are no longer finite.

    Raised by ``model.train``.
    """


class DeviceError(InputError):
    """A device is not available, has too little memory, or several devices cannot be used for this training.

    Raised by training, by encoders and by loading.
    """


class ClusterError(STGCHBError, RuntimeError):
    """Workers of a cluster cannot run their tasks, or the connection to the cluster was lost.

    Raised by :func:`st_gchb.cohort.predict_slides` and :func:`st_gchb.cohort.embed_slides`.
    """


class DownloadError(MissingFileError):
    """A data set could not be downloaded, and is not in the given folder.

    Raised by the functions of :mod:`st_gchb.datasets`.
    """


class TerminatedError(SystemExit):
    """The process received SIGTERM or SIGHUP during a computation, as batch systems send at the time limit.

    Raised by training, by evaluation and by the prediction of many slides, after partial output is completed or removed
    and the signal handlers are restored. A script that does not catch it ends with the exit status that a shell assigns
    to the signal, 143 for SIGTERM. Like ``KeyboardInterrupt``, which Ctrl-C raises, it is not an ``Exception``: a loop
    over many training runs that continues after errors does not continue after this one.

    Parameters
    ----------
    message
        What was ended, and how to continue.
    number
        Number of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)
        self.code = 128 + number


_shown_as_public(TerminatedError)
