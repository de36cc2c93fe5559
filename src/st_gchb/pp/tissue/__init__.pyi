from ._detection import Tissue as Tissue, find_tissue as find_tissue
from ._label_regions import label_regions as label_regions
from ._layout import lay_grid as lay_grid, tissue_share as tissue_share
from ._roi import read_roi as read_roi
from ._tile_tissue import tile_tissue as tile_tissue
