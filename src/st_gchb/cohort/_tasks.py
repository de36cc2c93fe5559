"""Computation per slide: read the query, compute patch features, predict expression."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from st_gchb._artifacts import write_whole
from st_gchb._constants import DEFAULT_SPACING_UM, Keys
from st_gchb._errors import InputError, MissingFileError, ModelFileError
from st_gchb._options import is_default
from st_gchb.cohort._manifest import Slide

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from st_gchb.model import Predictor
    from st_gchb.pp import Encoder, FeatureSet, Resolved
    from st_gchb.pp.patches import FeatureOptions

_GRID = "grid"
"""Name of the grid positions that are added to a SpatialData."""


def read_query(
    path: Path,
    *,
    name: str | None = None,
    image: str | None = None,
    um_per_px: float | None = None,
    spacing_um: float | None = None,
    roi: Any = None,
    **grid: Any,
) -> tuple[AnnData | SpatialData, dict[str, Any]]:
    """Read a query from a file or folder; a slide without spots gets a grid of positions on its tissue.

    Parameters
    ----------
    path
        An image file, a SpatialData store, an AnnData file, or a folder of Space Ranger or legacy ST.
    name
        Name of the slide, for an image file.
    image
        Full-resolution image file of a folder or an AnnData, or name of an image element of a store.
    um_per_px
        Size of a full-resolution pixel, µm.
    spacing_um
        Distance between grid positions, µm; ``None`` takes the slide's own spots if it has any, else a grid of 100 µm.
    roi, grid
        As in :func:`~st_gchb.pp.tile_tissue`.

    Returns
    -------
    tuple
        The query, and the keyword arguments with which :func:`~st_gchb.pp.resolve` and the model find positions and
        image in it.

    Raises
    ------
    InputError, MissingFileError
        The path does not exist or cannot be read, or an option does not apply to it.
    """
    from st_gchb import pp

    if not os.path.exists(path):
        raise MissingFileError(f"{path}: there is no such file or folder.")
    laid = {"spacing_um": spacing_um or DEFAULT_SPACING_UM, "roi": roi, **grid}
    if path.is_file() and path.suffix != ".h5ad":
        if image is not None:
            raise InputError(f"image={image!r}: {path.name} is an image already. Leave one of them out.")
        return pp.tile_tissue(path, um_per_px=um_per_px, name=name, **laid), {}
    from anndata import AnnData

    from st_gchb import io

    # An existing file is the full-resolution image, which Space Ranger does not copy; else it is an element's name.
    file = image if image is not None and os.path.isfile(image) else None
    section = io.read_section(path, image=file, um_per_px=um_per_px if file else None)
    where: dict[str, Any] = {"image": None if file else image, "um_per_px": um_per_px}
    asked = [key for key, value in (("spacing", spacing_um), ("region of interest", roi)) if value is not None]
    own = isinstance(section, AnnData) or (spacing_um is None and len(section.shapes) > 0)
    if own and asked:
        raise InputError(
            f"a {' and a '.join(asked)} was given: positions are laid on a slide, and {path.name} brings its own. "
            "Leave it out, or pass the image itself as the slide."
        )
    if own:
        return section, where
    pp.tile_tissue(section, name=_GRID, overwrite=True, **where, **laid)
    return section, {"table": f"{_GRID}_table", "image": where["image"]}


T = TypeVar("T")

_kept: dict[str, tuple[Any, Any]] = {}
"""Cache of this process: the last model and the last encoder, which serve many slides, with their keys."""


def keep(kind: str, key: Any, make: Callable[[], T]) -> T:
    """Return the cached object of a kind if its key matches; otherwise make it and replace the cached one.

    Parameters
    ----------
    kind
        Kind of object; one of each kind is cached.
    key
        Key that identifies the object.
    make
        Function that makes the object.

    Returns
    -------
    T
        The object.
    """
    if kind not in _kept or _kept[kind][0] != key:
        # The old object is released first, since two of them may not fit in memory.
        _kept.pop(kind, None)
        _kept[kind] = key, make()
    found: T = _kept[kind][1]
    return found


class Seconds(dict[str, float]):
    """Seconds spent in each part of the work on a slide."""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the duration of the ``with`` block to a part."""
        start = time.perf_counter()
        yield
        self[part] = round(self.get(part, 0.0) + time.perf_counter() - start, 3)


class Step(Protocol):
    """Computation to apply to each slide of a call."""

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that change the result, as values for JSON."""
        ...

    @property
    def needs(self) -> list[str]:
        """Files and folders that every worker must see."""
        ...

    def make(self, slide: Slide, path: Path, seconds: Seconds) -> AnnData:
        """Compute the result of one slide and write it to a file as a whole, with the seconds spent in each part."""
        ...


@dataclass(frozen=True)
class Grid:
    """Options of the grid on slides without spots, see :func:`~st_gchb.pp.tile_tissue`."""

    grid: str
    tissue: str
    min_tissue: float


@dataclass(frozen=True)
class Reading:
    """Options for reading and encoding slides, of which only ``grid`` changes the result.

    Parameters
    ----------
    grid
        Options of the grid on slides without spots.
    weights
        Path of the encoder's weights, if they have moved; of several encoders, one for each, None where it has not.
    device
        Name of the torch device.
    memory_mb
        Limit on the decoded pixels in memory, MB.
    """

    grid: Grid
    weights: str | None | tuple[str | None, ...]
    device: str
    memory_mb: float

    @property
    def needs(self) -> list[str]:
        """Files that every worker must see."""
        several = self.weights if isinstance(self.weights, tuple) else (self.weights,)
        return [path for path in several if path is not None and not is_default(path)]

    def resolve(self, slide: Slide) -> tuple[Resolved, float | None]:
        """Read a slide and resolve its spots and images.

        Parameters
        ----------
        slide
            The slide.

        Returns
        -------
        tuple
            The resolved slide, and the size of a full-resolution pixel, µm, if the caller gave it, else ``None``.
        """
        from st_gchb.io import is_spatialdata
        from st_gchb.pp import resolve

        given = {key: getattr(slide, key) for key in ("name", "image", "um_per_px", "spacing_um")}
        query, where = read_query(Path(slide.path), **given, **vars(self.grid))
        size = where.pop("um_per_px", None)
        return resolve(query, **where, thumbnails=is_spatialdata(query)), size

    def encoding(self, maps: str | None = None) -> FeatureOptions:
        """Return the options with which patches are encoded.

        Features are not cached, since the result of the slide is stored.

        Parameters
        ----------
        maps
            Folder for the feature maps before the encoder's last stage, if the specification includes them.
        """
        from st_gchb.pp.patches import FeatureOptions

        return FeatureOptions(
            build=self.encoders,
            device=self.device,
            memory_mb=self.memory_mb,
            on_damage="nan",
            cache=maps is not None,
            cache_dir=maps,
        )

    def encoders(self, rule: FeatureSet) -> list[Encoder]:
        """Return the encoders of feature specifications, built once per process."""
        from st_gchb.pp.patches import encoders_of_set

        names = tuple((spec.encoder, spec.weights_sha256) for spec in rule.encoders)
        return keep("encoder", (names, self.weights, self.device), lambda: encoders_of_set(rule, weights=self.weights))


@dataclass(frozen=True)
class Embed:
    """Step that computes patch features, in ``obsm["X_patch"]``."""

    rule: FeatureSet
    reading: Reading

    @property
    def settings(self) -> dict[str, Any]:
        # The path of the weights does not change the result; their hash identifies them.
        rule = {key: value for key, value in self.rule.to_dict().items() if key != "weights"}
        return {"what": "features", "rule": rule, "grid": vars(self.reading.grid)}

    @property
    def needs(self) -> list[str]:
        return self.reading.needs

    def make(self, slide: Slide, path: Path, seconds: Seconds) -> AnnData:
        from st_gchb.pp.patches import features_like

        with seconds.of("read"):
            resolved, size = self.reading.resolve(slide)
        with seconds.of("encode"):
            slices = resolved.slices(um_per_px=size)
            features_like(slices, self.rule, self.reading.encoding()).write_to(resolved.adata, Keys.FEATURES)
        with seconds.of("write"), write_whole(path) as part:
            resolved.adata.write_h5ad(part)
        return resolved.adata


@dataclass(frozen=True)
class Predict:
    """Step that predicts expression with :meth:`st_gchb.model.STGCHB.predict`."""

    folder: str
    model_id: str
    layer: str | None
    k: int | None
    weighting: Any
    reading: Reading

    @property
    def settings(self) -> dict[str, Any]:
        asked = {key: getattr(self, key) for key in ("model_id", "layer", "k", "weighting")}
        return {"what": "prediction", **asked, "grid": vars(self.reading.grid)}

    @property
    def needs(self) -> list[str]:
        return [self.folder, *self.reading.needs]

    def model(self) -> Predictor:
        """Return the model, loaded once per process.

        Raises
        ------
        ModelFileError
            The folder holds another model than at the start of the call.
        """
        from st_gchb.model import load_predictor

        device = self.reading.device
        key = (self.folder, self.model_id, device)
        model: Predictor = keep("model", key, lambda: load_predictor(self.folder, device=device))
        if model.model_id != self.model_id:
            _kept.pop("model")
            raise ModelFileError(
                f"{self.folder} holds the model {model.model_id} now; the call began with {self.model_id}. Put it "
                "back, or call again."
            )
        return model

    def make(self, slide: Slide, path: Path, seconds: Seconds) -> AnnData:
        from st_gchb.model import predict, prepare_query

        with seconds.of("load"):
            parts = self.model().parts
        rule = parts.rules.features
        with seconds.of("read"):
            resolved, size = self.reading.resolve(slide)
        with_maps = rule is not None and rule.feature_maps
        with TemporaryDirectory(prefix="st_gchb_") if with_maps else nullcontext() as maps:
            with seconds.of("encode"):
                encoding = self.reading.encoding(maps)
                query = prepare_query(resolved, parts.rules, um_per_px=size, encoding=encoding)
            with seconds.of("predict"):
                return predict(parts, query, self.layer, self.k, self.weighting, return_neighbors=False, out=path)
