"""Holds conftest.py to its word by running pytest on a scratch folder that has a copy of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

# Each file says in its own way that a test is not to run.
WAYS = {
    "skip mark": "import pytest\n@pytest.mark.skip\ndef test_it(): pass\n",
    "skip call": "import pytest\ndef test_it(): pytest.skip('not here')\n",
    "expected failure": "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n",
    "whole file": "import pytest\npytest.skip('not here', allow_module_level=True)\n",
    "missing module": "import pytest\npytest.importorskip('no_such_module_anywhere')\n",
}
PASSES = "def test_that_passes(): pass\n"


def run_pytest(folder: Path, text: str, ci: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest on one file `test_one.py` beside one passing test; `ci` is the value of CI."""
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_one.py").write_text(text)
    (folder / "test_two.py").write_text(PASSES)
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--rootdir", str(folder), *words),
        ],
        cwd=folder,
        env={**os.environ, "CI": ci, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("at_once", [(), ("--numprocesses=2",)], ids=["one", "two at once"])
@pytest.mark.parametrize("text", list(WAYS.values()), ids=list(WAYS))
def test_a_test_that_did_not_run_fails_ci_by_name(
    tmp_path: Path, text: str, at_once: tuple[str, ...]
) -> None:
    ran = run_pytest(tmp_path, text, "1", *at_once)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "skipped, which CI does not allow" in ran.stdout
    assert "test_one.py" in ran.stdout.split("CI does not allow")[1]


def test_outside_ci_a_skipped_test_is_only_reported(tmp_path: Path) -> None:
    ran = run_pytest(tmp_path, WAYS["skip mark"], ci="")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_ci_passes_when_every_test_ran(tmp_path: Path) -> None:
    ran = run_pytest(tmp_path, PASSES, ci="1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
