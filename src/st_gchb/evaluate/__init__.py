"""Evaluation without leakage: one protocol, baselines in every table."""

from st_gchb._lazy import attach_stub

# The stub says where each name is, also those that other rooms ask for; users see these.
__getattr__, _, _ = attach_stub(__name__, __file__)
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


def __dir__() -> list[str]:
    return __all__
