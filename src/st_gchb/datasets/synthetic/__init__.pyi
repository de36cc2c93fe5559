from ._anatomy import LAYER_NAMES as LAYER_NAMES, memberships as memberships, random_anatomy as random_anatomy
from ._cells import ENDOTHELIUM as ENDOTHELIUM, PYRAMID as PYRAMID, place_cells as place_cells
from ._simulate import draw_genes as draw_genes, look_under as look_under, unseen_fields as unseen_fields
from ._synthetic_tissue import synthetic_tissue as synthetic_tissue
