from ._expression import (
    ExpressionRule as ExpressionRule,
    as_csr as as_csr,
    check_panel as check_panel,
    choose_panel as choose_panel,
    fit_expression as fit_expression,
    log_normalize as log_normalize,
    log_values_of as log_values_of,
    read_expression as read_expression,
    tell_expression as tell_expression,
)
