from ._anatomy import LAYER_NAMES as LAYER_NAMES, memberships as memberships, random_anatomy as random_anatomy
from ._cells import place_cells as place_cells
from ._simulate import draw_genes as draw_genes, look_under as look_under
from ._synthetic_tissue import synthetic_tissue as synthetic_tissue
