"""Evaluation without leakage: one protocol, baselines in every table."""

from st_gchb.evaluate._calibration import Reliability, reliability
from st_gchb.evaluate._choice import Choice, choose
from st_gchb.evaluate._evaluate import DEFAULT_METHODS as DEFAULT_METHODS, Evaluation, evaluate, evaluate_fold
from st_gchb.evaluate._folds import Fold, hold_one_out as hold_one_out, leave_one_out
from st_gchb.evaluate._foreign import foreign_sections
from st_gchb.evaluate._methods import METHODS, Method as Method, Task as Task
from st_gchb.evaluate._protocol import choose_methods as choose_methods
from st_gchb.evaluate._report import markdown as markdown, write_report
from st_gchb.evaluate._study import Study, study
from st_gchb.evaluate._study_files import write_choice, write_foreign, write_reliability, write_study
from st_gchb.evaluate._variants import STUDY, Variant, candidates

__all__ = [
    "Choice",
    "Evaluation",
    "Fold",
    "METHODS",
    "Method",
    "Reliability",
    "STUDY",
    "Study",
    "Task",
    "Variant",
    "candidates",
    "choose",
    "evaluate",
    "evaluate_fold",
    "foreign_sections",
    "leave_one_out",
    "reliability",
    "study",
    "write_choice",
    "write_foreign",
    "write_reliability",
    "write_report",
    "write_study",
]
