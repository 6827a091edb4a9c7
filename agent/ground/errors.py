"""The errors a caller can match: one class, one stable code word and one exit code each.

An error leaves everything as it was unless its sentence says otherwise, and the sentence tells a
technician what to do. Facts (sizes, names, counts) travel beside the sentence as plain values;
record bodies never do.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class AgentError(Exception):
    """A failure with a stable `code`, the `exit_code` for it, and `facts` for machines."""

    code = "FAILED"
    exit_code = 1
    # What the failed call came to besides, as `MigrationManager` raises it; else None.
    result: dict[str, Any] | None = None

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = printable(message)
        self.facts = {k: printable(v) if type(v) is str else v for k, v in facts.items()}

    def as_json(self) -> dict[str, Any]:
        """The object that appears under `error` in every machine-readable answer."""
        answer: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.facts:
            answer["facts"] = self.facts
        return answer


class Busy(AgentError):
    """Somebody else holds the data or the agent; nothing was touched."""

    code = "BUSY"
    exit_code = 5


class StorageFull(AgentError):
    """The space that a run may need is not there, or flash refused a write."""

    code = "STORAGE_ERROR"
    exit_code = 6


class TimedOut(AgentError):
    """No mark of progress came within the deadline, or a worker outgrew its limit."""

    code = "TIMEOUT"
    exit_code = 7


class Interrupted(AgentError):
    """Somebody told the run to stop; what is done stays, and the next start goes on from there."""

    code = "INTERRUPTED"
    exit_code = 3


class SchemaTooNew(AgentError):
    """The data was written by newer software than this."""

    code = "SCHEMA_TOO_NEW"
    exit_code = 8


class BackupCorrupt(AgentError):
    """A backup is truncated, changed, foreign or of an unknown format; it is never restored."""

    code = "BACKUP_CORRUPT"
    exit_code = 9


class ValidationError(AgentError):
    """A record, a check or the proof failed; the data is as it was."""

    code = "VALIDATION_ERROR"
    exit_code = 10


class MigrationsRejected(AgentError):
    """The migration files cannot be used as they are."""

    code = "MIGRATIONS_REJECTED"
    exit_code = 11


class NeedsTechnician(AgentError):
    """The application must not start: somebody has to look at this terminal."""

    code = "HELD"
    exit_code = 12


class Unsettled(AgentError):
    """Going on would lose or touch unsettled sales that nobody consented to."""

    code = "UNSETTLED"
    exit_code = 13


class UsageError(AgentError):
    """The command line says something that cannot be done."""

    code = "USAGE"
    exit_code = 64


class InternalError(AgentError):
    """A fault of the agent itself."""

    code = "INTERNAL"
    exit_code = 70


class ConfigError(AgentError):
    """The configuration, the profile or the platform cannot be used."""

    code = "CONFIG"
    exit_code = 78


EXIT_OK = 0
EXIT_PENDING = 3
EXIT_PARTIAL = 14

_FAMILY = (
    AgentError,
    Busy,
    StorageFull,
    TimedOut,
    Interrupted,
    SchemaTooNew,
    BackupCorrupt,
    ValidationError,
    MigrationsRejected,
    NeedsTechnician,
    Unsettled,
    UsageError,
    InternalError,
    ConfigError,
)


def revive(answer: dict[str, Any]) -> AgentError:
    """Rebuild an error from `as_json`, as it arrives over a pipe or from the diary."""
    for kind in _FAMILY:
        if kind.code == answer.get("code"):
            return kind(str(answer.get("message", "")), **answer.get("facts", {}))
    return InternalError(str(answer.get("message", "unknown error")))


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold written out: paths need not be UTF-8, reports must."""
    return text.encode("utf-8", "backslashreplace").decode()


def sentence_for(error: OSError) -> str:
    """The system's own words for an OSError with the path it concerns."""
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"
