"""Sample terminals for the bench: made once, copied for every run that changes one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tools.bench.measure import ROOT
from tools.termsim import Recipe, make_terminal


class Sample:
    """A terminal at schema 0 that stays as it is, and copies of it to work on.

    `overrides` are further keys of the copies' config.json.
    """

    def __init__(self, folder: Path, records: int, migrations: int) -> None:
        """`migrations` tells how many of the shipped files are installed on it."""
        self.records = records
        self.migrations = migrations
        self.overrides: dict[str, object] = {}
        self._original = folder / f"original-{records}"
        self._copy = folder / f"terminal-{records}"
        if not self._original.exists():
            recipe = Recipe(profile="generic", records=records, unsettled=min(212, records), seed=1)
            make_terminal(self._original, recipe)
        self.pos_bytes = (self._original / "data" / "pos.db").stat().st_size

    @property
    def original_db(self) -> Path:
        """The pos.db that no run touches."""
        return self._original / "data" / "pos.db"

    def fresh(self) -> Path:
        """A new copy under the same name; the one before is gone. On flash when this returns."""
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._original, self._copy)
        self.install(self.migrations)
        path = self._copy / "etc" / "posagent" / "config.json"
        config = {**json.loads(path.read_text()), "migrations_dir": "/migrations"}
        config.update(self.overrides)
        path.write_text(json.dumps(config))
        os.sync()
        return self._copy

    def install(self, migrations: int) -> None:
        """Put the first so many of the shipped files on the copy."""
        folder = self._copy / "migrations"
        folder.mkdir(exist_ok=True)
        names = sorted(path.name for path in (ROOT / "migrations").glob("0*.py"))
        for name in (*names[:migrations], "stores.json"):
            shutil.copy(ROOT / "migrations" / name, folder / name)

    def done_with(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self._copy, ignore_errors=True)
