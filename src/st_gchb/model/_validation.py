"""Validate and complete a table before it is registered."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._counts import Remedy
from st_gchb._errors import EncoderError, GraphError, InputError, MissingKeyError, SliceError
from st_gchb._matrices import is_chunked, matrix_of
from st_gchb.io import Sections, column_of, hand_on_libraries, placed_sections, spot_centers
from st_gchb.pp import embed_patches, resolve, spatial_graph
from st_gchb.pp.expression import read_expression, tell_expression
from st_gchb.pp.graph import check_lengths, graph_of, rule_of
from st_gchb.pp.patches import FeatureRows, check_made, feature_keys, made_key, was_on_image
from st_gchb.pp.spots import check_positions

if TYPE_CHECKING:
    from spatialdata import SpatialData

_LEAST_SPOTS = 4
"""Spots of a reference at least: calibration leaves half of them out, and a slice has two."""

_LARGEST_FEATURE = 1e12
"""No encoder gives larger features, and their squares are still numbers of 32 bits."""


_CONNECTIVITIES = "_connectivities"
"""Ending of the key that a graph gets."""
_RECORD = "_neighbors"
"""Ending of the key in ``uns`` of a graph's record, which squidpy writes too."""


@dataclass(frozen=True)
class Registered:
    """Arguments of the set-up call: where the parts of an AnnData lie."""

    layer: str | None
    slice_key: str | None
    patient_key: str | None
    log_normalized: bool
    features_key: str
    connectivities_key: str


def check_names(adata: AnnData) -> None:
    """Refuse names of spots or genes that are no text or occur twice: results are matched by name, and stored by it.

    Raises
    ------
    InputError
        With what was found, and the call that mends it.
    """
    for axis, names, remedy in (
        ("obs_names", adata.obs_names, "adata.obs_names_make_unique()"),
        ("var_names", adata.var_names, "adata.var_names_make_unique()"),
    ):
        _check_text(axis, names)
        if not names.is_unique:
            twice = list(names[names.duplicated()].unique()[:3])
            raise InputError(f"{axis} are not unique: {twice} occur more than once. Call {remedy} first.")


def _check_text(axis: str, names: pd.Index) -> None:
    """Refuse names that are no text: they would come back from a file as others than they were."""
    # Of names that are all text, as almost always, none is looked at in Python.
    if pd.api.types.infer_dtype(names.astype(object), skipna=False) in ("string", "empty"):
        try:
            "".join(names).encode()
        except UnicodeEncodeError:
            # Half of a character, as files read with the wrong encoding leave it.
            odd = [name for name in names if name != name.encode(errors="replace").decode()]
            raise InputError(
                f"{axis} holds {len(odd)} names that no file can hold, such as {odd[0]!r}: they are no valid Unicode. "
                f"Call adata.{axis} = [name.encode(errors='replace').decode() for name in adata.{axis}] first."
            ) from None
        return
    odd = [name for name in names if not isinstance(name, str)]
    remedy = f"adata.{axis} = adata.{axis}.astype(str)"
    if any(isinstance(name, bytes) for name in odd):
        remedy = f"adata.{axis} = [name.decode() for name in adata.{axis}]"
    elif any(pd.isna(name) for name in odd if np.ndim(name) == 0):
        remedy = (
            f"adata = adata[:, adata.{axis}.notna()].copy()"
            if axis == "var_names"
            else (f"adata = adata[adata.{axis}.notna()].copy()")
        )
    raise InputError(
        f"{axis} holds {len(odd)} names that are no text, such as {odd[0]!r} ({type(odd[0]).__name__}); expected "
        f"strings. Call {remedy} first."
    )


def guess_patient_key(adata: AnnData, patient_key: str | None) -> str | None:
    """Find the column that names the patient: as given, else ``"patient"`` where there is one, else none.

    Raises
    ------
    MissingKeyError
        If the column is not there.
    """
    if patient_key is None:
        if Keys.PATIENT not in adata.obs:
            return None
        patient_key = Keys.PATIENT
    column_of(adata, patient_key, "patient_key", MissingKeyError)
    return patient_key


def check_training_table(adata: AnnData, where: Registered) -> None:
    """All checks that need no image, before anything is computed or written.

    Raises
    ------
    InputError, MissingKeyError
        Or a subclass; see the single checks.
    """
    check_names(adata)
    sections = placed_sections(adata, where.slice_key)
    if not was_on_image(adata, where.features_key, sections.centers):
        check_positions(sections.centers, adata.obs_names)
    sections.check_at_least(2, "training needs")
    remedy = Remedy(adata, where.layer, "pass layer={!r}", "log_normalized=True")
    values = read_expression(adata, where.layer, log_normalized=where.log_normalized, remedy=remedy)
    tell_expression(adata, where.layer, values, log_normalized=where.log_normalized)
    if adata.n_obs < _LEAST_SPOTS:
        raise SliceError(f"The reference has {adata.n_obs} spots; expected at least {_LEAST_SPOTS}. Pass whole slices.")
    if where.features_key in adata.obsm:
        check_features(adata, where.features_key)
        check_made(adata, where.features_key, sections, "Run st_gchb.pp.embed_patches again, then set up again.")
    if where.connectivities_key in adata.obsp:
        check_graph(adata, where.connectivities_key, sections)
    elif not where.connectivities_key.endswith(_CONNECTIVITIES):
        raise MissingKeyError(
            f"obsp has no {where.connectivities_key!r} (connectivities_key); found {list(adata.obsp)}. Name a "
            f"graph that is there, or a key that ends in {_CONNECTIVITIES!r}: the graph is then made, such as "
            f"{where.connectivities_key + _CONNECTIVITIES!r}."
        )


def check_features(adata: AnnData, key: str) -> None:
    """Refuse features that are no finite matrix.

    Raises
    ------
    EncoderError
        With the shape or the number of bad rows.
    """
    shape: tuple[int, ...] = () if sparse.issparse(adata.obsm[key]) else np.shape(adata.obsm[key])
    if len(shape) != 2 or shape[1] < 1:
        raise EncoderError(f"obsm[{key!r}] has shape {shape}; expected (n_spots, n_features).")
    check_unmasked(adata, key)
    kind = np.dtype(getattr(adata.obsm[key], "dtype", np.float64)).kind
    if key in adata.uns and kind in "iub":
        # A user's own features may be whole numbers: nothing in uns says that this package made those.
        raise EncoderError(
            f"obsm[{key!r}] holds {adata.obsm[key].dtype}, and st_gchb.pp.embed_patches, which made it by "
            f"uns[{key!r}], writes float32: the numbers were rounded since. Run it again."
        )
    if not is_chunked(adata.obsm[key]):
        # Text, dates and complex numbers would be read as float32 too.
        matrix_of(adata.obsm[key], f"obsm[{key!r}]", EncoderError)
    bad = huge = 0
    for _, block in FeatureRows(adata.obsm[key]).blocks():
        bad += int((~np.isfinite(block).all(1)).sum())
        huge += int((np.abs(block) > _LARGEST_FEATURE).any(1).sum())
    if bad or huge:
        what = "NaN or infinite values" if bad else f"values beyond {_LARGEST_FEATURE:.0e}, which no encoder gives,"
        raise EncoderError(f"obsm[{key!r}] has {what} in {bad or huge} spots. Run st_gchb.pp.embed_patches again.")


def check_unmasked(adata: AnnData, key: str) -> None:
    """Refuse features of which some are masked: every copy, and every view, forgets the mask.

    Raises
    ------
    EncoderError
        With the number of spots.
    """
    if np.ma.is_masked(adata.obsm[key]):
        n = int(np.ma.getmaskarray(adata.obsm[key]).reshape(adata.n_obs, -1).any(axis=1).sum())
        raise EncoderError(f"obsm[{key!r}] is masked in {n} spots. Run st_gchb.pp.embed_patches again.")


def check_graph(adata: AnnData, key: str, sections: Sections) -> None:
    """Refuse a graph that is not symmetric, joins spots of two slices, or was made at other positions.

    Raises
    ------
    GraphError
        With the number of edges concerned.
    StaleError
        Spots have moved since the graph was made.
    """
    graph = graph_of(adata, key)
    if (graph != graph.T).nnz:
        raise GraphError(f"obsp[{key!r}] is not symmetric. Build it with st_gchb.pp.spatial_graph, or symmetrize it.")
    if sections.key is not None:
        coo = graph.tocoo()
        across = int((sections.names[coo.row] != sections.names[coo.col]).sum())
        if across:
            raise GraphError(
                f"obsp[{key!r}] has {across} edges between different slices of obs[{sections.key!r}]. "
                "Build it with st_gchb.pp.spatial_graph(adata, slice_key=...)."
            )
    check_lengths(adata, key)


def check_rule(adata: AnnData, where: Registered, um_per_px: Any = None) -> None:
    """Refuse a graph whose rule is not known: a query's graph could not be built the same way.

    Parameters
    ----------
    adata
        Spots with their positions, and with their graph where there is one already.
    where
        Where its parts lie.
    um_per_px
        Size of a pixel of the slices, µm, where the caller gave it.

    Raises
    ------
    GraphError
        Or a subclass; see :func:`~st_gchb.pp.graph.rule_of`.
    """
    if where.connectivities_key in adata.obsp:
        rule_of(adata, where.connectivities_key, where.slice_key, um_per_px, where.features_key)


@contextmanager
def kept_on_error(adata: AnnData) -> Iterator[None]:
    """Take away what a block has added to an object where the block ends with an error."""
    mappings = {name: dict(getattr(adata, name)) for name in ("obsm", "obsp", "uns")}
    columns = list(adata.obs.columns)
    try:
        yield
    except BaseException:
        for name, before in mappings.items():
            target = getattr(adata, name)
            for key in [key for key in target if key not in before]:
                del target[key]
            for key, value in before.items():
                if key not in target or target[key] is not value:
                    target[key] = value
        for column in [column for column in adata.obs.columns if column not in columns]:
            del adata.obs[column]
        raise


def complete_table(adata: AnnData, where: Registered) -> set[str]:
    """Make features and graph where they are absent, never a second time; all of it is written, or nothing.

    Returns the keys of what was made.
    """
    made = AnnData(obs=adata.obs[[]].copy() if where.slice_key is None else adata.obs[[where.slice_key]].copy())
    made.obsm[Keys.SPATIAL] = spot_centers(adata)
    for key in feature_keys(adata, where.features_key):
        made.obsm[key] = adata.obsm[key]
    for key in (Keys.SPATIAL, where.features_key):
        if key in adata.uns:
            made.uns[key] = adata.uns[key]
    key = where.features_key
    fresh: set[str] = set()
    if key not in adata.obsm:
        embed_patches(made, slice_key=where.slice_key, key_added=key)
        fresh = {name for name in made.obsm if name in (key, made_key(key))} | {key}
    if where.connectivities_key not in adata.obsp:
        prefix = where.connectivities_key.removesuffix(_CONNECTIVITIES)
        spatial_graph(made, slice_key=where.slice_key, key_added=prefix, features_key=key)
        fresh |= {*made.obsp, f"{prefix}{_RECORD}"}
    copy_results(made, adata, fresh)
    return fresh


def complete_spatialdata(
    sdata: SpatialData, names: dict[str, Any], embedding: dict[str, Any], setup: dict[str, Any]
) -> tuple[AnnData, Registered]:
    """Make positions, features and graph of a SpatialData's table where they are absent.

    Parameters
    ----------
    sdata
        Object with image, spots and table.
    names
        ``table``, ``image`` and ``shapes``, as :func:`~st_gchb.pp.resolve` takes them.
    embedding
        As :func:`~st_gchb.pp.embed_patches` takes them.
    setup
        As :meth:`st_gchb.model.STGCHB.setup_anndata` takes them.

    Returns
    -------
    table
        The SpatialData's own table, completed.
    where
        Where its parts lie.
    """
    resolved = resolve(sdata, **names, thumbnails=True)
    if resolved.table is None:
        raise MissingKeyError(
            "The SpatialData has no table that annotates spots, so there is no expression to learn from."
        )
    light, key = resolved.adata, setup.get("slice_key") or resolved.slice_key
    if light.n_obs != resolved.table.n_obs:
        raise SliceError(
            f"the table has {resolved.table.n_obs} rows, and {light.n_obs} of them are of the spots that were asked "
            "for. Leave shapes= out, or cut the others off the table first."
        )
    for name, graph in resolved.table.obsp.items():
        light.obsp[name] = graph
    for name, record in resolved.table.uns.items():
        # Directed graphs of squidpy are read as symmetric ones by it. Lengths in our own record may be in other px.
        if name.endswith(_RECORD) and isinstance(record, Mapping) and "coord_type" in record.get("params", ()):
            light.uns[name] = record
    where = Registered(
        layer=setup.get("layer"),
        slice_key=key,
        patient_key=guess_patient_key(light, setup.get("patient_key")),
        log_normalized=setup.get("log_normalized", False),
        features_key=embedding["key_added"],
        connectivities_key=setup.get("connectivities_key", Keys.CONNECTIVITIES),
    )
    check_training_table(light, where)
    check_rule(_graph_alone(resolved.table, light, where), where, embedding["um_per_px"])
    fresh: set[str] = set()
    if where.features_key not in light.obsm:
        embed_patches(light, image=resolved.images, slice_key=key, **embedding)
        fresh = {*feature_keys(light, where.features_key)}
    fresh |= complete_table(light, where)
    copy_results(light, resolved.table, fresh)
    return resolved.table, where


def _graph_alone(table: AnnData, light: AnnData, where: Registered) -> AnnData:
    """Take the graph of a table with its record, at the table's own positions, which may be in px of another image."""
    graph = AnnData(obs=light.obs.copy())
    graph.obsm[Keys.SPATIAL] = spot_centers(table if Keys.SPATIAL in table.obsm else light)
    hand_on_libraries(light, graph)
    if where.connectivities_key in table.obsp:
        graph.obsp[where.connectivities_key] = table.obsp[where.connectivities_key]
    record = where.connectivities_key.removesuffix(_CONNECTIVITIES) + _RECORD
    if record in table.uns:
        graph.uns[record] = table.uns[record]
    for key in (where.features_key, made_key(where.features_key)):
        if key in light.obsm:
            graph.obsm[key] = light.obsm[key]
        if key in light.uns:
            graph.uns[key] = light.uns[key]
    return graph


def registered_table(sdata: SpatialData) -> AnnData:
    """Find the table of a SpatialData that was set up.

    Raises
    ------
    MissingKeyError
        If it has none.
    """
    # scvi-tools leaves its mark on what was set up: of several tables that is the one.
    marked = [table for table in sdata.tables.values() if "_scvi_uuid" in table.uns]
    table = marked[0] if len(marked) == 1 else resolve(sdata).table
    if table is None:
        raise MissingKeyError("The SpatialData has no table. Call STGCHB.setup_spatialdata(sdata, table=...) first.")
    return table


def copy_results(made: AnnData, adata: AnnData, fresh: Collection[str]) -> None:
    """Hand over what was made and is not there yet; what was made anew also takes the place of what is left of old."""
    for mapping in ("obsm", "obsp", "uns"):
        target = getattr(adata, mapping)
        for key, value in getattr(made, mapping).items():
            if key not in target or key in fresh:
                target[key] = value
