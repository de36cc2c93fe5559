"""Imports for a slide, of the process of which local workers are forked."""

import gc
import signal

# Ctrl-C reaches this process, too, which ends when the one that started it does.
_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
# Nothing of what is imported is garbage. Collection is not disabled: dask, imported meanwhile, would leave it so.
_thresholds = gc.get_threshold()
gc.set_threshold(0)

from st_gchb._compat import import_dask_without_numba  # noqa: E402

import_dask_without_numba()

import distributed.nanny  # noqa: E402
import distributed.worker  # noqa: E402, F401
import PIL.Image  # noqa: E402
import pyarrow.dataset  # noqa: E402
import pyarrow.parquet  # noqa: E402, F401
import threadpoolctl  # noqa: E402, F401

from st_gchb.cohort import predict_slides  # noqa: E402, F401
from st_gchb.model import load_predictor  # noqa: E402, F401
from st_gchb.pp import embed_patches, tile_tissue  # noqa: E402, F401

# Else the first image does it.
PIL.Image.init()

# Looking for garbage would copy the memory that workers share.
gc.freeze()
gc.set_threshold(*_thresholds)
signal.signal(signal.SIGINT, _interrupt)
