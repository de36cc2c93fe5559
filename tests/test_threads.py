"""A process that was told how many threads to use keeps to it."""

from __future__ import annotations

from forks import ForkServer

# numba was imported in the process that this one is forked from; it starts threads with the first parallel loop, which
# is here.
CODE = """
import numba.np.ufunc.parallel as loops, numpy as np, torch
from scipy import sparse
from st_gchb.pp.expression import choose_panel
loops.config.NUMBA_NUM_THREADS = loops.NUM_THREADS = 2
torch.set_num_threads(1)
values = sparse.random(300, 80, 0.5, format="csr", random_state=0, dtype=np.float32)
choose_panel(values, np.repeat(["a", "b"], 150), 20)
print(loops.get_num_threads(), torch.get_num_threads())
"""


def test_choosing_genes_leaves_torchs_threads_alone(programs: ForkServer, tmp_path):
    """numba, under scanpy, would raise them to its own number for the whole process."""
    done = programs.run(CODE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "1"]
