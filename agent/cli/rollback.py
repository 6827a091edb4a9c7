"""`rollback --dry-run`: which way leads back to an earlier version, and what it would keep.

Nothing is changed: pos.db is read as `plan` reads it, in a child, because authors' code is run.
"""

from __future__ import annotations

import os

from agent.cli.output import show
from agent.edges import database, flash, quiet
from agent.edges.config import places_of
from agent.edges.migration_files import MigrationFiles
from agent.ground.errors import AgentError, NeedsTechnician, Unsettled, revive
from agent.service.apart import apart
from agent.verbs import rows, survey, switch, way_down
from agent.worker.rolling_back import check_target, held_back
from agent.worker.start import missing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any

    from agent.cli.arguments import Command
    from agent.core.stores import Contract
    from agent.core.terminal import Places, RunRow
    from agent.edges.config import Config
    from agent.service.apart import Mark


def dry_rollback(command: Command, config: Config, to: int) -> int:
    """Show the way back. The exit code is that of the refusal a rollback would meet, else 0."""
    consent = bool(command.options.get("--despite-unsettled"))
    result = apart(config, lambda mark: _way_back(config, to, consent, mark))
    show(result, lines_of(result), command.json)
    error = result["refusal"]
    return revive(error).exit_code if error else 0


def _way_back(config: Config, to: int, consent: bool, mark: Mark) -> dict[str, Any]:
    places = places_of(config)
    result: dict[str, Any] = {
        "from_version": None,
        "to_version": to,
        "way": None,
        "kept": [],
        "refusal": None,
        "notes": [],
    }
    try:
        judge = _Judge(config, places, result, mark)
        judge.work(to, consent)
    except AgentError as error:
        result["refusal"] = error.as_json()
    except OSError as error:
        result["refusal"] = flash.refused(error, "looking at the terminal").as_json()
    except database.SQLITE_ERRORS as error:
        result["refusal"] = database.refused_by_sqlite(error, "reading pos.db").as_json()
    return result


class _Judge:
    """Fills `result` in the order in which a rollback looks for its way."""

    def __init__(self, config: Config, places: Places, result: dict[str, Any], mark: Mark) -> None:
        self.config = config
        self.places = places
        self.result = result
        self.mark = mark
        self.files = MigrationFiles(config.migrations_dir)
        self.limits = (config.profile.record_bytes_max, config.profile.record_depth_max)

    def work(self, to: int, consent: bool) -> None:
        """Judge. Raises AgentError for what a rollback would be refused for."""
        if not os.path.lexists(self.places.pos):
            raise missing(self.places)
        header = database.read_header(self.places.pos)
        if header is None:
            raise NeedsTechnician(f"{self.places.pos} is no SQLite file; restore a backup")
        note = self.result["notes"].append
        connection = quiet.open_quietly(self.places.pos, header.wal_mode, note)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            self.result["from_version"] = version
            check_target(version, to, self.files.head)
            self._note_application(to)
            if version == to:
                note(f"nothing to do: the data is at schema {version}")
            else:
                rows.check_format(connection)
                self._find_way(connection, version, to, consent)
        finally:
            connection.close()

    def _note_application(self, to: int) -> None:
        contracts = self.files.contracts
        if not contracts.application_reads(to):
            low, high = contracts.app_reads
            self.result["notes"].append(
                f"the installed application reads schema {low} to {high}: after the rollback it "
                "must not start until the one that reads it is installed"
            )

    def _find_way(self, connection: Connection, version: int, to: int, consent: bool) -> None:
        row, result = rows.read_run(connection), self.result
        self.mark("looking at the file from before the last switch")
        of_last = row is not None and (row.kind, row.from_version) == ("migrate", to)
        nothing_newer = row is not None and of_last and _holds_all(self.places, row.run)
        if row is not None and nothing_newer and _prev_is_ours(self.places, row):
            result["way"] = "switch back"
            return
        contract = rows.contract_at(connection, self.files.contracts, version)
        try:
            kept = self._tried(connection, contract, version, to)
        except AgentError as error:
            if row is not None and nothing_newer and self._backup_of(row):
                result["way"] = "restore"
                result["notes"].append(error.message)
                return
            raise held_back(version, to, error, row) from error
        if not consent:
            self._check_guard(connection, contract)
        result["way"], result["kept"] = "down", kept.as_json()

    def _tried(
        self, connection: Connection, contract: Contract, version: int, to: int
    ) -> way_down.Kept:
        def walked(store: str, done: int) -> None:
            self.mark(f"trying the way down of {store}")

        plan = self.files.load_down(version, to)
        applied = rows.read_applied(connection)
        way_down.check_reversible(plan, applied)
        plan.bind(0, "", applied)
        survey.check_stores(connection, contract)
        return way_down.try_down(connection, plan, self.limits, walked)

    def _backup_of(self, row: RunRow) -> bool:
        def read(done: int) -> None:
            self.mark("reading the backup")

        return way_down.backup_of(self.places, row, read) is not None

    def _check_guard(self, connection: Connection, contract: Contract) -> None:
        """Refuse what the profile refuses while sales are unsettled. Raises Unsettled."""
        if self.config.profile.unsettled_guard != "refuse":
            return

        def walked(store: str, done: int) -> None:
            self.mark(f"reading {store}")

        found = survey.survey(connection, contract, set(), self.limits, walked)
        summary = found.tally.unsettled_summary()
        if summary["records"]:
            raise Unsettled(
                "there are unsettled sales and this terminal's profile says to settle first; with "
                "consent: `posagent rollback --despite-unsettled`",
                **summary,
            )


def _holds_all(places: Places, run: str) -> bool:
    """Whether pos.db is what the last switch put there, byte for byte."""
    seal = switch.read_seal(places)
    if seal is None or seal.run != run or switch.written_since(places, seal) is True:
        return False
    return flash.digest_file(places.pos) == (seal.size, seal.sha256)


def _prev_is_ours(places: Places, row: RunRow) -> bool:
    if not os.path.isfile(places.prev) or switch.same_file(places.pos, places.prev):
        return False
    return flash.digest_file(places.prev) == (row.source_size, row.source_sha256)


def lines_of(result: dict[str, Any]) -> list[str]:
    """The way back for people."""
    words = {
        "switch back": "the old file is put back; nothing was written since the switch",
        "down": "`down` on a successor, which keeps what was sold since",
        "restore": "the backup is restored; it holds all there is",
    }
    lines = []
    if result["from_version"] is not None:
        lines.append(f"schema {result['from_version']} -> {result['to_version']}")
    if result["way"] is not None:
        lines.append(f"way back: {words[result['way']]}")
    lines += kept_lines(result["kept"])
    lines += [f"note: {note}" for note in result["notes"]]
    error = result["refusal"]
    if error:
        lines.append(f"a rollback would be refused: {error['code']}: {error['message']}")
    return lines


def kept_lines(kept: list[dict[str, Any]]) -> list[str]:
    """What stays as the new software wrote it."""
    lines = []
    for entry in kept:
        of = "" if entry["version"] is None else f" ({entry['version']:04d}: {entry['step']})"
        if entry["version"] is None:
            done = "stays" if entry["what"] == "kept" else "is dropped with them"
            lines.append(f"{entry['step']} holds {entry['records']:,} rows and {done}")
            continue
        done = "are kept as they were written since"
        if entry["what"] == "removed":
            done = "that were written since are taken out"
        lines.append(
            f"values in {entry['records']:,} records {done}{of}: {', '.join(entry['first'])}"
        )
    return lines
