"""What the process imports of which programs are forked: libraries that take seconds, and most of the package."""

import gc

# Nothing of what is imported is garbage, here or in the processes that are forked.
gc.set_threshold(0)

import scvi.train  # noqa: E402, F401
import spatialdata  # noqa: E402, F401
import squidpy  # noqa: E402, F401
import torch_geometric  # noqa: E402, F401
import torchvision  # noqa: E402, F401

from st_gchb.cli import main  # noqa: E402, F401
from st_gchb.cohort import predict_slides  # noqa: E402, F401
from st_gchb.evaluate import evaluate  # noqa: E402, F401
from st_gchb.model import STGCHB  # noqa: E402, F401
from st_gchb.pp import embed_patches, spatial_graph  # noqa: E402, F401

gc.freeze()
gc.set_threshold(700, 10, 10)
