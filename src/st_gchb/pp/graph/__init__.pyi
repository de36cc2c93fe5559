from ._graph import (
    check_reach as check_reach,
    connected as connected,
    neighbor_distances as neighbor_distances,
    spatial_graph as spatial_graph,
)
from ._graph_spec import GraphSpec as GraphSpec
from ._infer import check_lengths as check_lengths, graph_of as graph_of, rule_of as rule_of
from ._sublattice import interleave as interleave, side_by_side as side_by_side, spacing_of as spacing_of
