"""Evaluation without leakage: one protocol, baselines in every table."""

from st_gchb.evaluate._folds import Fold, leave_one_out
from st_gchb.evaluate._methods import METHODS
from st_gchb.evaluate._report import write_report
from st_gchb.evaluate._run import Evaluation, evaluate, evaluate_fold

__all__ = ["METHODS", "Evaluation", "Fold", "evaluate", "evaluate_fold", "leave_one_out", "write_report"]
