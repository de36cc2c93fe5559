from ._detection import Tissue as Tissue, TissueMethod as TissueMethod, find_tissue as find_tissue
from ._layout import GridKind as GridKind
from ._tile_tissue import tile_tissue as tile_tissue
