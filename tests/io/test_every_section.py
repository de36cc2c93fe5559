"""Every folder of real data that holds a section is read, or its message says what is missing and what to do.

Sections that test_annotated and test_legacy_tables read have these checks there.
"""

from __future__ import annotations

import numpy as np
import pytest

from st_gchb._errors import STGCHBError
from st_gchb.io import read_section

READ = {
    **{f"her2st:{name}": n for name, n in (("C2", 187), ("C4", 184), ("C5", 181))},
    "mob_st2k:MOB2": 407,
    "visium_mousebrain/V10F24-078_A1": 2399,
    "visium_lung/V10F24-110_C1": 756,
    "reader_fixtures/coexpress_spaceranger3": 2898,
    "reader_fixtures/squidpy_visium": 100,
    "reader_fixtures/squidpy_visium/test_data.h5ad": 49,
    "reader_fixtures/visiumio_raw_section1": 22,
    "reader_fixtures/visiumio_visium_hd": 10,
}
TOLD = {
    "dlpfc": "Sections are below it",
    "dlpfc/151673": r"filtered_feature_bc_matrix\.h5 is missing",
    "her2st": r"more than one table of counts.*Pass name=",
    "reader_fixtures/scanpy_visium_1.0.0": "4135 of 4235 spots under tissue.*allow_missing=True",
    "reader_fixtures/seurat_visium": "nothing is to be seen.*Pass image=",
    "reader_fixtures/seurat_visium_hd": "nothing is to be seen.*Pass image=",
    "reader_fixtures/seurat_visium_hd/binned_outputs/square_016um": "2053 of 2695 spots.*allow_missing=True",
    "reader_fixtures/openslide_python": "Expected a Space Ranger",
}


def path_of(her2st_path, place):
    folder, _, name = place.partition(":")
    return her2st_path.parent / folder, {"name": name} if name else {}


@pytest.mark.tissue
@pytest.mark.parametrize("place", READ)
def test_is_read(her2st_path, place):
    path, arguments = path_of(her2st_path, place)
    read = read_section(path, **arguments)
    table = next(iter(read.tables.values())) if hasattr(read, "tables") else read
    assert table.n_obs == READ[place]
    assert table.n_vars > 0
    assert np.isfinite(table.obsm["spatial"]).all()


@pytest.mark.tissue
@pytest.mark.parametrize("place", TOLD)
def test_is_told(her2st_path, place):
    with pytest.raises(STGCHBError, match=TOLD[place]):
        read_section(path_of(her2st_path, place)[0])


@pytest.mark.tissue
def test_what_is_left_can_be_asked_for(her2st_path):
    path = her2st_path.parent / "reader_fixtures/scanpy_visium_1.0.0"
    assert read_section(path, allow_missing=True)["table"].n_obs == 100
