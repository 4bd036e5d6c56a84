"""One test per check, on the implementation of ``--impl``; see :mod:`.pytest_plugin`."""

import pytest

from pagedkv.conformance.suite import all_checks
from pagedkv.pytest_plugin import plan_of_options, run_as_test


@pytest.mark.parametrize("check_id", [check.id for check in all_checks()])
def test_check(check_id: str, pytestconfig: pytest.Config) -> None:
    """The implementation passes the check."""
    run_as_test(check_id, plan_of_options(pytestconfig))
