from ._legacy_st import read_legacy_spots as read_legacy_spots
from ._read_section import read_section as read_section
