"""Evaluation without leakage: one protocol, baselines in every table."""

from st_gchb.evaluate._choice import Choice, choose
from st_gchb.evaluate._folds import Fold, leave_one_out
from st_gchb.evaluate._foreign import foreign_sections
from st_gchb.evaluate._methods import METHODS
from st_gchb.evaluate._reliability import Reliability, reliability
from st_gchb.evaluate._report import write_report
from st_gchb.evaluate._result import Evaluation
from st_gchb.evaluate._run import evaluate, evaluate_fold
from st_gchb.evaluate._study import Study, study
from st_gchb.evaluate._study_files import write_choice, write_foreign, write_reliability, write_study
from st_gchb.evaluate._variants import STUDY, Variant, candidates

__all__ = [
    "METHODS",
    "STUDY",
    "Choice",
    "Evaluation",
    "Fold",
    "Reliability",
    "Study",
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
