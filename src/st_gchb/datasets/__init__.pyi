from ._dlpfc import dlpfc as dlpfc, dlpfc_geometry as dlpfc_geometry
from ._her2st import her2st as her2st
from .synthetic import synthetic_tissue as synthetic_tissue
