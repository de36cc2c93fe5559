"""Read a section from disk, after identifying its format by the content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from st_gchb._arguments import PixelSize, checked
from st_gchb._errors import ImageError, InputError, MissingFileError
from st_gchb.io._pixel_size import positive
from st_gchb.io.images import open_image
from st_gchb.io.sections._annotated import HDF5_START, hdf5_kind, read_annotated, read_spatialdata, zarr_kind
from st_gchb.io.sections._companions import anndata_files, choose_anndata
from st_gchb.io.sections._hest import choose_sample, find_release, read_hest, sample_at, samples_of
from st_gchb.io.sections._legacy_folder import holds_counts, is_legacy, legacy_names, read_legacy
from st_gchb.io.sections._read_lazyslide import read_lazyslide
from st_gchb.io.sections._spaceranger import find_outputs
from st_gchb.io.sections._visium import read_visium

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

EXPECTED = (
    "Expected a Space Ranger output folder (Visium: filtered_feature_bc_matrix.h5 and spatial/; Visium HD: "
    "binned_outputs/), a .zarr store of SpatialData or LazySlide, an AnnData .h5ad file, a folder of HEST-1k (st/, "
    "wsis/, metadata/), or a folder of legacy ST (a table of counts, a table of spots, an image)."
)


@checked
def read_section(
    path: str | Path,
    *,
    name: str | None = None,
    image: str | Path | None = None,
    um_per_px: PixelSize | None = None,
    genome: str | None = None,
    allow_missing: bool = False,
) -> SpatialData | AnnData:
    """Read a section from disk; its format is identified by the content.

    Parameters
    ----------
    path
        Space Ranger's output folder for Visium (with ``tissue_positions_list.csv`` or ``tissue_positions.csv``,
        including CytAssist) or Visium HD: ``outs``, or its parent folder. For Visium HD the 8 µm bins are read, or the
        bins whose folder is given, such as ``outs/binned_outputs/square_016um``. Or a SpatialData store, an AnnData
        file or store, or a folder of legacy Spatial Transcriptomics. Or HEST-1k: the folder of the release, with the
        id of a sample as ``name``, or the file ``st/TENX95.h5ad`` in it. Or a LazySlide store, whose tiles
        :func:`read_lazyslide` reads.
    name
        Name of the section; by default the name of the folder or file. For a legacy folder or a folder of HEST-1k with
        several sections, the section to read.
    image
        Full-resolution H&E image, in any format that :func:`open_image` reads. By default the one in the folder, else
        Space Ranger's down-scaled image.
    um_per_px
        Pixel size of the full-resolution image, µm. Takes precedence over the files, with a warning if they disagree.
    genome
        Genome to keep from a table with genes of several genomes, such as ``"GRCh38"``; by default all are kept, with
        a warning. Features that are not genes, such as antibodies, are always dropped.
    allow_missing
        Read the spots that are in all files, however many lack counts or a position. By default a section that lacks
        more than a tenth is refused; fewer are dropped with a warning. A HEST-1k sample is then also read without its
        whole-slide image, with the down-scaled one.

    Returns
    -------
    SpatialData or AnnData
        SpatialData for SpatialData stores and for Space Ranger's folders, in spatialdata-io's layout, with the image
        ``<name>_full_image``, which is read lazily. AnnData for the other formats, with counts in ``X``, positions in
        ``obsm["spatial"]`` and the path of the image in ``uns["spatial"]``. Both can be passed directly to
        :class:`st_gchb.model.STGCHB` and :meth:`~st_gchb.model.STGCHB.predict`. A HEST-1k sample has its metadata in
        ``uns["spatial"][name]["metadata"]``, and ``organism``, ``tissue``, ``patient`` and ``technology`` in ``obs``
        as far as they are known; ``obs["has_patch"]`` tells which spots are on tissue, if ``patches/`` is there.

    Raises
    ------
    MissingFileError
        The path does not exist, or a file of the folder is missing.
    InputError
        The format is not supported, a file is damaged, or the files do not belong together.
    ScaleError
        ``um_per_px`` is not a positive number; or the files of a HEST-1k sample state two sizes of a pixel.

    Examples
    --------
    >>> import st_gchb
    >>> sdata = st_gchb.io.read_section("sample/outs", image="sample.tif")  # doctest: +SKIP
    >>> adata = st_gchb.io.read_section("hest", name="TENX95")  # doctest: +SKIP
    """
    size = None if um_per_px is None else positive(um_per_px, "um_per_px")
    image_path = None if image is None else Path(image)
    return open_section(Path(path), name, image_path, size, genome=genome, allow_missing=allow_missing)


def open_section(
    path: Path,
    name: str | None,
    image: Path | None,
    um_per_px: float | None,
    *,
    genome: str | None = None,
    allow_missing: bool = False,
    counts: bool = True,
) -> SpatialData | AnnData:
    """Read a section from disk as :func:`read_section`, or all of it but its counts.

    Parameters
    ----------
    path, name, image, um_per_px, genome, allow_missing
        See :func:`read_section`.
    counts
        Whether to read the values of the matrices. Without them, files are validated and spots and genes are known in
        a fraction of the time and memory; ``X`` is None or has no entries.

    Returns
    -------
    SpatialData or AnnData
        As from :func:`read_section`, which also lists the errors.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: there is no such file or folder. Check the path (now in {Path.cwd()}).")
    if path.is_file():
        return _read_file(path, name, image, um_per_px, genome=genome, allow_missing=allow_missing, counts=counts)
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder; expected one with a section in it.")
    kind = zarr_kind(path)
    if kind == "lazyslide":
        return read_lazyslide(path, name=name, image=image, um_per_px=um_per_px)
    if kind == "spatialdata":
        return read_spatialdata(path, name, image, um_per_px, counts=counts)
    if kind == "anndata":
        return read_annotated(path, name, image, um_per_px, genome=genome, counts=counts)
    outputs = find_outputs(path)
    if outputs is not None:
        return read_visium(outputs, name, image, um_per_px, genome=genome, allow_missing=allow_missing, counts=counts)
    release = find_release(path)
    if release is not None:
        sample = choose_sample(release, name)
        return read_hest(sample, None, image, um_per_px, genome=genome, allow_missing=allow_missing, counts=counts)
    files = anndata_files(path)
    if files and not holds_counts(path):
        file, label = choose_anndata(path, files, name)
        return read_annotated(file, label, image, um_per_px, genome=genome, counts=counts)
    if is_legacy(path):
        return read_legacy(path, name, image, um_per_px, allow_missing=allow_missing, counts=counts)
    raise InputError(f"{path}: found a folder with {_content(path)}. {EXPECTED}{_advice_below(path)}")


def sections_of_folder(path: Path) -> list[tuple[Path, str | None]]:
    """List the sections of a folder, with the path and the name by which each is read.

    Parameters
    ----------
    path
        A folder of HEST-1k, of AnnData files, of legacy ST, or with stores or Space Ranger folders in it.

    Returns
    -------
    list of tuple
        Path and, of HEST-1k and legacy ST, the name of the section; empty for files, stores and Space Ranger folders,
        which are sections themselves.
    """
    if not path.is_dir() or zarr_kind(path) is not None or find_outputs(path) is not None:
        return []
    release = find_release(path)
    if release is not None:
        return [(release, name) for name in samples_of(release)]
    files = anndata_files(path)
    if files and not holds_counts(path):
        return [(file, None) for file in files]
    names = legacy_names(path)
    return [(path, name) for name in names] if names else [(below, None) for below in _sections_below(path)]


def _read_file(
    path: Path,
    name: str | None,
    image: Path | None,
    um_per_px: float | None,
    *,
    genome: str | None,
    allow_missing: bool,
    counts: bool,
) -> AnnData:
    with open(path, "rb") as file:
        start = file.read(len(HDF5_START))
    if start == HDF5_START:
        kind = hdf5_kind(path)
        sample = sample_at(path)
        if kind == "anndata" and sample is not None:
            return read_hest(sample, name, image, um_per_px, genome=genome, allow_missing=allow_missing, counts=counts)
        if kind == "anndata":
            return read_annotated(path, name, image, um_per_px, genome=genome, counts=counts)
        if kind == "10x":
            raise InputError(
                f"{path}: found the counts alone of a Space Ranger output. Pass the folder that also holds spatial/: "
                f"read_section({str(path.parent)!r})."
            )
        raise InputError(f"{path}: found an HDF5 file that is neither AnnData nor a matrix of 10x. {EXPECTED}")
    try:
        open_image(path)
    except ImageError as error:
        raise InputError(f"{path}: found a file that is neither a section nor an image. {EXPECTED}") from error
    raise InputError(
        f"{path}: found an image without spots. Lay query positions on it with st_gchb.pp.tile_tissue({str(path)!r}); "
        "or pass the folder of its counts and spots here, and the image as image=."
    )


def _content(path: Path) -> str:
    names = sorted(f"{one.name}/" if one.is_dir() else one.name for one in path.iterdir())
    return (", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")) or "nothing in it"


def _advice_below(path: Path) -> str:
    below = [one.name for one in _sections_below(path)]
    return f" Sections are below it: {below[:8]}. Read them one by one." if below else ""


def _sections_below(path: Path) -> list[Path]:
    return [one for one in sorted(path.iterdir()) if one.is_dir() and (zarr_kind(one) or find_outputs(one))]
