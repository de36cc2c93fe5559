"""Published methods that predict expression from H&E, implemented anew from their publications."""

from st_gchb.baselines._baseline import (
    Baseline as Baseline,
    TrainingSettings as TrainingSettings,
    compact_parts as compact_parts,
    region_batches as region_batches,
    slice_batches as slice_batches,
    spot_batches as spot_batches,
    spread_parts as spread_parts,
)
from st_gchb.baselines._hist2rna import Hist2RNA as Hist2RNA, Hist2RNASettings as Hist2RNASettings
from st_gchb.baselines._hist2st import (
    CountHeads as CountHeads,
    Hist2ST as Hist2ST,
    augmented_copy as augmented_copy,
    lattice_edges as lattice_edges,
    size_factors as size_factors,
    zinb_loss as zinb_loss,
)
from st_gchb.baselines._histogene import HisToGene as HisToGene
from st_gchb.baselines._mclstexp import MclSTExp as MclSTExp, MclSTExpSettings as MclSTExpSettings
from st_gchb.baselines._spots import Spots as Spots
from st_gchb.baselines._st_net import STNet as STNet, STNetSettings as STNetSettings
from st_gchb.baselines._symmetries import (
    N_SYMMETRIES as N_SYMMETRIES,
    randomly_transformed as randomly_transformed,
    transformed as transformed,
)
from st_gchb.baselines._thitogene import (
    DynamicConvolution as DynamicConvolution,
    GraphAttention as GraphAttention,
    PrimaryCapsules as PrimaryCapsules,
    Routing as Routing,
    THItoGene as THItoGene,
    THItoGeneNetwork as THItoGeneNetwork,
    THItoGeneSettings as THItoGeneSettings,
    squash as squash,
    with_loops as with_loops,
)
from st_gchb.baselines._triplex import (
    Triplex as Triplex,
    TriplexBlocks as TriplexBlocks,
    TriplexSettings as TriplexSettings,
)
from st_gchb.baselines._trunks import Trunk as Trunk

BASELINES: dict[str, type[Baseline]] = {
    "st-net": STNet,
    "histogene": HisToGene,
    "hist2st": Hist2ST,
    "thitogene": THItoGene,
    "hist2rna": Hist2RNA,
    "triplex": Triplex,
    "mclstexp": MclSTExp,
}
"""Published methods by name."""

__all__ = [
    "BASELINES",
    "Baseline",
    "Hist2RNA",
    "Hist2ST",
    "HisToGene",
    "MclSTExp",
    "STNet",
    "THItoGene",
    "Triplex",
    "Spots",
    "TrainingSettings",
]
