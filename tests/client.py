"""A small application on pos.db, as a process of its own: whom the agent shares the file with.

It is an ordinary SQLite client: it opens the file by name, creates it where it is missing, waits in
its busy time-out, and calls a sale acknowledged once COMMIT has returned. A test drives it over a
pipe, a line at a time, so that each state it is to be in is reached before the test goes on.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

NAME = "till-app"  # what /proc calls it, and what the agent has to name
HAMMERS_TIMEOUT_S = 0.03
# After a busy answer it stays away as long as it waited before: an application that opens again
# at once looks, from outside, like one that never closed, and the agent lets that one be (code 5).
HAMMERS_BUSY_PAUSE_S = 0.03
# Three clients without any pause between two sales leave no moment in which nobody has the file.
HAMMERS_PAUSE_S = 0.01


def sale(key: str, amount: int = 1250) -> str:
    """An unsettled sale as the application writes it."""
    value = {
        "id": key,
        "amount": amount,
        "currency": "EUR",
        "status": "pending",
        "timestamp": 1_780_000_000_000,
    }
    return json.dumps(value)


class Client:
    """The application as a test holds it: `ask` a command and get its answer.

    Commands: `open SECONDS` (the busy time-out), `sale KEY`, `sql STATEMENT`, `close`, `die` (as
    after a power cut: nothing is closed). Answers: `ok ROWS`, `busy`, or `error WORDS`.
    """

    def __init__(self, db: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", __file__, str(db)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self.answer() == "ready"

    def send(self, command: str) -> None:
        """Give a command and do not wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """The next answer; "" when the process has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, command: str) -> str:
        """Give a command and wait for its answer."""
        self.send(command)
        return self.answer()

    def end(self) -> None:
        """Hang up: it closes its connection and ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def start_hammer(db: Path, log: Path, stop: Path, name: str) -> subprocess.Popen[bytes]:
    """A client that opens, sells and closes, on and on until `stop` is there.

    Each key is written to `log` after its COMMIT has returned, and only then.
    """
    words = [sys.executable, "-I", "-S", "-B", __file__, str(db), str(log), str(stop), name]
    return subprocess.Popen(words)


# The process itself


def main(words: list[str]) -> None:
    """Either obey standard input, or hammer."""
    Path("/proc/self/comm").write_text(NAME)
    if len(words) == 1:
        obey(words[0])
    else:
        hammer(*words)


def obey(db: str) -> None:
    """One answer for each command."""
    connection: sqlite3.Connection | None = None
    print("ready", flush=True)
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "die":
            os._exit(0)
        try:
            rows: list[object] = []
            if verb == "open":
                connection = sqlite3.connect(db, isolation_level=None, timeout=float(rest or 0))
            elif verb == "close" and connection is not None:
                connection.close()
            elif verb == "sale" and connection is not None:
                connection.execute("INSERT INTO transactions VALUES (?, ?)", (rest, sale(rest)))
            elif verb == "sql" and connection is not None:
                rows = connection.execute(rest).fetchall()
            print("ok", json.dumps(rows) if rows else "", flush=True)
        except sqlite3.Error as error:
            busy = "locked" in str(error)
            print("busy" if busy else f"error {error}", flush=True)


def hammer(db: str, log: str, stop: str, name: str) -> None:
    """Open, sell, close; a busy file is tried again with a new connection."""
    number = 0
    with open(log, "w", encoding="utf-8") as acknowledged:
        while not os.path.exists(stop):
            key = f"tx_{name}_{number:06d}"
            if sold(db, key):
                acknowledged.write(key + "\n")
                acknowledged.flush()
                number += 1
                time.sleep(HAMMERS_PAUSE_S)
            else:
                time.sleep(HAMMERS_BUSY_PAUSE_S)


def sold(db: str, key: str) -> bool:
    """Whether the sale was acknowledged; False when the file was busy all the time."""
    connection = sqlite3.connect(db, isolation_level=None, timeout=HAMMERS_TIMEOUT_S)
    try:
        connection.execute("INSERT INTO transactions VALUES (?, ?)", (key, sale(key)))
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    finally:
        connection.close()
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
