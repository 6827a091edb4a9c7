"""The library against real daemons: over a pty and a socket, over noise, pulled cables and cuts.

Nothing here waits for a time to pass: what is to happen in mid-run happens when the run is known to
stand at its gate, or when the library itself tells that it has lost the line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import posctl.client
from agent.links.access import code_for
from posctl.client import (
    AgentRefused,
    HostError,
    KeptChanging,
    NoAnswer,
    NotOurAgent,
    OtherTerminal,
    Progress,
    TooNoisy,
    WireEvent,
    WrongProtocol,
    connect,
    new_op,
)
from tests.posctl_bench import (
    AT_ONCE_S,
    HELLO,
    PENDING,
    SOON_S,
    Bench,
    Device,
    replying,
)
from tests.terminals import Gate

NOISE = 0.002
KEY = bytes(range(32))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path / "terminal") as made:
        yield made


@pytest.fixture(scope="module")
def resting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One terminal for the tests that only read."""
    with Bench(tmp_path_factory.mktemp("resting")) as made:
        yield made


both_ways = pytest.mark.parametrize("way", ["pty", "socket"])


# The ten lines


@both_ways
def test_the_programs_of_the_docs_and_of_the_module_run_as_they_stand(
    bench: Bench, way: str
) -> None:
    text = (posctl.client.__doc__ or "").split("\n\n", 1)[1].rpartition("\n\nIt is")[0]
    program = textwrap.dedent(text).replace("/dev/ttyUSB0@115200", bench.where(way))
    assert len(program.strip().splitlines()) <= 10
    Gate(bench.terminal).path.unlink()  # a pending migration, and nothing to wait for
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, *_, last = ran.stdout.splitlines()
    assert first == f"{bench.terminal.device_id} idle"
    assert last == "OK"


# What is so


@both_ways
@pytest.mark.parametrize("verb", ["plan", "history", "backups", "profile", "quarantine", "log"])
def test_a_report_is_the_very_object_that_the_command_prints(
    resting: Bench, way: str, verb: str
) -> None:
    with connect(resting.where(way), answer_s=SOON_S) as terminal:
        assert terminal.report(verb) == resting.terminal.run(verb, "--json").json


@both_ways
def test_status_plan_and_hello_are_typed(resting: Bench, way: str) -> None:
    with connect(resting.where(way), answer_s=SOON_S) as terminal:
        hello, status, plan = terminal.hello, terminal.status(), terminal.plan()
        # These two tell of space and time, which differ from one look to the next.
        for verb in ("status", "health"):
            assert set(terminal.report(verb)) == set(resting.terminal.run(verb, "--json").json)
    assert hello.serial == resting.terminal.device_id
    assert hello.level == ("tech" if way == "pty" else "admin")
    assert (status.state, status.schema, status.target) == ("idle", 3, 3)
    assert status.boot == hello.boot
    assert (plan.from_version, plan.to_version, plan.steps, plan.fits) == (3, 3, [], True)


def test_a_plan_of_many_pages_comes_whole(bench: Bench) -> None:
    for number in range(4, 16):
        (bench.terminal.root / f"migrations/{number:04d}_of_a_long_name_{number}.py").write_text(
            "from agent.core.migration import set_field\n"
            f"VERSION, NAME = {number}, 'a name that takes its share of a page, number {number}'\n"
            f"STEPS = [set_field('metadata', 'n{number}', 1)]\n"
        )
    with connect(bench.where("pty"), answer_s=SOON_S) as terminal:
        plan = terminal.plan()
    assert [step.version for step in plan.steps] == list(range(4, 16))
    assert terminal.counts.requests > 2  # hello and the pages


@both_ways
def test_the_bundle_and_a_backup_are_fetched_whole(
    resting: Bench, way: str, tmp_path: Path
) -> None:
    path = tmp_path / "fetched"
    told: list[tuple[int, int]] = []
    with connect(resting.where(way), answer_s=SOON_S) as terminal:
        size = terminal.fetch("bundle", str(path), lambda *now: told.append(now))
        assert told[-1] == (size, size) == (path.stat().st_size,) * 2
        assert set(json.loads(path.read_bytes())) >= {"status", "health", "history", "profile"}
        (name,) = (row["name"] for row in terminal.backups()["backups"])
        if way == "socket":
            terminal.fetch(f"backups/{name}", str(path))
            assert path.read_bytes() == (resting.terminal.backups / name).read_bytes()
        else:
            with pytest.raises(AgentRefused, match="needs a service code") as refused:
                terminal.fetch(f"backups/{name}", str(path))
            assert refused.value.kind == "NOT_ALLOWED"
    assert os.listdir(tmp_path) == ["fetched"]


@both_ways
def test_validate_and_verify_give_what_the_commands_print(resting: Bench, way: str) -> None:
    with connect(resting.where(way), answer_s=SOON_S) as terminal:
        validated, verified = terminal.validate().result(), terminal.verify().result()
        one = terminal.verify(1).result()
    assert validated == resting.terminal.run("validate", "--json").json
    assert verified == resting.terminal.run("verify", "--json").json
    assert (validated.exit_code, verified.exit_code, one.exit_code) == (0, 0, 0)
    assert one.verdict == "OK"


def test_a_damaged_backup_ends_as_on_the_terminal(bench: Bench) -> None:
    (path,) = bench.terminal.backups.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with connect(bench.where("pty"), answer_s=SOON_S) as terminal:
        assert terminal.verify().result().exit_code == 9
        assert terminal.verify(1).result().exit_code == 9


# Runs


@both_ways
def test_a_run_is_watched_to_its_end_and_gives_the_commands_object(bench: Bench, way: str) -> None:
    op = new_op()
    with connect(bench.where(way), answer_s=SOON_S) as terminal:
        run = terminal.backup(op=op)
        seen = list(run.watch())
        outcome = run.result()
        assert terminal.run_of(op).result() == outcome
        assert terminal.run_of(number=run.number).result() == outcome
    assert seen
    assert all(isinstance(progress, Progress) for progress in seen)
    assert (outcome.verdict, outcome.exit_code, outcome["app_may_start"]) == ("OK", 0, True)
    assert outcome["backup"]["name"] == "000002-v3.posbak"


def test_nothing_to_do_is_an_outcome_and_no_run(resting: Bench) -> None:
    with connect(resting.where("pty"), answer_s=SOON_S) as terminal:
        run = terminal.migrate()
        assert run.number is None
        assert list(run.watch()) == []
        assert run.result() == {
            "verdict": "NOT_REQUIRED",
            "from_version": 3,
            "to_version": 3,
            "app_may_start": True,
        }


@both_ways
def test_while_a_run_is_on_a_report_is_refused_at_once_with_its_number(
    bench: Bench, way: str
) -> None:
    with connect(bench.where(way), answer_s=SOON_S) as terminal:
        run, gate = bench.stop_in_mid_run(terminal)
        for asked in (terminal.plan, terminal.history, terminal.backup, terminal.validate):
            with pytest.raises(AgentRefused) as refused:
                asked()
            assert refused.value.kind == "BUSY"
            assert refused.value.exit_code == 5
            assert refused.value.data["run"] == run.number == terminal.status().run
        gate.open()
        assert run.result().verdict == "OK"


def test_a_cancelled_run_is_interrupted_and_the_data_as_it_was(bench: Bench) -> None:
    before = bench.terminal.sha256()
    with connect(bench.where("pty"), answer_s=SOON_S) as terminal:
        run, gate = bench.stop_in_mid_run(terminal)
        terminal.cancel(run)
        gate.open()
        outcome = run.result()
        assert bench.terminal.sha256() == before
        terminal.cancel(run)  # as after a lost answer: it is stopped already
        ended = terminal.migrate()
        assert ended.result().verdict == "OK"
        with pytest.raises(AgentRefused) as refused:
            terminal.cancel(ended)
    assert (outcome.verdict, outcome.exit_code) == ("INTERRUPTED", 3)
    assert refused.value.kind == "NO_SUCH"


def test_a_plan_that_has_changed_starts_nothing(bench: Bench) -> None:
    with connect(bench.where("pty"), answer_s=SOON_S) as terminal:
        old = terminal.plan()
        Gate(bench.terminal)
        with pytest.raises(AgentRefused) as refused:
            terminal.migrate(to=PENDING, plan=old.plan)
    assert refused.value.kind == "PLAN_CHANGED"
    assert len(bench.history()) == len(old.steps) + 3


def test_what_needs_a_code_is_allowed_by_the_desks_answer_once(tmp_path: Path) -> None:
    keyed = Bench(tmp_path / "terminal")
    with keyed:
        key = tmp_path / "key"
        key.write_text(KEY.hex())
        assert keyed.terminal.run("key", "--set", str(key)).code == 0
        keyed.restart(signal.SIGTERM)
        keyed.daemon.ready()
        with connect(keyed.where("pty"), answer_s=SOON_S) as terminal:
            with pytest.raises(AgentRefused) as refused:
                terminal.rollback(2)
            assert (refused.value.kind, refused.value.data["need"]) == ("NOT_ALLOWED", "admin")
            asked = terminal.challenge("rollback 2")
            assert asked.nonce == terminal.challenge("rollback 2").nonce
            assert asked.serial == keyed.terminal.device_id
            code = code_for(KEY, asked.serial, asked.counter, asked.nonce, asked.command)
            assert terminal.code(code) == "rollback 2"
            assert terminal.rollback(2).result().verdict == "OK"
            with pytest.raises(AgentRefused):
                terminal.rollback(1)


# Noise


def test_everything_goes_over_a_line_that_damages_two_bytes_in_a_thousand(bench: Bench) -> None:
    bench.pull()
    bench.plug_in(NOISE, "client")
    assert bench.cable is not None
    with connect(bench.where("pty"), answer_s=SOON_S) as terminal:
        for verb in ("status", "plan", "history", "backups"):
            terminal.report(verb)
        Gate(bench.terminal).path.unlink()
        run = terminal.migrate()
        outcome = run.result()
        assert terminal.plan().steps == []
        assert terminal.status().schema == 4
    assert outcome.verdict == "OK"
    assert bench.cable.spoilt > 20
    assert terminal.counts.sends > terminal.counts.requests
    assert [row["kind"] for row in bench.history()].count("migrate") == 4


def test_a_noisy_line_is_connected_to_at_each_try(resting: Bench) -> None:
    assert resting.cable is not None
    resting.cable.noises[0].share = resting.cable.noises[1].share = NOISE
    try:
        for _ in range(40):
            connect(resting.where("pty"), answer_s=AT_ONCE_S).close()
    finally:
        resting.cable.noises[0].share = resting.cable.noises[1].share = 0.0


def test_an_answer_that_comes_with_the_eighth_send_is_one_run(bench: Bench) -> None:
    assert bench.cable is not None
    cable, heard = bench.cable, bench.cable.noises[1].spoil
    told: list[str] = []

    def hear_again(event: WireEvent) -> None:
        told.append(event.says)
        if event.says == "backup: send 8 of 8":
            cable.noises[1].spoil = heard  # type: ignore[method-assign]

    with connect(bench.where("pty"), told=hear_again, answer_s=AT_ONCE_S) as terminal:
        cable.noises[1].spoil = lambda data: b""  # type: ignore[method-assign]
        run = terminal.backup()
        assert len(told) == 7
        assert run.result().verdict == "OK"
    assert len(list(bench.terminal.backups.iterdir())) == 2


def test_a_call_that_was_taken_and_never_answered_is_found_by_its_op(bench: Bench) -> None:
    assert bench.cable is not None
    cable, heard = bench.cable, bench.cable.noises[1].spoil
    op = new_op()
    with connect(bench.where("pty"), answer_s=AT_ONCE_S) as terminal:
        cable.noises[1].spoil = lambda data: b""  # type: ignore[method-assign]
        with pytest.raises(NoAnswer) as silent:
            terminal.backup(op=op)
        assert silent.value.op == op
        cable.noises[1].spoil = heard  # type: ignore[method-assign]
    with connect(bench.where("pty"), answer_s=SOON_S) as another:
        assert another.run_of(op).result().verdict == "OK"
    assert len(list(bench.terminal.backups.iterdir())) == 2


# Pulled cables and cuts


def test_a_cable_pulled_in_mid_run_is_plugged_in_again_and_the_run_goes_on(bench: Bench) -> None:
    events: list[str] = []

    def plug_in(event: WireEvent) -> None:
        events.append(event.what)
        if event.what == "lost":
            bench.plug_in()
            gate.open()

    with connect(bench.where("pty"), told=plug_in, answer_s=SOON_S) as terminal:
        run, gate = bench.stop_in_mid_run(terminal)
        for progress in run.watch():
            if "lost" not in events:
                assert progress.run == run.number
                bench.pull()
        assert run.result().verdict == "OK"
    assert events == ["lost", "reconnected"]
    assert terminal.counts.reconnects == 1


def test_a_cable_pulled_in_mid_frame_at_9600_leaves_a_run_that_a_new_program_finds(
    bench: Bench,
) -> None:
    bench.pull()
    bench.plug_in(baud=9600)
    op = new_op()

    def pull(event: WireEvent) -> None:
        raise ConnectionAbortedError(event.says)

    with connect(f"{bench.port}@9600", told=pull) as terminal:
        Gate(bench.terminal).path.unlink()
        run = terminal.migrate(to=PENDING, op=op)
        # The request has gone, its reply is cut where the cable has it now.
        terminal._link.tell("describe")
        bench.pull()
        with pytest.raises(ConnectionAbortedError, match="the cable was pulled"):
            list(run.watch())
    bench.plug_in()
    with connect(bench.where("pty"), answer_s=SOON_S) as another:
        assert another.run_of(op).result().verdict == "OK"


def test_a_plain_call_outlives_a_cable_that_is_pulled(bench: Bench) -> None:
    events: list[str] = []

    def plug_in(event: WireEvent) -> None:
        events.append(event.what)
        if event.what == "lost":
            bench.plug_in()

    with connect(bench.where("pty"), told=plug_in, answer_s=SOON_S) as terminal:
        bench.pull()
        assert terminal.status().state == "idle"
    assert events == ["lost", "reconnected"]


def test_a_terminal_that_was_closed_is_not_opened_again_by_a_call(bench: Bench) -> None:
    with connect(bench.where("pty"), answer_s=SOON_S) as terminal:
        pass
    with pytest.raises(HostError, match="was closed; connect again"):
        terminal.status()
    connect(bench.where("pty"), answer_s=SOON_S).close()


def test_another_terminal_on_the_same_port_is_not_asked_anything(
    bench: Bench, tmp_path: Path
) -> None:
    with Bench(tmp_path / "other", seed=2) as other:

        def plug_in(event: WireEvent) -> None:
            if event.what == "lost":
                assert other.cable is not None
                bench.port.symlink_to(other.cable.name)

        with connect(bench.where("pty"), told=plug_in, answer_s=SOON_S) as terminal:
            bench.pull()
            with pytest.raises(OtherTerminal, match=other.terminal.device_id):
                terminal.backup()
        bench.port.unlink()
        assert len(list(other.terminal.backups.iterdir())) == 1


@both_ways
def test_a_terminal_whose_power_is_cut_in_mid_run_is_followed_to_the_end_of_the_run(
    bench: Bench, way: str
) -> None:
    is_cut = False
    with connect(bench.where(way), answer_s=SOON_S) as terminal:
        run, gate = bench.stop_in_mid_run(terminal)
        boot = terminal.hello.boot
        for _ in run.watch():
            if not is_cut:
                is_cut = True
                bench.restart()
                gate.wait_for_death()
        outcome = run.result()
        assert terminal.status().boot != boot
    assert (outcome.verdict, outcome["to_version"]) == ("OK", 4)
    assert [row["verdict"] for row in bench.history() if row["version"] == 4] == ["OK"]


@both_ways
def test_an_agent_that_stops_answering_is_told_with_the_op_and_found_again(
    bench: Bench, way: str
) -> None:
    with connect(bench.where("socket")) as first:
        begun, gate = bench.stop_in_mid_run(first)
    answer_s = AT_ONCE_S if way == "pty" else SOON_S  # eight sends, or one
    with connect(bench.where(way), answer_s=answer_s, patience_s=0.2) as terminal:
        run = terminal.run_of(begun.op)
        bench.daemon.process.send_signal(signal.SIGSTOP)
        with pytest.raises(NoAnswer, match="answers no more") as silent:
            list(run.watch())
        assert silent.value.op == run.op
        bench.daemon.process.send_signal(signal.SIGCONT)
        gate.open()
    with connect(bench.where(way), answer_s=SOON_S) as another:
        assert another.run_of(run.op).result().verdict == "OK"


def test_a_check_that_the_agent_forgot_when_it_started_again_is_begun_again(bench: Bench) -> None:
    with connect(bench.where("pty"), answer_s=SOON_S) as terminal:
        runs = [terminal.verify(1), terminal.validate()]
        bench.restart()
        assert [run.result().exit_code for run in runs] == [0, 0]


# Who else may be at the other end


@pytest.mark.parametrize(
    ("answers", "error", "says"),
    [
        (lambda data: data, NotOurAgent, "sends back what it is sent"),
        (lambda data: b"$GPGGA,123519,4807.038,N*47\r\n", NotOurAgent, r"it says '\$GPGGA,123519"),
        (lambda data: b"\r\nlogin: ", NotOurAgent, "it says 'login:"),
        (lambda data: b"", NoAnswer, "see that the terminal is on"),
        (lambda data: b"\xfe\x8c\xc0\xf8" * 9, TooNoisy, "wrong baud rate"),
    ],
)
def test_what_is_not_our_agent_is_told_apart(
    answers: Callable[[bytes], bytes], error: type[Exception], says: str
) -> None:
    with Device(answers) as device, pytest.raises(error, match=says):
        connect(device.where, answer_s=AT_ONCE_S)


@pytest.mark.parametrize(
    "reply",
    [
        {"result": {**HELLO, "proto": 3}},
        {
            "error": {
                "code": -32602,
                "message": "this agent speaks proto 3",
                "data": {"kind": "PARAMS", "param": "proto", "allowed": 3},
            }
        },
    ],
)
def test_an_agent_of_another_protocol_is_named_with_both_versions(reply: dict[str, Any]) -> None:
    other = Device(replying(lambda *_: reply))
    with other, pytest.raises(WrongProtocol, match="speaks protocol 3") as caught:
        connect(other.where, answer_s=SOON_S)
    assert caught.value.exit_code == 22


@pytest.mark.parametrize(
    "reply",
    [
        {"error": {"code": -32601, "message": "Method not found"}},
        {"error": "what?"},
        {"result": ["hello"]},
        {"result": {"proto": 1}},
    ],
)
def test_a_device_that_only_speaks_alike_is_not_our_agent(reply: dict[str, Any]) -> None:
    with Device(replying(lambda *_: reply)) as device, pytest.raises(NotOurAgent):
        connect(device.where, answer_s=SOON_S)


def test_pieces_that_do_not_belong_together_are_never_put_together() -> None:
    turn = iter(range(100))

    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "hello":
            return {"result": HELLO}
        digest = f"{next(turn):064x}"
        return {"result": {**params, "data": "e30=", "len": 4, "sha256": digest}}

    device = Device(replying(answer))
    with device, connect(device.where, answer_s=SOON_S) as terminal, pytest.raises(KeptChanging):
        terminal.report("plan")


def test_a_cable_moved_to_another_terminal_without_a_word_is_noticed_by_its_boot() -> None:
    terminals = iter([HELLO, {**HELLO, "serial": "other", "boot": "c"}])

    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "hello":
            return {"result": next(terminals)}
        if method == "subscribe":
            return {"result": {"state": "migrating", "boot": "c"}}
        return {"result": {"run": 7, "op": params.get("op"), "state": "running"}}

    device = Device(replying(answer))
    with device, connect(device.where, answer_s=SOON_S) as terminal:
        run = terminal.run_of("op-of-the-first")
        with pytest.raises(OtherTerminal, match="m other, not m s") as caught:
            run.result()
    assert caught.value.op == "op-of-the-first"


def test_members_that_are_not_known_yet_are_passed_over() -> None:
    known = {"state": "idle", "app_may_start": True, "seq": 1, "boot": "b"}

    def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"result": {**(HELLO if method == "hello" else known), "new_one": [1]}}

    with Device(replying(answer)) as device, connect(device.where, answer_s=SOON_S) as terminal:
        assert terminal.hello.agent == "9.9"
        assert terminal.status().run is None


def test_a_persons_console_on_the_same_line_is_heard_and_does_no_harm(bench: Bench) -> None:
    text: list[bytes] = []
    with connect(bench.where("pty"), on_text=text.append, answer_s=SOON_S) as terminal:
        terminal._link._conversing().line.send(b"\r")
        assert terminal.status().state == "idle"
        assert terminal.backups()["foreign_files"] == 0
    assert b"agent> " in b"".join(text)


@both_ways
def test_the_line_can_be_had_as_a_console(resting: Bench, way: str) -> None:
    line = connect(resting.where(way), answer_s=SOON_S).open_console()
    line.send(b"\r")
    heard = b""
    while b"agent> " not in heard:
        data = line.receive(20.0)
        assert data, heard
        heard += data
    line.close()


def test_one_connection_too_many_is_told_so_and_is_no_fault_of_the_line(resting: Bench) -> None:
    held: list[posctl.client.Terminal] = []

    def hold_ten() -> None:
        while len(held) < 10:
            held.append(connect(resting.where("socket")))

    with pytest.raises(AgentRefused, match="connections at once") as refused:
        hold_ten()
    assert refused.value.kind == "BUSY"
    for terminal in held:
        terminal.close()
