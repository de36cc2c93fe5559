from ._coordinates import check_fit as check_fit, check_positions as check_positions
from ._slices import Slice as Slice, open_slices as open_slices, side_px as side_px, slices_of as slices_of
from ._tables import (
    Resolved as Resolved,
    check_table_name as check_table_name,
    resolve as resolve,
    resolve_spots as resolve_spots,
    write_table as write_table,
)
