"""What holds for every test: in CI none is skipped, because a test that did not run proves nothing.

Rules: this file stays small; a fixture lives beside the tests that use it.
"""

from __future__ import annotations

import os

import pytest

not_run: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers each test that was skipped, or was expected to fail."""
    if report.skipped or hasattr(report, "wasxfail"):
        not_run.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Remembers each file that skipped itself while it was collected."""
    if report.skipped:
        not_run.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turns a run that would pass into a failed one when CI is set and a test did not run."""
    if os.environ.get("CI") and not_run and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the tests that did not run, under CI."""
    if os.environ.get("CI") and not_run:
        terminalreporter.section("skipped, which CI does not allow", red=True)
        for name in not_run:
            terminalreporter.line(name, red=True)
