"""Evaluation without leakage: one protocol, baselines in every table."""

from st_gchb.evaluate._calibration import Reliability, reliability
from st_gchb.evaluate._describe import describe as describe
from st_gchb.evaluate._evaluate import Evaluation, evaluate, evaluate_fold
from st_gchb.evaluate._folds import (
    Fold,
    hide_expression as hide_expression,
    hold_one_out as hold_one_out,
    leave_blocks_out,
    leave_one_out,
    split_folds as split_folds,
)
from st_gchb.evaluate._hest_bench import (
    HestBench,
    hest_bench,
    hest_ridge as hest_ridge,
    write_hest_bench,
)
from st_gchb.evaluate._methods import METHODS, fit_predict as fit_predict
from st_gchb.evaluate._protocol import DEFAULT_METHODS as DEFAULT_METHODS, choose_methods as choose_methods
from st_gchb.evaluate._published import PUBLISHED as PUBLISHED, published as published, spots_of as spots_of
from st_gchb.evaluate._report import (
    machine_and_versions as machine_and_versions,
    markdown as markdown,
    write_reliability,
    write_report,
)
from st_gchb.evaluate._run_cache import Run as Run, RunFolder as RunFolder, RunKey as RunKey, parse_run as parse_run
from st_gchb.evaluate._task import Method as Method, Task as Task

__all__ = [
    "Evaluation",
    "Fold",
    "HestBench",
    "METHODS",
    "Method",
    "Reliability",
    "Task",
    "evaluate",
    "evaluate_fold",
    "hest_bench",
    "leave_blocks_out",
    "leave_one_out",
    "reliability",
    "write_hest_bench",
    "write_reliability",
    "write_report",
]
