"""What is made of a slide: its features, or its predicted expression."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingFileError, ModelFileError
from st_gchb.cohort._manifest import Slide

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from st_gchb.model import STGCHB
    from st_gchb.pp import Encoder, FeatureSpec, Resolved

    pass

SPACING_UM = 100.0
"""Distance of positions on a slide that has no spots, where none was asked for."""

_GRID = "grid"
"""Name of the positions that are laid on a slide of a SpatialData."""


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
    """The query, and how :func:`~st_gchb.pp.resolve` and the model are to find positions and image in it.

    Parameters
    ----------
    path
        An image file, a SpatialData store, an AnnData file, a folder of Space Ranger or of legacy ST.
    name
        Name of the slide, where positions are laid on an image file.
    image
        Full-resolution image file of a folder or an AnnData, or name of an image element of a store.
    um_per_px
        Size of a full-resolution pixel, µm.
    spacing_um
        Distance of positions, µm; None takes the slide's own spots where it has any, else 100.
    roi, grid
        As :func:`~st_gchb.pp.tile_tissue` takes them.

    Raises
    ------
    InputError, MissingFileError
        It is not there, cannot be read, or an option does not fit it.
    """
    from st_gchb import pp

    if not os.path.exists(path):
        raise MissingFileError(f"{path}: there is no such file or folder.")
    laid = {"spacing_um": spacing_um or SPACING_UM, "roi": roi, **grid}
    if path.is_file() and path.suffix != ".h5ad":
        if image is not None:
            raise InputError(f"image={image!r}: {path.name} is an image already. Leave one of them out.")
        return pp.tile_tissue(path, um_per_px=um_per_px, name=name, **laid), {}
    from anndata import AnnData

    from st_gchb import io

    # A file is the full-resolution image, which Space Ranger keeps no copy of; else it is an element's name.
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
"""What this process loaded last: a model and an encoder are for many slides."""


def keep(kind: str, key: Any, make: Callable[[], T]) -> T:
    """What was made under a key in this process, or is made now; one of a kind is held."""
    if kind not in _kept or _kept[kind][0] != key:
        # Two of them at once may be more than the memory holds.
        _kept.pop(kind, None)
        _kept[kind] = key, make()
    found: T = _kept[kind][1]
    return found


class Seconds(dict[str, float]):
    """Time spent, by part."""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the block to a part."""
        start = time.perf_counter()
        yield
        self[part] = round(self.get(part, 0.0) + time.perf_counter() - start, 3)


class Step(Protocol):
    """What is made of each slide of a call."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes the result, as JSON takes it."""
        ...

    @property
    def needs(self) -> list[str]:
        """Files and folders that every worker has to see."""
        ...

    def make(self, slide: Slide, seconds: Seconds) -> AnnData:
        """Make the result of one slide."""
        ...


@dataclass(frozen=True)
class Grid:
    """How positions are laid on slides that have none, as :func:`~st_gchb.pp.tile_tissue` takes it."""

    grid: str = "hex"
    tissue: str = "stain"
    min_tissue: float = 0.5


@dataclass(frozen=True)
class Reading:
    """How slides are read and encoded; of the rest, ``grid`` alone changes the result.

    Parameters
    ----------
    grid
        How positions are laid.
    weights
        Path of the encoder's weights, where it has moved.
    device
        As torch names it.
    memory_mb
        Bound of the decoded pixels that are held.
    """

    grid: Grid
    weights: str | None
    device: str
    memory_mb: float

    @property
    def needs(self) -> list[str]:
        """Files that every worker has to see."""
        return [] if self.weights in (None, "default") else [str(self.weights)]

    def resolve(self, slide: Slide) -> tuple[Resolved, float | None]:
        """Spots and images of a slide, and the size of its pixels as far as the caller gave it."""
        from spatialdata import SpatialData

        from st_gchb.pp import resolve

        given = {key: getattr(slide, key) for key in ("name", "image", "um_per_px", "spacing_um")}
        query, where = read_query(Path(slide.path), **given, **vars(self.grid))
        size = where.pop("um_per_px", None)
        return resolve(query, **where, thumbnails=isinstance(query, SpatialData)), size

    def encode(
        self, resolved: Resolved, rule: FeatureSpec, key: str, slice_key: str | None, size: Any, maps: str | None = None
    ) -> None:
        """Write features to the spots; they are not cached, since the result is kept.

        ``maps`` is a folder for the maps before the trunk's last stage, where the rule asks for them.
        """
        from st_gchb.pp import embed_patches_like

        embed_patches_like(
            resolved.adata,
            rule,
            encoder=self.encoder(rule),
            image=resolved.images,
            slice_key=slice_key,
            um_per_px=size,
            key_added=key,
            memory_mb=self.memory_mb,
            device=self.device,
            on_damage="nan",
            cache=maps is not None,
            cache_dir=maps,
        )

    def encoder(self, rule: FeatureSpec) -> Encoder:
        """The encoder of a rule, built once in a process."""
        from st_gchb.pp.patches import encoder_of_spec

        key = (rule.encoder, rule.weights_sha256, self.weights, self.device)
        return keep("encoder", key, lambda: encoder_of_spec(rule, weights=self.weights))


@dataclass(frozen=True)
class Embed:
    """Features of the patches, in ``obsm["X_patch"]``."""

    rule: FeatureSpec
    reading: Reading

    @property
    def settings(self) -> dict[str, Any]:
        # Where the weights lie is of no account, what they are is in the hash.
        rule = {key: value for key, value in self.rule.to_dict().items() if key != "weights"}
        return {"what": "features", "rule": rule, "grid": vars(self.reading.grid)}

    @property
    def needs(self) -> list[str]:
        return self.reading.needs

    def make(self, slide: Slide, seconds: Seconds) -> AnnData:
        with seconds.of("read"):
            resolved, size = self.reading.resolve(slide)
        with seconds.of("encode"):
            self.reading.encode(resolved, self.rule, Keys.FEATURES, resolved.slice_key, size)
        return resolved.adata


@dataclass(frozen=True)
class Predict:
    """Predicted expression, as :meth:`st_gchb.model.STGCHB.predict` gives it."""

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

    def model(self) -> STGCHB:
        """The model, loaded once in a process.

        Raises
        ------
        ModelFileError
            The folder holds another model by now.
        """
        from st_gchb.model import STGCHB

        accelerator = {"cuda": "gpu"}.get(self.reading.device, self.reading.device)
        key = (self.folder, self.model_id, accelerator)
        model: STGCHB = keep("model", key, lambda: STGCHB.load(self.folder, accelerator=accelerator))
        if model.model_id_ != self.model_id:
            _kept.pop("model")
            raise ModelFileError(
                f"{self.folder} holds the model {model.model_id_} now; the call began with {self.model_id}. Put it "
                "back, or call again."
            )
        return model

    def make(self, slide: Slide, seconds: Seconds) -> AnnData:
        from st_gchb.pp.graph import check_reach
        from st_gchb.pp.patches import has_features
        from st_gchb.pp.spots import sections_of

        with seconds.of("load"):
            model = self.model()
        rules: Any = model.rules_
        with_maps = rules.features is not None and rules.features.feature_maps
        with seconds.of("read"):
            resolved, size = self.reading.resolve(slide)
            adata = resolved.adata
            key = resolved.slice_key or (rules.slice_key if rules.slice_key in adata.obs else None)
            key = sections_of(adata, key).key
            there = rules.features is None or has_features(adata, rules.features_key, maps=with_maps)
            if not there:
                # Patches take minutes: what makes a graph impossible is told before.
                check_reach(resolved.slices(slice_key=key, um_per_px=size), rules.graph)
        with TemporaryDirectory(prefix="st_gchb_") if with_maps else nullcontext() as maps:
            if not there:
                with seconds.of("encode"):
                    self.reading.encode(resolved, rules.features, rules.features_key, key, size, maps)
            with seconds.of("predict"):
                options = {"layer": self.layer, "k": self.k, "weighting": self.weighting}
                return model.predict(adata, slice_key=key, um_per_px=size if there else None, **options)
