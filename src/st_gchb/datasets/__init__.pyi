from ._dlpfc import dlpfc as dlpfc, dlpfc_geometry as dlpfc_geometry
from ._fetch import DataFile as DataFile, cache_folder as cache_folder, fetch as fetch, local_folder as local_folder
from ._her2st import her2st as her2st
from .synthetic import synthetic_tissue as synthetic_tissue
