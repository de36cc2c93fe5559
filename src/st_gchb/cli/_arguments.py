"""Options shared by several sub-commands, and reading of the data that they name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from st_gchb._constants import DEFAULT_PATCH_UM, MODEL_RECORD, Keys
from st_gchb._errors import InputError, MissingFileError
from st_gchb._logging import all_quiet
from st_gchb._options import (
    DEFAULT_ENCODERS,
    DEFAULT_GRID,
    DEFAULT_MIN_TISSUE,
    DEFAULT_TISSUE,
    DEFAULT_VIEWS,
    VIEWS_WITH_TEXTURE,
    Device,
    GridKind,
    TissueMethod,
    Views,
)

if TYPE_CHECKING:
    from anndata import AnnData


DEVICES: dict[str, Device] = {"gpu" if device == "cuda" else device: device for device in get_args(Device)}
"""Torch's name of each device, by Lightning's, which the command line takes."""


class OneOrSeveral(argparse.Action):
    """Action of an option that takes one value or several: a single value is stored by itself, several as a list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store the values."""
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def new_command(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Create a sub-command whose help ends with a working example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random (default: 0)")
    parser.add_argument("--device", default="auto", choices=tuple(DEVICES), help="default: auto")
    parser.add_argument("--quiet", action="store_true", help="warnings only, no progress bars")
    return parser


def add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that locate slides with expression."""
    parser.add_argument(
        "--data",
        type=Path,
        required=required,
        help="an .h5ad file, or a folder with her2st sections (C2.jpg, C2.tsv.gz, ...)",
    )
    parser.add_argument("--slices", nargs="+", metavar="NAME", help="slices to take (default: all)")
    parser.add_argument("--slice-key", default="slice", help="column of obs that tells slices apart (default: slice)")


def add_cohort(parser: argparse.ArgumentParser) -> None:
    """Add the options that locate slides with expression, one file or a cohort of samples in any format."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--data",
        type=Path,
        nargs="+",
        action=OneOrSeveral,
        metavar="PATH",
        help="an .h5ad file, a folder with her2st sections (C2.jpg, C2.tsv.gz, ...), or any number of Space Ranger "
        "folders, SpatialData stores, .h5ad files, HEST samples and legacy sections",
    )
    where.add_argument(
        "--samples",
        type=Path,
        metavar="SHEET",
        help="a .csv table with the column path (and sample, image, patient, um_per_px, group if needed)",
    )
    parser.add_argument("--slices", nargs="+", metavar="NAME", help="slices to take (default: all)")
    parser.add_argument("--slice-key", default="slice", help="column of obs that tells slices apart (default: slice)")


def read_cohort(arguments: argparse.Namespace) -> AnnData:
    """Read slides with expression from the sample sheet or the paths that the options name.

    Raises
    ------
    STGCHBError
        Or a subclass: a path does not exist or holds no such data, a row of the sheet is invalid, or a requested slice
        is not there.
    """
    one = arguments.data if isinstance(arguments.data, Path) else None
    if arguments.samples is None and one is not None and not _is_section(one):
        return read_slides(one, arguments.slices, arguments.slice_key)
    from st_gchb import io

    if arguments.slice_key != Keys.SLICE:
        raise InputError(
            f"--slice-key {arguments.slice_key} is for a single .h5ad file; samples are told apart by their names. "
            "Leave it out."
        )
    if arguments.samples is not None and not io.is_sheet(arguments.samples):
        raise InputError(f"--samples {arguments.samples}: expected a .csv table. Pass paths of samples by --data.")
    paths = arguments.data if one is None else [one]
    cohort = io.read_cohort(paths if arguments.samples is None else arguments.samples, samples=arguments.slices)
    _check_graph(cohort)
    return cohort


def _check_graph(cohort: AnnData) -> None:
    """Validate that one spot graph fits all samples, before patches are embedded, which may take long.

    Raises
    ------
    GraphError
        The spots of a sample are too far apart, as of another technology.
    """
    from anndata import AnnData

    from st_gchb import io, pp

    positions = AnnData(obs=cohort.obs.copy(), obsm={Keys.SPATIAL: cohort.obsm[Keys.SPATIAL]})
    io.hand_on_libraries(cohort, positions)
    with all_quiet():
        pp.spatial_graph(positions, slice_key=Keys.SLICE)


def _is_section(path: Path) -> bool:
    """Check if a path is that of a store or folder, other than one of her2st sections, or of a section in a folder."""
    if path.is_dir():
        return next(path.glob("*_selection.tsv"), None) is None
    if path.exists():
        return False
    # Files of a section have its name in theirs; HEST-1k keeps them in folders of their own.
    folders = (folder for folder in (path.parent, path.parent / "st") if folder.is_dir())
    return any(path.name in file.name for folder in folders for file in folder.iterdir())


def add_encoder(
    parser: argparse.ArgumentParser, patch_um: tuple[float, ...] = DEFAULT_PATCH_UM, n_views: Views | None = None
) -> None:
    """Add the options of the patch features, with these defaults of patch sizes and views."""
    by_encoder = f"{VIEWS_WITH_TEXTURE} with texture features, otherwise {DEFAULT_VIEWS}"
    parser.add_argument(
        "--encoder",
        nargs="+",
        action=OneOrSeveral,
        default=DEFAULT_ENCODERS,
        metavar="NAME",
        help="any torchvision model, a pathology encoder such as uni (st_gchb.pp.list_encoders()), hf-hub:OWNER/NAME, "
        "timm:NAME, or texture; several stand side by side (default: resnet50 texture)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        action=OneOrSeveral,
        default="default",
        metavar="FILE",
        help="'default' (downloaded once), a .safetensors/.pt file, or a downloaded repository's folder; one for all "
        "encoders, or one for each",
    )
    parser.add_argument(
        "--patch-um",
        nargs="+",
        action=OneOrSeveral,
        type=float,
        default=patch_um if len(patch_um) > 1 else patch_um[0],
        metavar="UM",
        help=f"side of a patch, µm, or several sides (default: {' '.join(f'{um:g}' for um in patch_um)})",
    )
    parser.add_argument(
        "--views",
        dest="n_views",
        type=int,
        default=n_views,
        choices=get_args(Views),
        help=f"views averaged per patch, 8: mirrored rotations too (default: {n_views or by_encoder})",
    )


def add_tiles(parser: Any) -> None:
    """Add the options of positions that are laid on tissue, to a parser or a group of its options."""
    parser.add_argument("--grid", choices=get_args(GridKind), default=DEFAULT_GRID, help="default: %(default)s")
    parser.add_argument("--tissue", choices=get_args(TissueMethod), default=DEFAULT_TISSUE, help="default: %(default)s")
    parser.add_argument(
        "--min-tissue",
        type=float,
        default=DEFAULT_MIN_TISSUE,
        help="share of a tile that is tissue (default: %(default)s)",
    )


def read_slides(path: Path, slices: list[str] | None, slice_key: str) -> AnnData:
    """Read slides with expression from an .h5ad file or a folder of her2st sections.

    Raises
    ------
    InputError
        The path holds no such data, or a requested slice is not in it.
    """
    if path.is_dir() and path.suffix != ".zarr":
        from st_gchb.datasets import her2st

        found = sorted(file.name.removesuffix("_selection.tsv") for file in path.glob("*_selection.tsv"))
        if not found:
            raise InputError(f"--data {path} holds no her2st section (NAME_selection.tsv, NAME.tsv.gz, NAME.jpg).")
        return her2st(slices or found, path=path)
    if path.suffix != ".h5ad":
        raise InputError(f"--data {path}: expected an .h5ad file or a folder of her2st sections.")
    return take_slices(read_h5ad(path), slices, slice_key)


def read_h5ad(path: Path) -> AnnData:
    """Read an .h5ad file with :func:`~st_gchb.io.read_section`.

    Raises
    ------
    InputError
        The file cannot be read as .h5ad.
    """
    from st_gchb.io import read_section

    return cast("AnnData", read_section(path))


def take_slices(adata: AnnData, slices: list[str] | None, slice_key: str) -> AnnData:
    """Select the requested slices; by default all.

    Raises
    ------
    InputError
        ``obs`` lacks the column, or a requested slice is not in it.
    """
    if slices is None:
        return adata
    if slice_key not in adata.obs:
        raise InputError(f"obs has no column {slice_key!r}; found {list(adata.obs.columns)[:12]}. Pass --slice-key.")
    names = adata.obs[slice_key].astype(str)
    missing = sorted(set(slices) - set(names))
    if missing:
        raise InputError(f"--slices {missing}: not among the slices {sorted(set(names))}.")
    return adata[names.isin(slices)].copy()


def embed(adata: Any, arguments: argparse.Namespace) -> None:
    """Compute patch features with the encoder that the options name, unless they are present already."""
    from st_gchb import pp

    if Keys.FEATURES in adata.obsm:
        return
    options = {"patch_um": arguments.patch_um, "n_views": arguments.n_views, "device": torch_device(arguments)}
    slice_key = arguments.slice_key if arguments.slice_key in adata.obs else None
    pp.embed_patches(adata, encoder=arguments.encoder, weights=arguments.weights, slice_key=slice_key, **options)


def options_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Map Python arguments to options, for advice; options with another meaning in Python are left out."""
    renamed, apart = {"spacing": "spacing_um"}, ("layer", "data", "out", "genes")
    return {renamed.get(name, name): f"--{name.replace('_', '-')}" for name in vars(arguments) if name not in apart}


def torch_device(arguments: argparse.Namespace) -> Device:
    """Return torch's name of the device."""
    return DEVICES[arguments.device]


_INPUTS = {
    "model": " Pass the folder that st-gchb train or model.save wrote.",
    "weights": " Pass a weights file, or the folder of a downloaded repository.",
} | dict.fromkeys(("data", "samples", "slide", "roi", "prediction"), "")
"""Options that name what is read, each with advice."""


def check_inputs(arguments: argparse.Namespace) -> None:
    """Validate that what is to be read is there, and a model is one, before libraries are imported to read it.

    Raises
    ------
    MissingFileError
        The message names the option and the path.
    """
    for name, advice in _INPUTS.items():
        given = getattr(arguments, name, None)
        for value in given if isinstance(given, list) else [] if given is None else [given]:
            if name == "weights" and value.partition("@")[0] == "default":
                continue
            path = Path(value)
            # A section of a cohort is named by its folder and its name.
            is_section = name == "data" and "samples" in arguments and _is_section(path)
            if not path.exists() and not is_section:
                raise MissingFileError(f"--{name} {path}: there is no such file or folder.{advice}")
            if name == "model" and not (path / MODEL_RECORD).is_file():
                raise MissingFileError(f"--model {path} has no {MODEL_RECORD}: it is no st-gchb model.{advice}")


def check_machine(arguments: argparse.Namespace) -> None:
    """Reject an unavailable device and an output folder that cannot be created, before any long computation.

    Raises
    ------
    InputError
        The message names the device or the folder.
    """
    if arguments.device not in ("auto", "cpu"):
        from st_gchb.pp.encoders import choose_device

        choose_device(torch_device(arguments))
    there = next(path for path in (arguments.out, *arguments.out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--out {arguments.out}: {there} is no folder that can be written to. Name another one.")
