from ._anatomy import LAYER_NAMES as LAYER_NAMES
from ._synthetic_tissue import synthetic_tissue as synthetic_tissue
