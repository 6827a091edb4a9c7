"""A small POS application: sells until it is told to let go of pos.db, and goes on afterwards.

It does what an application on a terminal has to do, and shares no code with the agent. It starts
when status.json says that it may, hears of an upgrade over the agent's socket, closes the file and
waits. Number and sale are one commit; a receipt is printed (a line in the receipts file) only after
COMMIT has returned, so every receipt is a sale that may never be lost. Started as
`python -I -S -B shop.py ROOT SALES_PER_S SEED`.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

STAN_MAX = 999_999  # six digits; after it comes 1
READS = range(4)  # the schema versions that this application knows
LOOK_S = 0.02  # how often it asks whether it may start; status.json lies in memory
BUSY_S = 1.0  # SQLite's own wait for a lock
RENEW_S = 300.0  # a subscription ends after ten minutes without a request
LINE_BYTES_MAX = 8192
CURRENCIES = ("EUR", "USDC", "BTC", "NIM")


class NotOurs(Exception):
    """The data is of a schema that this application does not know."""


class Ear:
    """The connection to the agent, on which it says when a run begins and ends."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._buffer = b""
        self._asked_s = 0.0
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # By the folder's descriptor: a socket's name may have 107 bytes only.
            self._socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        self._socket.settimeout(BUSY_S)

    def may_sell(self) -> bool:
        """Ask, and be told of changes from now on. Raises OSError when nobody answers."""
        self._asked_s = time.monotonic()
        request = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "subscribe",
            "params": {"events": ["state"]},
        }
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            for said in self._lines(self._socket.recv(LINE_BYTES_MAX)):
                if said.get("id") == 1:
                    return bool(said.get("result", {}).get("app_may_start"))

    def quiet_until(self, until_s: float) -> bool:
        """Whether nothing was said until then: selling goes on."""
        while True:
            wait_s = max(0.0, until_s - time.monotonic())
            ready, _, _ = select.select([self._socket], [], [], wait_s)
            if not ready:
                break
            if self._lines(self._socket.recv(LINE_BYTES_MAX)):
                return False
        return time.monotonic() - self._asked_s < RENEW_S or self.may_sell()

    def _lines(self, data: bytes) -> list[dict[str, Any]]:
        if not data:
            raise ConnectionError("the agent hung up")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class Till:
    """An open pos.db."""

    def __init__(self, pos: Path, rng: random.Random) -> None:
        self._db = sqlite3.connect(
            f"file:{pos}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_S
        )
        self._rng = rng
        self.version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if self.version not in READS:
            self.close()
            raise NotOurs(f"the data has schema {self.version}")

    def sell(self) -> dict[str, Any]:
        """One sale with the next numbers. Once this has returned it is money."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            numbers = self._next_numbers()
            sale = self._sale(*numbers)
            row = (sale["id"], json.dumps(sale, separators=(",", ":")))
            db.execute("INSERT INTO transactions (key, value) VALUES (?, ?)", row)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return sale

    def _next_numbers(self) -> tuple[int, int]:
        (text,) = self._db.execute("SELECT value FROM metadata WHERE key = 'counters'").fetchone()
        record = json.loads(text)
        record["stan"] = record["stan"] % STAN_MAX + 1
        record["receipt"] += 1
        value = json.dumps(record, separators=(",", ":"))
        self._db.execute("UPDATE metadata SET value = ? WHERE key = 'counters'", (value,))
        return record["stan"], record["receipt"]

    def _sale(self, stan: int, receipt: int) -> dict[str, Any]:
        """A sale in the shape of the data's schema."""
        now_ms = time.time_ns() // 1_000_000
        sale: dict[str, Any] = {
            "id": f"tx_{now_ms}_r{receipt}",
            "type": "sale",
            "currency": self._rng.choice(CURRENCIES),
            "amount": 100 + self._rng.randrange(5_000),
            "timestamp": now_ms,
            "status": "pending",
            "retries": 0,
            "stan": stan,
            "receipt": receipt,
            "metadata": {"storedAt": now_ms, "version": "1.4.2", "networkStatus": "offline"},
        }
        if self.version:
            sale.update(schemaVersion=min(self.version, 2), updatedAt=now_ms)
        return sale

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


class Shop:
    """The application: its terminal, its pace, its receipts."""

    def __init__(self, root: Path, sales_per_s: float, seed: str) -> None:
        self._pos = root / "data/pos.db"
        self._run = root / "run/posagent"
        self._receipts = (root / "receipts.jsonl").open("a", encoding="utf-8")
        self._gap_s = 1 / sales_per_s
        self._rng = random.Random(f"shop/{seed}")

    def open_for_ever(self) -> None:
        """Sell whenever the agent lets us."""
        while True:
            try:
                ear = self._when_allowed()
                try:
                    self._sell_until_told(ear)
                finally:
                    ear.close()
            except (OSError, ValueError):
                pass  # no agent, or none that answers: nobody may sell until there is one
            except sqlite3.Error:
                pass  # locked: an upgrade has it; nothing was sold
            time.sleep(LOOK_S)

    def _when_allowed(self) -> Ear:
        """Wait for the word in status.json, and for the agent's own word behind it."""
        while True:
            if self._status_lets_us():
                ear = Ear(self._run / "agent.sock")
                if ear.may_sell():
                    return ear
                ear.close()
            time.sleep(LOOK_S)

    def _status_lets_us(self) -> bool:
        try:
            said = json.loads((self._run / "status.json").read_text())
        except (OSError, ValueError):
            return False
        return said.get("app_may_start") is True

    def _sell_until_told(self, ear: Ear) -> None:
        till = Till(self._pos, self._rng)
        try:
            next_s = time.monotonic()
            while ear.quiet_until(next_s):
                self._print(till.sell(), till.version)
                next_s = max(next_s + self._gap_s, time.monotonic())
        finally:
            till.close()

    def _print(self, sale: dict[str, Any], version: int) -> None:
        """The customer has it now."""
        kept = {name: sale[name] for name in ("stan", "receipt", "currency", "amount")}
        line = json.dumps({"key": sale["id"], "schema": version, **kept})
        self._receipts.write(line + "\n")
        self._receipts.flush()


def main(words: list[str]) -> None:
    """Be the application until SIGTERM, between two sales or in one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    root, sales_per_s, seed = words
    try:
        Shop(Path(root), float(sales_per_s), seed).open_for_ever()
    except NotOurs as error:
        sys.exit(f"the shop stays closed: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
