from ._ceiling import noise_ceiling as noise_ceiling, share_of_ceiling as share_of_ceiling
from ._genes import pearson as pearson, per_gene as per_gene
from ._noise_free import noise_free_agreement as noise_free_agreement, noise_free_morans_i as noise_free_morans_i
from ._spatial import morans_agreement as morans_agreement, morans_i as morans_i
from ._summary import summary as summary, top_genes as top_genes
from ._thinning import HalfTransform as HalfTransform
