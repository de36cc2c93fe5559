from ._calibration import Reliability as Reliability, reliability as reliability
from ._describe import describe as describe
from ._evaluate import Evaluation as Evaluation, evaluate as evaluate, evaluate_fold as evaluate_fold
from ._folds import (
    Fold as Fold,
    hide_expression as hide_expression,
    hold_one_out as hold_one_out,
    leave_blocks_out as leave_blocks_out,
    leave_one_out as leave_one_out,
    split_folds as split_folds,
)
from ._hest_bench import (
    HestBench as HestBench,
    hest_bench as hest_bench,
    hest_ridge as hest_ridge,
    write_hest_bench as write_hest_bench,
)
from ._hest_folder import find_tasks as find_tasks
from ._methods import METHODS as METHODS, fit_predict as fit_predict
from ._protocol import DEFAULT_METHODS as DEFAULT_METHODS, choose_methods as choose_methods
from ._published import PUBLISHED as PUBLISHED, published as published, spots_of as spots_of
from ._report import (
    machine_and_versions as machine_and_versions,
    markdown as markdown,
    write_reliability as write_reliability,
    write_report as write_report,
)
from ._run_cache import Run as Run, RunFolder as RunFolder, RunKey as RunKey, parse_run as parse_run
from ._task import Method as Method, Task as Task
