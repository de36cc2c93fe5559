"""Reference bank and query: which reference spots a prediction is made of, and with which weights."""

from st_gchb.retrieval._bank import ReferenceBank
from st_gchb.retrieval._linear import LinearReadout
from st_gchb.retrieval._search import Neighbors, Weighting, check_search, find_neighbors

__all__ = ["LinearReadout", "Neighbors", "ReferenceBank", "Weighting", "check_search", "find_neighbors"]
