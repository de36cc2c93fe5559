"""A process that was told how many threads to use keeps to it."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import numpy as np, torch
from scipy import sparse
from st_gchb.pp.expression import choose_panel
values = sparse.random(300, 80, 0.5, format="csr", random_state=0, dtype=np.float32)
choose_panel(values, np.repeat(["a", "b"], 150), 20)
print(torch.get_num_threads())
"""


def test_choosing_genes_leaves_torchs_threads_alone():
    """numba, under scanpy, would raise them to the number of cores for the whole process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("NUMBA_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "1"
