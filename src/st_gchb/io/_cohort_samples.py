"""Samples of a cohort: find the sections that rows name, open each, and validate all of it but the counts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb._advice import standing_at
from st_gchb._constants import Keys
from st_gchb._errors import ImageError, InputError, MissingFileError, MissingKeyError, ScaleError, STGCHBError
from st_gchb._genes import without_genome
from st_gchb._logging import logger
from st_gchb.io._library import Library, libraries_of, put_libraries
from st_gchb.io._pixel_size import Size, factor_size, spot_sizes
from st_gchb.io._sample_sheet import SampleRow, check_different, check_name, check_paths
from st_gchb.io._sections import placed_sections
from st_gchb.io._spatialdata_spots import locate_spots
from st_gchb.io.images import is_image_path, open_image
from st_gchb.io.sections import file_of_sample, is_spatialdata_store, open_section, sections_of_folder

if TYPE_CHECKING:
    from spatialdata import SpatialData

MADE = f"{Keys.FEATURES}_made"
"""Key in ``obsm`` of the provenance of patch features."""
_KINDS = ("hires", "lowres")
_HER2ST = re.compile(r"[A-H][1-6]")
"""Names of her2st's sections, of which the letter is the patient."""
_BINS = re.compile(r"square_\d{3}um")


@dataclass(frozen=True)
class Section:
    """A section on disk that a row names.

    Parameters
    ----------
    row
        The row.
    path
        Path to read.
    name
        Name by which one of several sections at the path is read; None if there is one.
    """

    row: SampleRow
    path: Path
    name: str | None = None

    @property
    def label(self) -> str:
        """The row and, where it names several, the section; for messages."""
        if self.row.sample is not None or (self.name is None and self.path == self.row.path):
            return self.row.label
        return f"{self.row.where}, section {self.name or name_of(self.path)!r}"


@dataclass(frozen=True)
class Sample:
    """A sample of a cohort, validated: one slice of a section.

    Parameters
    ----------
    name
        Name of the sample.
    section
        Section that holds it.
    slice
        Name of the slice within the section.
    genes
        Names of the genes of the section.
    n_spots
        Number of spots of the slice.
    patient
        Patient; None if unknown.
    features
        Hash of the specification of patch features that the section holds; None if it holds none.
    """

    name: str
    section: Section
    slice: str
    genes: pd.Index = field(repr=False)
    n_spots: int
    patient: str | None = None
    features: float | None = None

    @property
    def label(self) -> str:
        """The row with the name of the sample, for messages."""
        return f"{self.section.row.where} (sample {self.name!r})"


@dataclass(frozen=True)
class Options:
    """Options with which all sections are read, see :func:`~st_gchb.io.read_section`."""

    genome: str | None = None
    allow_missing: bool = False


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Add the row of a sheet to the message of every error of this package, and to advice the columns of a sheet."""
    columns = {"image": "the column 'image'", "um_per_px": "the column 'um_per_px'"}
    try:
        with standing_at("read_cohort", **columns):
            yield
    except STGCHBError as error:
        said = str(error)
        row = label.partition(" (sample ")[0]
        raise type(error)(said if said.startswith(row) else f"{label}: {said}") from error


def find_sections(rows: Sequence[SampleRow]) -> list[Section]:
    """Find the sections that rows name: one each, or all of a folder that holds several.

    Parameters
    ----------
    rows
        Rows of a sheet, or paths. A path of a folder with several sections and one more name, such as
        ``hest/TENX95``, is that section.

    Returns
    -------
    list[Section]
        The sections, in the order of the rows.

    Raises
    ------
    MissingFileError, InputError
        A path is missing; the sample of a row is none of a folder's; or a row for several sections has an image.
    """
    found: list[Section] = []
    for row in rows:
        with naming(row.label):
            inner = None if row.path.exists() else _section_named(row.path)
            if inner is not None:
                found.append(Section(row, *inner))
                continue
            check_paths([row])
            found += _sections_at(row)
    return found


def _section_named(path: Path) -> tuple[Path, str | None] | None:
    """Find the section that the last part of a path names in the folder before it; None if there is none."""
    several = sections_of_folder(path.parent) if path.parent.is_dir() else []
    return next((one for one in several if (one[1] or name_of(one[0])) == path.name), None)


def _sections_at(row: SampleRow) -> list[Section]:
    several = sections_of_folder(row.path)
    if len(several) < 2:
        return [Section(row, several[0][0] if several else row.path)]
    names = [name or name_of(path) for path, name in several]
    if row.sample is not None:
        if row.sample not in names:
            raise InputError(
                f"{row.path} holds {len(names)} sections, {names[:8]}, and none is {row.sample!r}. Name one of them in "
                "the column 'sample', or leave it empty for all."
            )
        return [Section(row, *several[names.index(row.sample)])]
    if row.image is not None:
        raise InputError(
            f"{row.path} holds {len(names)} sections, {names[:8]}, and the column 'image' names one image. Give each "
            "section a row of its own, with its name in the column 'sample'."
        )
    return [Section(row, path, name) for path, name in several]


def query_slides(rows: Sequence[SampleRow]) -> list[tuple[str | None, str, str | None, float | None]]:
    """List slides to predict, with spots or without: name (None for that of the file), path, image, µm per px.

    Parameters
    ----------
    rows
        Rows of a sheet. A folder with several sections stands for all of them.

    Raises
    ------
    MissingFileError, InputError
        As for :func:`find_sections`; or a section has no path of its own, as those of legacy ST in one folder.
    """
    found: list[tuple[str | None, str, str | None, float | None]] = []
    for section in find_sections(rows):
        row = section.row
        with naming(section.label):
            path = section.path if section.name is None else file_of_sample(section.path, section.name)
            if path is None:
                raise InputError(
                    f"{section.path} holds several sections of legacy ST; to predict {section.name!r}, put its files "
                    "into a folder of their own, or name its image as the path."
                )
            found.append((row.sample or section.name, str(path), row.image, row.um_per_px))
    return found


def name_of(path: Path) -> str:
    """Return the default name of a sample, that of its file or folder; of Space Ranger's folders, that above ``outs``.

    Examples
    --------
    >>> from pathlib import Path
    >>> [name_of(Path(one)) for one in ("A1.h5ad", "S7/outs", "S8/outs/binned_outputs/square_016um", "v.2")]
    ['A1', 'S7', 'S8', 'v.2']
    """
    if _BINS.fullmatch(path.name):
        path = path.parent.parent
    if path.name == "outs":
        path = path.parent
    return path.stem if path.suffix.lower() in (".h5ad", ".zarr") else path.name


def validate(section: Section, options: Options) -> list[Sample]:
    """Open a section without its counts, and validate all that training needs of it.

    Parameters
    ----------
    section
        The section.
    options
        Options of reading.

    Returns
    -------
    list[Sample]
        The slices of the section that its row names.

    Raises
    ------
    STGCHBError
        Or a subclass, as from :func:`~st_gchb.io.read_section`: files are missing, damaged, or contradict each other,
        the image is missing or cannot be opened, or the row states another size of a pixel. The message begins with
        the row.
    """
    with naming(section.label):
        adata = load(section, options, counts=False)
        libraries = libraries_of(adata)
        made = np.asarray(adata.obsm[MADE]) if MADE in adata.obsm else None
        samples = []
        for name, rows in placed_sections(adata, Keys.SLICE).rows.items():
            rule = None if made is None else _one_rule(made[rows])
            if rule is None:
                _check_image(libraries.get(name, Library(name)), name)
            patient = _patient_of(adata.obs.iloc[rows], section, name)
            samples.append(Sample(name, section, name, adata.var_names, len(rows), patient, rule))
        return _named(samples, section)


def _named(samples: list[Sample], section: Section) -> list[Sample]:
    """Give samples the name of their row, or choose the one that it names among several."""
    given = section.row.sample
    if len(samples) > 1:
        names = [sample.name for sample in samples]
        if given is None:
            return samples
        if given not in names:
            raise InputError(
                f"{section.path} holds {len(names)} slices, {names[:8]}, and none is {given!r}. Name one of them in "
                "the column 'sample', or leave it empty for all."
            )
        return [samples[names.index(given)]]
    (only,) = samples
    # Sections of HEST-1k and of legacy ST are named by their files, others by the folder.
    default = only.name if sections_of_folder(section.path) else name_of(section.path)
    return [replace(only, name=check_name(given or section.name or default, section.row.where))]


def _one_rule(made: np.ndarray) -> float | None:
    """Return the hash of the specification of features; None if spots differ."""
    rules = np.unique(made[:, 3]) if made.ndim == 2 and made.shape[1] > 3 else np.empty(0)
    return float(rules[0]) if len(rules) == 1 and np.isfinite(rules[0]) else None


def _patient_of(obs: pd.DataFrame, section: Section, name: str) -> str | None:
    """Determine the patient of a slice: as the row says, as the file says, or as her2st names its sections."""
    if section.row.patient is not None:
        return section.row.patient
    if Keys.PATIENT in obs:
        known = obs[Keys.PATIENT].dropna().astype(str).unique()
        if len(known) > 1:
            raise InputError(
                f"slice {name!r} has spots of {len(known)} patients, {list(known[:4])}; expected one. Name it in the "
                "column 'patient'."
            )
        return str(known[0]) if len(known) else None
    if _HER2ST.fullmatch(name) and (section.path / f"{name}_selection.tsv").is_file():
        return name[0]
    return None


def _check_image(library: Library, name: str) -> None:
    """Validate that a slice has an image that can be opened, without decoding it."""
    path = library.image_path
    if path is not None:
        if not is_image_path(path):
            raise MissingFileError(
                f"the full-resolution image {path} of slice {name!r} is missing. Put it there, or name it in the "
                "column 'image'."
            )
        open_image(path).release()
    elif not library.images:
        raise ImageError(
            f"slice {name!r} has no image, neither a file nor pixels in {library.where}. Name its full-resolution "
            "image in the column 'image'."
        )


def load(section: Section, options: Options, *, counts: bool = True) -> AnnData:
    """Open a section as an AnnData, in one layout for all formats.

    Parameters
    ----------
    section
        The section.
    options
        Options of reading.
    counts
        Whether to read the counts.

    Returns
    -------
    AnnData
        With names of slices in ``obs["slice"]``, positions in full-resolution px in ``obsm["spatial"]``, genes named
        once each, and in ``uns["spatial"]`` one entry for each slice with the path of its image, or else its pixels,
        and the size of a pixel if the row gives it.

    Raises
    ------
    ScaleError
        The row states another size of a pixel than the files.
    STGCHBError
        Or a subclass, as from :func:`~st_gchb.io.read_section`.
    """
    row = section.row
    with warnings.catch_warnings():
        # They are made unique below.
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        if is_spatialdata_store(section.path):
            adata = _load_store(section, counts=counts)
        else:
            adata = _load_files(section, options, counts=counts)
    if not adata.var_names.is_unique:
        logger.info("%s: gene symbols that are there more than once got numbers.", section.label)
        adata.var_names_make_unique()
    names = without_genome(adata.var)
    if len(set(names)) == len(names):
        adata.var_names = pd.Index(names, dtype=object)
    sections = placed_sections(adata)
    if len(sections.rows) > 1 and (row.image is not None or row.um_per_px is not None):
        column = "image" if row.image is not None else "um_per_px"
        raise InputError(
            f"{section.path} holds {len(sections.rows)} slices, {list(sections.rows)[:8]}, and the column {column!r} "
            "speaks of one. Write each slice to a file of its own."
        )
    libraries = []
    for name, library in sections.libraries.items():
        if row.um_per_px is not None:
            _check_size(row.um_per_px, library, sections.centers[sections.rows[name]])
            library = replace(library, factors={**library.factors, Keys.UM_PER_PX: row.um_per_px})
        libraries.append(replace(library, name=name))
    put_libraries(adata, libraries)
    adata.obs[Keys.SLICE] = pd.Categorical(sections.names)
    return adata


def _load_files(section: Section, options: Options, *, counts: bool) -> AnnData:
    image = None if section.row.image is None else Path(section.row.image)
    if image is not None and not image.exists():
        raise MissingFileError(f"the image {image} is missing. Correct the column 'image', or empty it.")

    def read(um_per_px: float | None) -> Any:
        return open_section(section.path, section.name, image, um_per_px, counts=counts, **vars(options))

    try:
        found = read(None)
    except (ScaleError, MissingKeyError, MissingFileError):
        # Files that state no size of a pixel, or two of them, are read with that of the row.
        if section.row.um_per_px is None:
            raise
        found = read(section.row.um_per_px)
    return found if isinstance(found, AnnData) else _of_space_ranger(found)


def _of_space_ranger(sdata: SpatialData) -> AnnData:
    """Make an AnnData of a Space Ranger folder, with down-scaled images in ``uns`` and the path of the full one."""
    (table,) = sdata.tables.values()
    obs = table.obs[[column for column in ("array_row", "array_col") if column in table.obs]].copy()
    adata = AnnData(table.X, obs=obs, var=table.var.copy(), obsm={Keys.SPATIAL: table.obsm[Keys.SPATIAL]})
    (library,) = libraries_of(table).values()
    images = {}
    for key, element in sdata.images.items():
        kind = next((kind for kind in _KINDS if str(key).endswith(f"_{kind}_image")), None)
        if kind is not None:
            images[kind] = np.asarray(element.transpose("y", "x", "c").data)
    put_libraries(adata, [replace(library, images=images)])
    return adata


def _load_store(section: Section, *, counts: bool) -> AnnData:
    """Open a SpatialData store, whose images are named by their paths in the store."""
    row = section.row
    sdata = open_section(section.path, None, None, None, counts=counts)
    if row.image is not None and row.image not in sdata.images:
        raise InputError(
            f"{section.path}: the column 'image' names {row.image!r}; expected an image element of the store, one of "
            f"{sorted(sdata.images)}, or nothing."
        )
    spots = locate_spots(sdata, image=row.image)
    if spots.table is None:
        raise InputError(f"{section.path}: the store has no table of counts; expected one that annotates the spots.")
    libraries = [
        replace(library, metadata={Keys.SOURCE_IMAGE: str(section.path / "images" / spots.elements[name])})
        for name, library in libraries_of(spots.adata).items()
    ]
    put_libraries(spots.adata, libraries)
    spots.adata.obs[Keys.SLICE] = pd.Categorical(spots.adata.obs[spots.region_key].astype(str))
    return spots.adata


def _check_size(given: float, library: Library, centers: np.ndarray) -> None:
    """Validate that the size of a pixel in a row is that of the files.

    Raises
    ------
    ScaleError
        They differ.
    """
    path = library.image_path
    slide = open_image(path) if path is not None and is_image_path(path) else None
    in_file = None if slide is None or slide.um_per_px is None else Size(slide.um_per_px, f"the image {slide.name}")
    sizes = [factor_size(library.factors, library.where), in_file, *spot_sizes(library.factors, centers, library.where)]
    for size in sizes:
        if size is not None and not size.agrees_with(Size(given, "the row")):
            raise ScaleError(
                f"um_per_px is {given:g}, and the files say {size.um_per_px:.4g} µm ({size.source}). Correct the "
                "column 'um_per_px', or empty it for the files' own."
            )


def check_samples(samples: Sequence[Sample]) -> None:
    """Validate that no sample is there twice, by its name or by its files.

    Raises
    ------
    InputError
        A sample is there twice.
    """
    check_different((sample.name, sample.label) for sample in samples)
    seen: dict[tuple[Path, str | None, str], Sample] = {}
    for sample in samples:
        key = (sample.section.path.resolve(), sample.section.name, sample.slice)
        if key in seen:
            raise InputError(
                f"{sample.label}: is the same section as {seen[key].label}, {sample.section.path}. Drop one of them."
            )
        seen[key] = sample
