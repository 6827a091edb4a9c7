"""The console against a terminal with a state: what a technician types, and what is on the screen.

The keys go through the real editor, the calls through the real table of methods and the real access
control; only the runs behind them are played.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import aio
from agent.ground.codec import decode_line
from agent.links import console_text as texts
from agent.links.access import Access, code_for, reaches
from agent.links.asking import number_of
from agent.links.commands import COMMANDS, TypingError, parse, split, understood
from agent.links.console import Console, canonical
from agent.links.console_tables import TABLES
from agent.links.editor import Editor
from agent.links.methods import METHODS, check_params, method_named
from agent.links.mute import Mute
from agent.links.pager import PAGE_LINES
from agent.links.watching import RENEW_MS
from agent.links.wire import RemoteError, remote

KEY = b"k" * 32
SERIAL = "0012345"
DISCARD = "newer=37,changed=0,gone=0,settled=0"
BACKUP = "000041-v12.posbak"
STEPS = [
    {"version": 13, "name": "split_sync", "rows": 11800, "batches": 118, "reversible": True},
    {"version": 14, "name": "add_currency", "rows": 4200, "batches": 42, "reversible": False},
]


@pytest.fixture(autouse=True)
def hand_clock() -> Iterator[None]:
    """The scheduler's time passes at once when it has nothing else to do."""
    now = 0

    def poll(poller: select.poll, wait_ms: int) -> list[tuple[int, int]]:
        nonlocal now
        now += max(wait_ms, 0)
        return poller.poll(0)

    aio.new_event_loop()
    aio.use_clock(lambda: now, poll)
    yield
    aio.use_clock()


class Store:
    """What access control keeps."""

    def load_access(self) -> dict[str, int]:
        return {"counter": 6, "fails": 0, "locked": 0}

    def save_access(self, counter: int, fails: int, locked: int) -> None:
        pass


class Terminal:
    """Schema, runs and history of a terminal, behind the judge that every line has."""

    def __init__(self, level: str = "tech") -> None:
        self.level = level
        self.now = 1_000_000
        self.schema, self.target = 12, 14
        self.run: int | None = None
        self.next_run = 17
        self.ended: dict[int, dict[str, Any]] = {}
        self.refusals: list[dict[str, Any]] = []
        self.rows = 3
        self.subscribed = False
        self.looks_until_read: dict[str, int] = {}  # how often a report is not ready yet
        self.looks_until_noted = 0  # how often a run that ended is still said to be on
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.ops: dict[str, str] = {}
        self.fails: dict[str, RemoteError] = {}
        self.answers: dict[str, dict[str, Any]] = {}  # instead of what it would answer
        nonce = bytes.fromhex("99ef4176cd")
        self.access = Access(KEY, SERIAL, Store(), lambda: self.now, lambda count: nonce)

    def banner(self) -> dict[str, Any]:
        return {
            "model": "VX-210",
            "serial": SERIAL,
            "agent": "0.1.0",
            "schema": self.schema,
            "target": self.target,
            "pending": self.target - self.schema,
            "storage": "OK",
            "unsettled": 118,
            "open": False,
        }

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((method, params))
        check_params(method_named(method), params)
        need = "admin" if params.get("despite_unsettled") else METHODS[method].level
        if not reaches(self.level, need) and not self.access.spend(canonical(method, params)):
            raise remote("NOT_ALLOWED", f"{method} needs {need}", need=need)
        if method in self.fails:
            raise self.fails[method]
        if self.looks_until_read.get(method):
            self.looks_until_read[method] -= 1
            raise remote("BUSY", "it is being worked out; ask again in a moment", reading=True)
        if method in self.answers:
            return self.answers[method]
        answer: dict[str, Any] = getattr(self, "do_" + method, self.start)(method, params)
        return answer

    def start(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if self.run is not None and METHODS[method].changes:
            raise remote("BUSY", f"run {self.run} is on", run=self.run)
        if method == "migrate" and params["plan"] != "9f3c21aa":
            raise remote("PLAN_CHANGED", "the plan is another one now")
        if METHODS[method].changes:
            assert params["op"] not in self.ops
            self.ops[params["op"]] = canonical(method, params)
        self.run, self.next_run = self.next_run, self.next_run + 1
        return {"run": self.run, "replayed": False, "state": "checking"}

    def end(self, verdict: str = "OK", **more: Any) -> dict[str, Any]:
        """The run ends; answers the notification of it."""
        assert self.run is not None
        run, self.run = self.run, None
        self.schema = self.target
        outcome = {"verdict": verdict, "from_version": 12, "to_version": self.schema, **more}
        self.ended[run] = outcome
        return {"run": run, "seq": 9, "from": "switching", "to": "idle", "why": verdict}

    def do_hello(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        known = {"agent": "0.1.0", "model": "VX-210", "serial": SERIAL, "boot": "b7f2"}
        return {"proto": 1, **known, "level": self.level}

    def do_status(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return {
            "state": "idle" if self.run is None else "migrating",
            "app_may_start": True,
            "schema": self.schema,
            "target": self.target,
            "run": self.run,
            "step": None if self.run is None else "13 split_sync",
            "done": None if self.run is None else 1180,
            "total": None if self.run is None else 11800,
            "eta_s": None if self.run is None else 40,
            "unsettled": 118,
            "counted_s": 40,
            "free_kib": 2412,
            "need_kib": 1630,
            "backup": BACKUP,
            "last_error": None,
            "verdict": None,
            "seq": 4,
            "boot": "b7f2",
        }

    def do_plan(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return {
            "plan": "9f3c21aa",
            "from_version": self.schema,
            "to_version": self.target,
            "steps": STEPS if self.schema < self.target else [],
            "backup_kib": 820,
            "peak_kib": 1630,
            "free_kib": 2412,
            "fits": True,
            "est_s": 52,
            "refusals": self.refusals,
            "next": None,
        }

    def do_history(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        start = params.get("cursor", 0)
        rows = [
            {
                "seq": number,
                "run": "r1",
                "kind": "migrate",
                "version": None,
                "name": None,
                "state": "applied",
                "from_version": 12,
                "to_version": 14,
                "verdict": "OK",
                "code": None,
                "message": None,
                "at_ms": 1_795_764_600_000,
                "clock_trusted": True,
            }
            for number in range(start, min(start + 7, self.rows))
        ]
        end = start + len(rows)
        return {"history": rows, "next": end if end < self.rows else None}

    def do_result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        run = params["run"]
        if self.looks_until_noted:
            self.looks_until_noted -= 1
            return {"run": run, "method": "migrate", "state": "running"}
        if run not in self.ended:
            raise remote("NO_SUCH", f"there is no run {run}")
        return {"run": run, "method": "migrate", "state": "done", "outcome": self.ended[run]}

    def do_subscribe(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.subscribed = True
        return self.do_status(method, params)

    def do_unsubscribe(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.subscribed = False
        return {}

    def do_cancel(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"run": params["run"], "replayed": False, "state": "migrating"}

    def do_challenge(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        command = params["command"]
        if command == f"restore {BACKUP}":
            command += f" discard {DISCARD}"  # counted by the daemon: the desk signs the counts
        return self.access.challenge(command)

    def do_code(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "command": self.access.answer(params["code"])}

    def do_describe(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"method": params["method"], "level": METHODS[params["method"]].level}


class Seat:
    """A person at a screen: what a link does between a serial port, editor and console."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.screen = ""
        self.console = Console(terminal.call, self.out, terminal, lambda: terminal.now)
        self.editor = Editor(self.console.complete)
        self.editor.silent = True

    def out(self, text: str) -> None:
        self.screen += text

    def type(self, keys: str) -> str:
        """Type; answer what is new on the screen, with what was erased gone."""
        before = len(self.screen)
        aio.run(self.feed_all(keys.encode("latin-1")))
        return self.screen[before:].replace("\r\n", "\n")

    async def feed_all(self, keys: bytes) -> None:
        for key in keys:
            await self.feed(bytes([key]))

    async def feed(self, keys: bytes) -> None:
        now = self.terminal.now
        if self.console.mute.is_on(now):
            self.console.mute.feed(now)
            return
        echo, events = self.editor.feed(keys, now)
        self.out(echo.decode())
        for event, text in events:
            if event == "line":
                await self.console.line(text)
            elif event == "interrupt":
                await self.console.interrupt()
            self.out(self.console.prompt())
        await aio.sleep_ms(0)

    def wait(self) -> str:
        """Time passes by itself; answer what is new on the screen."""
        before = len(self.screen)

        async def pass_by() -> None:
            await aio.sleep_ms(60_000)

        aio.run(pass_by())
        return self.screen[before:]

    def notify(self, method: str, **params: Any) -> str:
        """A notification comes; answer what is new on the screen."""
        before = len(self.screen)

        async def come() -> None:
            self.console.notify(method, params)
            await aio.sleep_ms(60_000)  # of the hand clock: until there is nothing left to do

        aio.run(come())
        return self.screen[before:]

    def last_call(self) -> tuple[str, dict[str, Any]]:
        return self.terminal.calls[-1]


@pytest.fixture
def seat() -> Seat:
    """A technician who has pressed Enter once."""
    made = Seat(Terminal())
    made.type("\r")
    return made


def desk(terminal: Terminal, command: str, counter: int = 7) -> str:
    """The code that the service desk reads out."""
    nonce = terminal.access.challenge(command)["nonce"]
    return code_for(KEY, SERIAL, counter, nonce, command)


def test_a_visit_of_a_technician_from_the_first_enter_to_a_restore() -> None:
    terminal = Terminal()
    seat = Seat(terminal)
    migrate = number_of("migrate 14 plan 9f3c21aa")
    restore = f"restore {BACKUP} discard {DISCARD}"

    assert seat.type("\r") == (
        "\n"
        "Terminal VX-210 SN 0012345 | agent 0.1.0 | schema 12 -> 14 pending | storage OK\n"
        "118 unsettled\n"
        "type help. Nothing here can delete data without a code from the service desk.\n"
        "agent> "
    )
    assert seat.type("stat\t\r") == (
        "status \n"
        "state      idle            boot b7f2, the application may start\n"
        "schema     12 -> 14        2 migrations pending\n"
        "unsettled  118             counted 40 s ago\n"
        "storage    2412 KiB free, next run needs 1630\n"
        f"backup     {BACKUP}\n"
        "last error none\n"
        'to do      type "migrate", or restart the terminal\n'
        "agent> "
    )
    assert seat.type("plan\r") == (
        "plan\n"
        " 13 split_sync                  11800 rows,   118 batches  reversible\n"
        " 14 add_currency                 4200 rows,    42 batches  cannot be undone\n"
        " plan 9f3c21aa: backup 820 KiB, peak 1630 KiB, fits, ~52 s\n"
        "agent> "
    )
    assert seat.type(f"migrate\r{migrate}\r") == (
        "migrate\n"
        f"This runs plan 9f3c21aa (12 -> 14). Type {migrate} to start: {migrate}\n"
        "run 17 started; safe to unplug the cable\n"
        '  "watch 17" follows it, "cancel 17" stops after the current batch\n'
        "agent> "
    )
    assert seat.type("watch 17\r") == (
        "watch 17\n[ 10%] migrating 13 split_sync  1180/11800, about 40 s left\n"
    )
    here = {"run": 17, "seq": 5, "state": "migrating", "step": "13 split_sync", "total": 11800}
    assert seat.notify("progress", **here, done=4200, eta_s=-1) == (
        "[ 35%] migrating 13 split_sync  4200/11800\n"
    )
    assert seat.type("\x03") == "^C detached; run 17 continues\nagent> "
    assert terminal.run == 17
    assert not terminal.subscribed

    terminal.end()
    assert seat.type(f"restore {BACKUP}\r") == (
        f"restore {BACKUP}\n"
        "refused: restore needs a service code; nothing was changed\n"
        "  would discard: 37 unsettled sales made since are lost\n"
        f"  read to the desk:  SN 0012345  #7  K7QM-2XPD\n"
        f"  for: {restore}\n"
        "  then type: code XXXX-XXXX   (valid 15 min, 3 tries)\n"
        "agent> "
    )
    code, number = desk(terminal, restore), number_of(restore)
    assert seat.type(f"code {code}\r") == (
        f"code {code}\naccepted for exactly one command: {restore}.\nType {number} to start: "
    )
    assert seat.type(f"{number}\r").startswith(f"{number}\nrun 18 started;")
    assert list(terminal.ops.values()) == ["migrate 14 plan 9f3c21aa", restore]
    assert seat.type("stauts\r") == (
        'stauts\nerror: unknown command "stauts" - did you mean "status"? '
        f"(help lists {len(COMMANDS)} commands)\nagent> "
    )


# ---- Greeting


def test_nothing_is_printed_before_the_first_enter() -> None:
    seat = Seat(Terminal())
    assert seat.type("sta\t\x03\x15\xff\xff\x1b[A") == ""
    assert seat.console.prompt() == ""


def test_the_banner_is_printed_once_and_again_after_a_hang_up(seat: Seat) -> None:
    assert "Terminal" not in seat.type("\r\r")
    seat.console.hang_up()
    assert seat.type("\r").count("Terminal") == 1


def test_an_open_terminal_says_so_in_its_banner() -> None:
    lines = texts.banner({**Terminal().banner(), "open": True})
    assert "OPEN" in lines[-1]
    assert max(map(len, lines)) <= texts.LINE_CHARS_MAX


def test_a_hang_up_leaves_no_question_open(seat: Seat) -> None:
    seat.type("migrate\r")
    seat.console.hang_up()
    seat.type(number_of("migrate 14 plan 9f3c21aa") + "\r")
    assert seat.terminal.ops == {}


# ---- Starting something


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("backup", "backup"),
        ("migrate", "migrate 14 plan 9f3c21aa"),
        ("migrate 14", "migrate 14 plan 9f3c21aa"),
        ("MIGRATE plan 9f3c21aa", "migrate 14 plan 9f3c21aa"),
        ("commit", "commit"),
        ("prune", "prune"),
        ("prune despite-unsettled", "prune despite-unsettled"),
        ("rollback 12", "rollback 12"),
        ("rollback  12  plan  p1", "rollback 12 plan p1"),
        ("restore 000041", "restore 41"),
        (f"restore {BACKUP}", f"restore {BACKUP}"),
        (f"restore 41 discard {DISCARD}", f"restore 41 discard {DISCARD}"),
        (f"restore discard {DISCARD} 41", f"restore 41 discard {DISCARD}"),
        ("restore 41 discard unknown", "restore 41 discard unknown"),
        ("restore 41 --discard changed=3", "restore 41 discard changed=3"),
        ("prune --despite-unsettled", "prune despite-unsettled"),
    ],
)
def test_what_was_understood_is_started_by_its_number_alone(typed: str, text: str) -> None:
    seat = Seat(Terminal("admin"))
    seat.type("\r")
    asked = seat.type(typed + "\r")
    assert asked.endswith(f"Type {number_of(text)} to start: ")
    assert seat.terminal.ops == {}
    assert "run 17 started" in seat.type(number_of(text) + "\r")
    (op,) = seat.terminal.ops
    assert seat.terminal.ops == {op: text}
    assert op.startswith("con-")
    assert len(op) == 16


@pytest.mark.parametrize("answer", ["", "y", "yes", "0000", " 4471", "migrate", "\x03"])
def test_any_other_answer_starts_nothing(seat: Seat, answer: str) -> None:
    seat.type("migrate\r")
    assert seat.console.prompt() == ""
    assert seat.type(answer + "\r").rpartition("agent> ")[0].count("nothing was changed") == 1
    assert seat.terminal.ops == {}
    assert seat.type(number_of("migrate 14 plan 9f3c21aa") + "\r").count("unknown command") == 1


def test_a_number_that_comes_much_later_starts_nothing(seat: Seat) -> None:
    seat.type("migrate\r")
    seat.terminal.now += 300_001
    seat.type(number_of("migrate 14 plan 9f3c21aa") + "\r")
    assert seat.terminal.ops == {}


def test_two_commands_are_two_calls(seat: Seat) -> None:
    seat.type(f"backup\r{number_of('backup')}\r")
    seat.terminal.end()
    seat.type(f"backup\r{number_of('backup')}\r")
    assert len(seat.terminal.ops) == 2


def test_a_plan_that_would_be_refused_is_not_offered(seat: Seat) -> None:
    seat.terminal.refusals = [{"code": "STORAGE_ERROR", "message": "needs 10, has 5"}]
    assert seat.type("migrate\r") == (
        "migrate\nrefused: STORAGE_ERROR: needs 10, has 5\n"
        "not started; nothing was changed\nagent> "
    )


def test_consent_to_unsettled_sales_is_said_and_needs_a_code(seat: Seat) -> None:
    seat.terminal.refusals = [{"code": "UNSETTLED", "message": "settle first"}]
    command = "migrate 14 plan 9f3c21aa despite-unsettled"
    assert f"#7  K7QM-2XPD\n  for: {command}\n" in seat.type("migrate despite-unsettled\r")
    asked = seat.type(f"code {desk(seat.terminal, command).lower()}\r")
    assert asked.endswith(f"{command}.\nType {number_of(command)} to start: ")
    seat.type(number_of(command) + "\r")
    assert seat.last_call()[1]["despite_unsettled"] is True


def test_nothing_pending_is_nothing_to_start(seat: Seat) -> None:
    seat.terminal.schema = 14
    assert "nothing to do: the data is at schema 14" in seat.type("migrate\r")
    assert "nothing is pending" in seat.type("plan\r")


def test_a_plan_that_counts_rows_for_all_steps_together_says_so() -> None:
    page = {
        **Terminal().do_plan("plan", {}),
        "steps": [{"version": 13, "name": "split_sync", "steps": 2, "reversible": True}],
        "rows": 16000,
        "batches": 160,
        "fits": False,
    }
    assert TABLES["plan"].lines(page, True) == [
        " 13 split_sync                reversible",
        " plan 9f3c21aa: 16000 rows, 160 batches, backup 820 KiB, peak 1630 KiB, DOES",
        "                NOT FIT, ~52 s",
    ]


def test_a_migration_whose_name_is_a_sentence_has_it_whole_on_a_line_of_its_own() -> None:
    row = {"version": 3, "name": "move the user's preferences", "rows": 2, "batches": 1}
    assert TABLES["plan"].row(row, TABLES["plan"].widths) == [
        "  3 move the user's preferences",
        " " * 30 + "      2 rows,     1 batches  cannot be undone",
    ]


def test_a_plan_that_changed_between_question_and_answer_is_not_run(seat: Seat) -> None:
    seat.type("migrate\r")
    seat.terminal.fails["migrate"] = remote("PLAN_CHANGED", "the plan is 77 now")
    said = seat.type(number_of("migrate 14 plan 9f3c21aa") + "\r")
    assert "refused: the plan is 77 now; nothing was changed\n" in said


def test_what_is_done_already_is_said(seat: Seat) -> None:
    assert texts.started_lines("migrate", {"noop": True}) == ["nothing to do: it is so already"]
    replayed = texts.started_lines("migrate", {"run": 3, "replayed": True, "state": "done"})
    assert replayed == ['run 3 was started by the same call before; "result 3" tells of it']


# ---- Rights


def test_without_a_key_the_desk_cannot_help_and_the_reason_is_said(seat: Seat) -> None:
    seat.terminal.access = Access(None, SERIAL, Store(), lambda: 0, lambda count: b"")
    said = seat.type("prune\r")
    assert said.startswith("prune\nrefused: prune needs a service code; nothing was changed\n  no ")
    assert "read to the desk" not in said


def test_a_judge_that_refuses_only_the_call_sends_to_the_desk_as_well() -> None:
    terminal = Terminal("admin")
    seat = Seat(terminal)
    seat.type("\rrestore 41\r")
    lost = remote("NOT_ALLOWED", "needs a code", need="admin", discard=DISCARD)
    terminal.fails["restore"] = lost
    said = seat.type(number_of("restore 41") + "\r")
    assert f"restore 41 discard {DISCARD}\n" in said
    assert terminal.ops == {}


def test_a_code_starts_nothing_without_the_number(seat: Seat) -> None:
    seat.type("prune\r")
    seat.type(f"code {desk(seat.terminal, 'prune')}\r")
    assert "not started; nothing was changed" in seat.type("prune\r")
    assert seat.terminal.ops == {}
    # The code is not used up: the same command asks for the number at once.
    assert seat.type("prune\r").endswith(f"Type {number_of('prune')} to start: ")
    assert "run 17 started" in seat.type(number_of("prune") + "\r")


def test_a_code_is_good_for_one_command_and_once(seat: Seat) -> None:
    seat.type("prune\r")
    seat.type(f"code {desk(seat.terminal, 'prune')}\r{number_of('prune')}\r")
    seat.terminal.end()
    assert "refused: prune needs a service code" in seat.type("prune\r")


def test_a_wrong_code_is_refused_with_the_tries_left(seat: Seat) -> None:
    seat.type("prune\r")
    said = seat.type("code 0000-0000\r")
    assert said.startswith("code 0000-0000\nrefused: ")
    assert "2" in said
    assert "nothing was changed" in said


def test_a_challenge_can_be_asked_for_in_so_many_words(seat: Seat) -> None:
    assert "#7  K7QM-2XPD  restore 41\n" in seat.type("challenge  RESTORE 0041\r")
    assert seat.last_call() == ("challenge", {"command": "restore 41"})


def test_challenge_and_code_in_json_are_the_results_themselves(seat: Seat) -> None:
    asked = decode_line(seat.type("challenge prune --json\r").splitlines()[1])
    code = code_for(KEY, SERIAL, asked["counter"], asked["nonce"], "prune")
    said = seat.type(f"code {code} --json\r").splitlines()
    assert decode_line(said[1]) == {"ok": True, "command": "prune"}
    assert said[2].endswith(f"Type {number_of('prune')} to start: ")


@pytest.mark.parametrize("command", ["read 000041-v12.posbak", "what ever", " "])
def test_a_code_for_what_is_no_command_of_the_console_asks_for_no_number(
    seat: Seat, command: str
) -> None:
    seat.type("prune\r")
    code = desk(seat.terminal, "prune")
    answer = {"ok": True, "command": command}
    seat.terminal.answers["code"] = answer
    said = seat.type(f"code {code}\r")
    assert said.endswith(f"accepted for exactly one command: {command}.\nagent> ")


def test_a_code_may_be_typed_in_groups(seat: Seat) -> None:
    seat.type("prune\r")
    code = desk(seat.terminal, "prune").replace("-", " ")
    assert seat.type(f"code {code}\r").endswith(" to start: ")


def test_a_nonce_is_read_out_in_two_groups_and_the_time_left_in_minutes() -> None:
    lines = texts.desk_lines(
        {"serial": "1", "counter": 2, "nonce": "K7QM2XPD", "command": "prune", "expires_s": 600}
    )
    assert lines == [
        "  read to the desk:  SN 1  #2  K7QM-2XPD  prune",
        "  then type: code XXXX-XXXX   (valid 10 min, 3 tries)",
    ]


# ---- Following a run


def started(seat: Seat) -> None:
    seat.type(f"migrate\r{number_of('migrate 14 plan 9f3c21aa')}\r")


def test_watch_ends_by_itself_with_the_verdict(seat: Seat) -> None:
    started(seat)
    seat.type("watch\r")
    assert seat.console.prompt() == ""
    said = seat.notify("state", **seat.terminal.end(backup=BACKUP))
    assert said == (
        f"run 17 migrate: done\nOK: schema 12 -> 14\nbackup {BACKUP}, read back and verified\n"
        "agent> "
    )
    assert not seat.terminal.subscribed
    assert seat.notify("alarm", kind="clock", text="x") == ""


def test_watch_waits_until_the_end_of_the_run_is_noted(seat: Seat) -> None:
    started(seat)
    seat.type("watch\r")
    assert seat.notify("state", run=17, to="done", why="") == ""
    seat.terminal.looks_until_noted = 3
    assert seat.notify("state", **seat.terminal.end()) == (
        "run 17 migrate: done\nOK: schema 12 -> 14\nagent> "
    )


def test_watch_gives_up_on_an_end_that_is_never_noted(seat: Seat) -> None:
    started(seat)
    seat.type("watch\r")
    seat.terminal.looks_until_noted = 1000
    assert seat.notify("state", **seat.terminal.end()) == "run 17 migrate: running\nagent> "


def test_watch_of_a_long_run_keeps_its_subscription(seat: Seat) -> None:
    started(seat)
    seat.type("watch\r")
    seat.terminal.now += RENEW_MS - 1
    seat.notify("progress", run=17, state="proving")
    assert seat.last_call()[0] == "subscribe"
    renewed = len(seat.terminal.calls)
    seat.terminal.now += 1
    seat.notify("progress", run=17, state="proving")
    seat.notify("progress", run=17, state="proving")
    assert [method for method, _ in seat.terminal.calls[renewed:]] == ["subscribe"]


def test_watch_ends_although_the_verdict_cannot_be_had(seat: Seat) -> None:
    started(seat)
    seat.type("watch\r")
    seat.terminal.fails["result"] = remote("INTERNAL", "no diary")
    seat.terminal.fails["unsubscribe"] = remote("INTERNAL", "gone")
    assert seat.notify("state", **seat.terminal.end()) == (
        "error: no diary; nothing was changed\nagent> "
    )


def test_watch_appends_a_line_per_tenth_and_every_five_seconds(seat: Seat) -> None:
    started(seat)
    seat.type("watch\r")
    here = {"run": 17, "seq": 5, "state": "migrating", "step": "13 split_sync", "total": 1000}
    shown = []
    for done in (100, 150, 199, 200, 201, 202):
        seat.terminal.now += 1_200 if done > 200 else 0
        shown.append(seat.notify("progress", **here, done=done, eta_s=-1))
    assert [bool(text) for text in shown] == [False, False, False, True, False, False]
    seat.terminal.now += 2_700
    assert seat.notify("progress", **here, done=203, eta_s=70) == (
        "[ 20%] migrating 13 split_sync  203/1000, about 1 min 10 s left\n"
    )


def test_watch_tells_of_states_and_alarms_and_of_no_other_run(seat: Seat) -> None:
    started(seat)
    seat.type("watch 17\r")
    assert seat.notify("state", run=17, to="proving", why="") == "run 17: proving\n"
    assert seat.notify("state", run=16, to="idle", why="") == ""
    assert seat.notify("progress", run=17, state="proving", step=None) == "[  0%] proving\n"
    assert seat.notify("progress", run=17, state="proving", step="") == ""
    assert seat.notify("alarm", kind="clock", text="1970\x1b[2J") == "alarm: clock: 1970\\x1b[2J\n"


def test_watch_ends_when_a_later_run_is_on(seat: Seat) -> None:
    started(seat)
    seat.type("watch 17\r")
    seat.terminal.end()
    assert seat.notify("progress", run=18).startswith("run 17 migrate: done\n")


def test_watch_of_a_run_that_is_over_tells_its_verdict(seat: Seat) -> None:
    started(seat)
    seat.terminal.end("ROLLED_BACK", code="VALIDATION_ERROR", message="record 7 failed")
    assert seat.type("watch 17\r") == (
        "watch 17\nrun 17 migrate: done\nROLLED_BACK: VALIDATION_ERROR: record 7 failed\nagent> "
    )
    assert "no run is on" in seat.type("watch\r")
    assert "error: there is no run 99; nothing was changed" in seat.type("watch 99\r")
    assert not seat.terminal.subscribed


def test_commands_work_while_a_run_is_watched(seat: Seat) -> None:
    started(seat)
    seat.type("watch\r")
    assert seat.type("cancel 17\r") == "cancel 17\nrun 17 stops after the current batch\n"
    method, params = seat.last_call()
    assert (method, params["run"], params["op"][:4]) == ("cancel", 17, "con-")


def test_ctrl_c_leaves_a_watch_and_the_question_that_came_up_meanwhile(seat: Seat) -> None:
    started(seat)
    seat.type("watch\rbackup\r")
    assert seat.type("\x03") == (
        "^C detached; run 17 continues\nnot started; nothing was changed\nagent> "
    )


def test_ctrl_c_never_cancels_a_run(seat: Seat) -> None:
    started(seat)
    for _ in range(3):
        seat.type("\x03")
    assert seat.terminal.run == 17
    assert all(method != "cancel" for method, _ in seat.terminal.calls)


# ---- Lists


def test_a_list_stops_every_twenty_lines(seat: Seat) -> None:
    seat.terminal.rows = 45  # and one line of titles
    first = seat.type("history\r")
    assert first.count("\n") == 1 + PAGE_LINES
    assert first.endswith("\n-- more -- ")
    assert seat.type("\r").count("\n") == 1 + PAGE_LINES
    rest = seat.type(" \r")
    assert rest.count("\n") == 1 + 6
    assert rest.endswith("agent> ")


def test_a_list_shows_every_row_once_in_at_most_79_columns(seat: Seat) -> None:
    seat.terminal.rows = 45
    shown = seat.type("history\r\r\r").splitlines()
    rows = [line for line in shown if "applied" in line]
    assert [int(line.split()[0]) for line in rows] == list(range(45))
    assert max(map(len, shown)) <= 79


@pytest.mark.parametrize("keys", ["q\r", "Q\r", "\x03"])
def test_a_list_is_left_by_q_and_by_ctrl_c(seat: Seat, keys: str) -> None:
    seat.terminal.rows = 45
    seat.type("history\r")
    assert seat.type(keys).endswith("\nagent> ")
    assert seat.type("version\r").startswith("version\nagent 0.1.0")


def test_a_command_at_more_leaves_the_list_and_is_done(seat: Seat) -> None:
    seat.terminal.rows = 45
    seat.type("history\r")
    assert "run 17" not in seat.type("cancel 17\r").replace("run 17 stops", "")
    assert seat.console.prompt() == "agent> "


def test_a_list_of_exactly_twenty_lines_does_not_ask(seat: Seat) -> None:
    seat.terminal.rows = PAGE_LINES - 1
    assert seat.type("history\r").endswith("\nagent> ")


def test_a_list_whose_next_page_fails_ends_with_the_error(seat: Seat) -> None:
    seat.terminal.rows = 45
    seat.type("history\r")
    seat.terminal.fails["history"] = remote("INTERNAL", "the report ended")
    assert seat.type("\r").endswith("error: the report ended; nothing was changed\nagent> ")


def test_help_names_every_command_and_pages(seat: Seat) -> None:
    listed = seat.type("help\r\r")
    assert all(f"\n{name} " in listed for name in COMMANDS)
    assert max(map(len, listed.splitlines())) <= 79


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_tells_how_it_is_typed(seat: Seat, name: str) -> None:
    lines = seat.type(f"help {name}\r").splitlines()
    assert lines[1] == COMMANDS[name].usage()
    assert max(map(len, lines)) <= 79


# ---- Reports that take their time


def test_a_report_that_is_not_ready_is_waited_for(seat: Seat) -> None:
    seat.terminal.looks_until_read["history"] = 5
    assert seat.type("history\r") == "history\nit is being worked out; Ctrl-C leaves it\n"
    assert seat.wait().endswith("applied      OK\nagent> ")


def test_a_plan_that_is_not_ready_leads_to_the_question_all_the_same(seat: Seat) -> None:
    seat.terminal.looks_until_read["plan"] = 2
    seat.type("migrate\r")
    assert seat.wait().endswith(" to start: ")
    assert "run 17 started" in seat.type(number_of("migrate 14 plan 9f3c21aa") + "\r")


def test_json_that_is_waited_for_is_one_line_as_ever(seat: Seat) -> None:
    seat.terminal.looks_until_read["history"] = 1
    assert seat.type("history --json\r") == "history --json\n"
    assert decode_line(seat.wait().splitlines()[0])["next"] is None


def test_the_next_page_is_waited_for_as_well(seat: Seat) -> None:
    seat.terminal.rows = 45
    seat.type("history\r")
    seat.terminal.looks_until_read["history"] = 1
    seat.type("\r")
    assert seat.wait().count("applied") == PAGE_LINES


@pytest.mark.parametrize("keys", ["\x03", "version\r"])
def test_waiting_is_left_by_ctrl_c_and_by_the_next_command(seat: Seat, keys: str) -> None:
    seat.terminal.looks_until_read["history"] = 5
    seat.type("history\r\r")
    assert seat.type(keys).endswith("agent> ")
    assert seat.wait() == ""


def test_a_report_that_is_never_ready_ends_with_the_error(seat: Seat) -> None:
    seat.terminal.looks_until_read["history"] = 1000
    seat.type("history\r")
    assert seat.wait() == (
        "refused: it is being worked out; ask again in a moment; nothing was changed\nagent> "
    )


def test_a_report_is_not_waited_for_while_a_run_is_on(seat: Seat) -> None:
    started(seat)
    seat.terminal.looks_until_read["history"] = 1000
    assert seat.type("history\r").endswith("nothing was changed\nagent> ")
    assert seat.wait() == ""


# ---- JSON


def test_json_is_one_line_and_the_result_itself(seat: Seat) -> None:
    said = seat.type("status --json\r").splitlines()
    assert len(said) == 3
    assert decode_line(said[1]) == seat.terminal.do_status("status", {})
    assert decode_line(seat.type("history --json\r").splitlines()[1])["next"] is None
    assert decode_line(seat.type("help plan --json\r").splitlines()[1])["level"] == "read"
    assert decode_line(seat.type("version --json\r").splitlines()[1])["proto"] == 1


def test_a_list_in_json_goes_on_with_a_cursor(seat: Seat) -> None:
    seat.terminal.rows = 9
    assert decode_line(seat.type("history --json\r").splitlines()[1])["next"] == 7
    page = decode_line(seat.type("history 7 --json\r").splitlines()[1])
    assert [row["seq"] for row in page["history"]] == [7, 8]


def test_json_of_a_started_run_comes_after_the_question(seat: Seat) -> None:
    seat.type("backup --json\r")
    said = seat.type(number_of("backup") + "\r").splitlines()
    assert decode_line(said[1]) == {"run": 17, "replayed": False, "state": "checking"}


def test_an_error_in_json_is_the_object_that_machines_get(seat: Seat) -> None:
    error = decode_line(seat.type("result 5 --json\r").splitlines()[1])["error"]
    assert (error["code"], error["data"]["kind"]) == (-32009, "NO_SUCH")
    error = decode_line(seat.type("prune --json\r").splitlines()[1])["error"]
    assert error["data"]["need"] == "admin"


def test_watch_in_json_is_a_line_for_every_notification(seat: Seat) -> None:
    started(seat)
    assert decode_line(seat.type("watch --json\r").splitlines()[1])["run"] == 17
    params = {"run": 17, "seq": 5, "state": "migrating", "step": "x", "done": 1, "total": 9}
    assert decode_line(seat.notify("progress", **params)) == {
        "method": "progress",
        "params": params,
    }


# ---- Errors in typing


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("cancel", "RUN is missing: the number of a run, such as 17"),
        ("cancel x", 'RUN must be the number of a run, such as 17, not "x"'),
        ("cancel 0", 'RUN must be the number of a run, such as 17, not "0"'),
        ("cancel 17 18", '"18" is too much: cancel RUN'),
        ("status now", '"now" is too much: status'),
        ("rollback 99999", 'TO must be a schema version from 0 to 9999, not "99999"'),
        ("rollback -1", 'TO must be a schema version from 0 to 9999, not "-1"'),
        ("migrate 14.0", 'TO must be a schema version from 0 to 9999, not "14.0"'),
        ("restore", "BACKUP is missing: the name or the number of a backup, as `backups` lists"),
        ("restore 41 discard", "discard needs COUNTS: counts such as newer=2"),
        ("restore 41 discard a discard b", "discard stands twice: restore BACKUP [discard COUNTS]"),
        ("restore 41 --force", '"--force" is too much: restore BACKUP [discard COUNTS]'),
        ("prune despite-unsettled despite-unsettled", "despite_unsettled stands twice"),
        ("help stats", 'no command "stats"; did you mean "status"?'),
        ("challenge status", "COMMAND must be a command that needs a service code"),
        ("challenge", "COMMAND is missing"),
        ("code", "CODE is missing: the 8 characters that the service desk read out"),
        ("a" * 100, f'unknown command "{"a" * 40}..." - did you mean'),
    ],
)
def test_a_typing_error_names_the_argument_and_what_is_allowed(
    seat: Seat, typed: str, says: str
) -> None:
    before = len(seat.terminal.calls)
    assert f"\nerror: {says}" in seat.type(typed + "\r")
    assert len(seat.terminal.calls) == before


def test_a_target_that_is_not_the_installed_one_is_named(seat: Seat) -> None:
    assert "error: TO must be 14, where" in seat.type("migrate 13\r")
    assert "error: ID must be 9f3c21aa" in seat.type("migrate plan 00\r")
    assert seat.terminal.ops == {}


def test_what_the_judge_refuses_is_said_before_a_number_is_asked_for(seat: Seat) -> None:
    assert "error: discard must be a text of 1 to 80" in seat.type(
        f"restore 1 discard {'9' * 81}\r"
    )


def test_a_busy_terminal_refuses_and_names_the_run(seat: Seat) -> None:
    started(seat)
    said = seat.type(f"backup\r{number_of('backup')}\r")
    assert "refused: run 17 is on; nothing was changed\n" in said


@pytest.mark.parametrize("typed", ["status\r", "history\r", "result 3\r", "plan --json\r"])
def test_a_fault_of_the_agent_ends_one_command_and_not_the_line(seat: Seat, typed: str) -> None:
    for method in ("status", "history", "result", "plan"):
        setattr(seat.terminal, "do_" + method, lambda method, params: {"history": 1 / 0})
    said = seat.type(typed)
    assert "a fault of the agent: ZeroDivisionError; report it" in said
    assert "nothing was changed" not in said
    assert seat.type("version\r").endswith("agent> ")


def test_an_error_that_changed_something_does_not_say_otherwise(seat: Seat) -> None:
    error = remote("INTERNAL", "the reply was lost", changed=True, hint='see "history"')
    seat.terminal.fails["status"] = error
    assert '\nerror: the reply was lost\n  see "history"\n' in seat.type("status\r")


# ---- Noise, echoes, second consoles


def test_three_unknown_lines_mute_the_line_until_a_second_of_silence(seat: Seat) -> None:
    assert seat.type("foo\rbar\r").endswith("agent> ")
    assert not seat.type("baz\r").endswith("agent> ")
    assert seat.console.mute.times == 1
    for _ in range(5):
        seat.terminal.now += 999
        assert seat.type("status\r") == ""
    seat.terminal.now += 1_000
    assert seat.type("\r") == "\nagent> "
    assert "state " in seat.type("status\r")


def test_a_known_command_between_unknown_ones_keeps_the_line_awake(seat: Seat) -> None:
    for _ in range(4):
        assert seat.type("foo\rbar\rversion\r").endswith("agent> ")


def test_stray_machine_lines_count_as_unknown(seat: Seat) -> None:
    for _ in range(3):
        seat.console.stray()
    assert seat.screen.count("error: machine frame without RS or with bad checksum") == 3
    assert seat.console.mute.is_on(seat.terminal.now)
    seat.terminal.now += 999
    seat.console.stray()
    assert seat.screen.count("error:") == 3
    seat.terminal.now += 999  # the fourth was heard, if not answered
    assert seat.console.mute.is_on(seat.terminal.now)


def test_a_mute_that_hears_nothing_ends_after_a_second() -> None:
    mute = Mute()
    for now in (0, 10, 20):
        assert not mute.is_on(now)
        mute.unknown(now)
    assert mute.is_on(1_019)
    mute.feed(1_019)
    assert mute.is_on(2_018)
    assert not mute.is_on(2_019)


@pytest.mark.parametrize("first", ["\r", "status\r", "help\r", "history\r", "foo\r", "migrate\r"])
def test_a_line_that_hears_itself_falls_silent_and_starts_nothing(first: str) -> None:
    seat = Seat(Terminal("admin"))
    seat.terminal.rows = 45
    heard = first
    for _ in range(200):
        heard = on_the_wire(seat.type(heard))
        if not heard:
            break
    assert heard == ""
    assert len(seat.screen) < 12_000
    assert seat.terminal.ops == {}


def on_the_wire(text: str) -> str:
    return text.replace("\n", "\r\n")


def test_two_agents_back_to_back_fall_silent() -> None:
    one, other = Seat(Terminal("admin")), Seat(Terminal("admin"))
    said = one.type("\rhelp\r")
    for _ in range(200):
        said = other.type(on_the_wire(said))
        one, other = other, one
        if not said:
            break
    assert said == ""
    assert len(one.screen) + len(other.screen) < 12_000
    assert one.terminal.ops == other.terminal.ops == {}


PIECES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([name.encode() for name in COMMANDS]),
    st.sampled_from([b" 17", b" --json", b"\r", b"\x03", b"\x1b[A", b" discard", b"0000\r", b"q"]),
)


@given(st.lists(PIECES, max_size=30))
@settings(max_examples=150, deadline=None)
def test_noise_starts_nothing_and_breaks_nothing(pieces: list[bytes]) -> None:
    seat = Seat(Terminal("admin"))
    for piece in pieces:
        seat.type(piece.decode("latin-1"))
        seat.terminal.now += 1_000
    seat.type("\x03\x03\r")
    assert seat.terminal.ops == {}
    assert seat.screen.isascii()
    assert "a fault of the agent" not in seat.screen
    assert seat.screen.endswith(("agent> ", "-- more -- ")) or seat.console.prompt() == ""


# ---- The one text of a command


WORD = st.text("ABCabc019-_.=,/%", min_size=1, max_size=20).filter(
    lambda word: word.lstrip("-") not in ("plan", "discard", "despite-unsettled", "json")
)
NAME = WORD.filter(lambda word: not word.isdigit())
VERSIONS = st.integers(0, 9999)
CALLS: st.SearchStrategy[tuple[str, dict[str, Any]]] = st.one_of(
    st.tuples(st.sampled_from(["backup", "commit"]), st.just({})),
    st.tuples(
        st.sampled_from(["migrate", "rollback"]),
        st.fixed_dictionaries(
            {"to": VERSIONS}, optional={"plan": WORD, "despite_unsettled": st.just(True)}
        ),
    ),
    st.tuples(
        st.just("prune"),
        st.fixed_dictionaries({}, optional={"despite_unsettled": st.just(True)}),
    ),
    st.tuples(
        st.just("restore"),
        st.fixed_dictionaries(
            {"backup": st.one_of(NAME, st.integers(1, 999_999_999))}, optional={"discard": WORD}
        ),
    ),
)


@given(CALLS)
def test_a_canonical_text_is_understood_as_what_it_was_made_from(
    call: tuple[str, dict[str, Any]],
) -> None:
    method, params = call
    text = canonical(method, {**params, "op": "whatever"})
    plain = {
        name: value.replace("%", "%25") if isinstance(value, str) else value
        for name, value in params.items()
    }
    assert understood(text) == (method, plain)


@given(CALLS, CALLS)
def test_different_calls_have_different_texts(
    one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]
) -> None:
    assert (canonical(*one) == canonical(*other)) == (one == other)


def test_a_blank_in_a_value_makes_no_argument_of_its_own() -> None:
    spoofed = canonical("restore", {"backup": "41 discard unknown"})
    assert spoofed != canonical("restore", {"backup": 41, "discard": "unknown"})


@pytest.mark.parametrize(
    ("method", "params", "text"),
    [
        ("read", {"name": "000041-v2.posbak", "off": 512}, "read 000041-v2.posbak"),
        ("migrate", {"to": 14, "op": "12345678"}, "migrate 14"),
        ("migrate", {"to": 14, "despite_unsettled": False}, "migrate 14"),
        ("prune", {}, "prune"),
    ],
)
def test_calls_of_machines_have_the_same_text(
    method: str, params: dict[str, Any], text: str
) -> None:
    assert canonical(method, params) == text


@given(st.text(max_size=60))
def test_any_line_is_a_command_or_a_typing_error(line: str) -> None:
    if line.split():
        assert typing_error(line).isprintable()


def typing_error(line: str) -> str:
    try:
        command, words, _ = split(line)
        parse(command, words)
    except TypingError as error:
        return str(error)
    return ""


def test_every_command_has_a_method_of_the_table_with_these_parameters() -> None:
    for command in COMMANDS.values():
        if command.method:
            method = METHODS[command.method]
            slots = [*command.words, *command.options.values()]
            names = {slot.param for slot in slots} | set(command.flags.values())
            assert names <= set(method.params), command.name
        assert command.confirmed == (
            command.method in METHODS
            and METHODS[command.method].changes
            and command.method != "cancel"
        )


# ---- Texts of results


ROWS: dict[str, dict[str, Any]] = {
    "plan": {
        "plan": "p",
        "from_version": 1,
        "to_version": 2,
        "steps": [{}, {"name": "n " * 70, "version": 9999, "rows": 9999999, "batches": 99999}],
        "refusals": [{}],
    },
    "history": {
        "history": [
            {},
            {"seq": 1, "version": 13, "kind": "rollback", "code": "C", "message": "m " * 90},
            {"at_ms": 1 << 60, "verdict": "NOT_REQUIRED", "state": "rolled_back", "name": "n" * 90},
        ]
    },
    "backups": {
        "backups": [
            {},
            {"name": BACKUP, "unsettled": {"records": 3}, "size_bytes": 5 << 20, "made_ms": 0},
            {"name": "x" * 70, "unsettled": 3, "size_bytes": 99, "damaged": "cut off " * 20},
            {"name": BACKUP, "damaged": True},
        ]
    },
    "quarantine": {"quarantine": [{}, {"key": "k\x1b[2J" * 30, "reason": "r" * 200}]},
    "log": {"log": [{}, {"seq": 1, "at_ms": 1, "link": "serial", "method": "m" * 30}]},
    "health": {"worst": "bad", "checks": [{}, {"name": "flash", "says": "s " * 100}]},
    "profile": {
        "id": "p",
        "title": "t",
        "settings": [{}, {"name": "n" * 60, "value": None, "basis": "b" * 300}],
    },
}


@pytest.mark.parametrize("name", ROWS)
def test_a_table_stays_within_79_columns_of_ascii_whatever_is_in_it(name: str) -> None:
    table = TABLES[name]
    for page in (ROWS[name], {}, {table.member: None}):
        lines = [line for line in table.lines(page, True) if not line.startswith(" plan")]
        assert lines
        assert max(map(len, lines)) <= 79
        assert all(line.isascii() and line.isprintable() for line in lines)


@pytest.mark.parametrize("name", texts.TEXTS)
def test_an_answer_without_any_member_is_still_shown(name: str) -> None:
    assert texts.TEXTS[name]({})


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"run": 17}, '"watch 17" follows the run'),
        ({"schema": 15, "target": 14}, "install the software that belongs to schema 15"),
        ({"schema": 14, "target": 14, "app_may_start": False}, "must not start"),
        ({"schema": 12, "target": 14, "free_kib": 5, "need_kib": 9}, "make room"),
        ({"schema": 12, "target": 14, "last_error": "x"}, "correct the cause"),
        ({"schema": 12, "target": 14}, 'type "migrate"'),
        ({"schema": 14, "target": 14}, "nothing"),
        ({}, "nothing"),
    ],
)
def test_status_ends_with_what_to_do(facts: dict[str, Any], says: str) -> None:
    assert says in texts.advice(facts)
    assert any(line.startswith("to do      ") for line in texts.status_lines(facts))


def test_figures_without_a_text_of_their_own_are_told_by_name() -> None:
    outcome = {
        "verdict": "OK",
        "sound": True,
        "unsettled": {"records": 3},
        "odd": [{"store": "a"}],
        "none": None,
    }
    assert texts.verdict_lines(outcome) == [
        "OK",
        "sound          yes",
        "unsettled      records=3",
        "odd            1 entries; --json shows them",
    ]


@pytest.mark.parametrize(
    ("discard", "says"),
    [
        ("newer=2,changed=1", "2 unsettled sales made since are lost, 1 changed since get"),
        ("newer=0,changed=0,gone=0,settled=0", "nothing is lost"),
        ("unknown", "not known"),
        ("37", "37"),
    ],
)
def test_what_a_restore_gives_up_is_said_in_words(discard: str, says: str) -> None:
    assert says in texts.losses(discard)


def test_a_check_says_that_it_changes_nothing(seat: Seat) -> None:
    assert 'run 17 started; nothing is changed\n  "result 17" tells' in seat.type("validate\r")
    assert "run 18 started; nothing is changed" in seat.type("verify 41\r")
    assert seat.last_call() == ("verify", {"backup": 41})


def test_an_answer_that_has_no_run_is_told_by_its_figures(seat: Seat) -> None:
    seat.terminal.answers["validate"] = {"sound": True}
    assert "\nsound          yes\n" in seat.type("validate\r")


@pytest.mark.parametrize(
    ("ms", "trusted", "text"),
    [
        (1_795_764_600_000, True, "2026-11-27 07:30:00"),
        (1_795_764_600_000, False, "2026-11-27 07:30:00 ?"),
        (3_725_000, False, "start +01:02:05"),
        (1 << 90, True, f"{1 << 90} ms"),
        (None, True, "?"),
    ],
)
def test_times_are_told_in_utc_with_a_mark_where_the_clock_is_not_trusted(
    ms: Any, trusted: bool, text: str
) -> None:
    assert texts.when(ms, trusted) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "?"),
        (True, "yes"),
        ({"a": 1, "b": [2, 3]}, "a=1, b=2, 3"),
        ("a\r\n\x1b[2Jb", "a\\r\\n\\x1b[2Jb"),
        ("Zürich", "Z\\xfcrich"),
        ("\ud800", "\\ud800"),
    ],
)
def test_whatever_came_from_outside_is_shown_in_printable_ascii(value: Any, text: str) -> None:
    assert texts.clean(value) == text


def test_the_hint_at_noise_names_the_rate_of_the_line() -> None:
    assert texts.noise_line(115200) == "line noise: check 115200 8N1"


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (200, "3 min 20 s"), (7_500, "2 h 5 min"), (None, "?")]
)
def test_spans_are_told_in_two_units(seconds: Any, text: str) -> None:
    assert texts.span(seconds) == text
