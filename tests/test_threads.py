"""A process that was told how many threads to use keeps to it."""

from __future__ import annotations

import os

CODE = """
import numba, numpy as np, torch
from scipy import sparse
from st_gchb.pp.expression import choose_panel
numba.core.config.reload_config()
assert numba.config.NUMBA_NUM_THREADS == 7
torch.set_num_threads(1)
values = sparse.random(300, 80, 0.5, format="csr", random_state=0, dtype=np.float32)
choose_panel(values, np.repeat(["a", "b"], 150), 20)
print(torch.get_num_threads())
"""


def test_choosing_genes_leaves_torchs_threads_alone(programs, tmp_path):
    """numba, under scanpy, would raise them to its own number, the number of cores, for the whole process."""
    done = programs.run(CODE, cwd=tmp_path, env=os.environ | {"NUMBA_NUM_THREADS": "7"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "1"
