"""Imports for a slide, of the process of which local workers are forked."""

import gc
import signal

from st_gchb._lazy import without_collection

# Ctrl-C reaches this process, too, which ends when the one that started it does.
_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
with without_collection():
    from st_gchb._compat import import_dask_without_numba

    import_dask_without_numba()

    import distributed.nanny
    import distributed.worker  # noqa: F401
    import PIL.Image
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401
    import threadpoolctl  # noqa: F401

    from st_gchb.cohort import predict_slides  # noqa: F401
    from st_gchb.model import load_predictor  # noqa: F401
    from st_gchb.pp import embed_patches, tile_tissue  # noqa: F401

    # Else the first image does it.
    PIL.Image.init()
    # Looking for garbage would copy the memory that workers share.
    gc.freeze()
signal.signal(signal.SIGINT, _interrupt)
