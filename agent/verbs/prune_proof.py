"""The proof of a prune: what is gone is exactly what the rule gives up, all else is the same bytes.

The rule is worked out again from the old file, in another order and from bytes instead of text, so
that a record that was chosen wrongly is not proven wrongly in the same way.
"""

from __future__ import annotations

from agent.core.stores import Contract
from agent.core.tally import OTHER, Tally, difference
from agent.core.terminal import TABLE, RunRow
from agent.edges import database
from agent.edges.database import SQLITE_ERRORS, quoted, refused_by_sqlite
from agent.ground.codec import decode
from agent.ground.errors import ValidationError
from agent.verbs import prune, rows
from agent.verbs.prove import Proof
from agent.verbs.reading import ROWS_PER_MARK
from agent.verbs.restore import losses
from agent.verbs.survey import Survey, survey, unsettled_digests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlite3 import Connection
    from typing import Any, Callable

_OF_THE_RUN = ("format", "run", "trigger")  # kinds of our own rows that every run writes anew


def prove_pruned(
    old: Connection,
    new: Connection,
    contract: Contract,
    row: RunRow,
    found: Survey,
    limits: tuple[int, int],
    mark: Callable[[str, int], None],
) -> None:
    """What is gone is exactly what the rule gives up, worked out again from the old file; all else
    is byte for byte the same, unsettled records by their digests besides; the money that is left
    is the old without that of the records gone; the file is sound.

    `row` and `found` tell what was counted before. Raises ValidationError with the first thing that
    is not as it must be.
    """
    proof = Proof(old, new, mark)
    stores = prune.ruled(contract)
    gone = Tally()
    for name in contract.stores:
        gone.start(name)
    try:
        proof.same_frame(set(stores))
        for name in stores:
            _only_the_rule(proof, contract, name, row.counters, limits, gone)
        if {name: gone.records[name] for name in stores} != row.before["pruned"]:
            raise ValidationError("other records would be pruned than were counted before")
        _same_own_rows(proof, stores)
        after = survey(new, contract, set(), limits, mark)
        differs = difference(*_compared(row.before, gone.as_json(), after.tally.as_json()))
        if differs:
            raise ValidationError(f"the money would move: {differs}")
        _same_unsettled(proof, contract, (found, after), limits)
        _same_counters(contract, row.counters, after.counters)
        proof.sound()
        version = new.execute("PRAGMA user_version").fetchone()[0]
        if version != row.to_version:
            raise ValidationError(f"the new file says version {version}, not {row.to_version}")
    except SQLITE_ERRORS as error:
        raise refused_by_sqlite(error, "proving the new file") from error


def _only_the_rule(
    proof: Proof,
    contract: Contract,
    name: str,
    counters: dict[str, int],
    limits: tuple[int, int],
    gone: Tally,
) -> None:
    """Walk old and new side by side, oldest first and as bytes, which is neither the order nor the
    reading that the records were chosen by."""
    store = contract.stores[name]
    rule = store.prune
    assert rule is not None
    needed = prune.Needed(proof.old, contract, name, counters)
    select = prune.in_order(proof.old, name, "ASC")
    proof.old.text_factory = proof.new.text_factory = bytearray
    try:
        newer = 0
        for number, (_, key, value, _) in enumerate(proof.old.execute(select)):
            newer += rule.fits(_read_as_bytes(key, value, limits))
            if number % ROWS_PER_MARK == 0:
                proof.mark(name, number)
        left = proof.new.execute(select)
        other = left.fetchone()
        for number, row in enumerate(proof.old.execute(select)):
            if number % ROWS_PER_MARK == 0:
                proof.mark(name, number)
            record = _read_as_bytes(row[1], row[2], limits)
            may_go = rule.fits(record)
            if may_go:
                newer -= 1
                key = row[1].decode()
                settled = store.unsettled_rule(key, record) is None
                may_go = settled and newer >= rule.keep_newest and not row[3]
                may_go = may_go and not needed.keeps(key, record)
            is_gone = other is None or database.rows_differ(row[:3], other[:3])
            if is_gone is not may_go:
                raise ValidationError(f"{name} would lose or keep a record against its rule")
            if is_gone:
                gone.add(store, key, record)
            else:
                other = left.fetchone()
        if other is not None:
            raise ValidationError(f"{name} would grow")
    finally:
        proof.old.text_factory = proof.new.text_factory = str


def _read_as_bytes(key: Any, value: Any, limits: tuple[int, int]) -> Any:
    if type(key) is not bytearray or type(value) is not bytearray or len(value) > limits[0]:
        return None
    try:
        key.decode()
        return decode(value.decode(), limits[1])
    except ValueError:
        return None


def _same_own_rows(proof: Proof, stores: list[str]) -> None:
    """Our own table lost the ledger rows of records that are gone, and nothing else."""
    marks = ", ".join("?" * len(_OF_THE_RUN))
    select = f"SELECT kind, key, value FROM {TABLE} WHERE kind NOT IN ({marks}) ORDER BY kind, key"
    left = proof.new.execute(select, _OF_THE_RUN)
    other = left.fetchone()
    known = rows.has_table(proof.old)
    moves, places = _gone_with_moves(proof, stores) if known else (set(), set())
    for number, row in enumerate(proof.old.execute(select, _OF_THE_RUN) if known else ()):
        if number % ROWS_PER_MARK == 0:
            proof.mark(TABLE, number)
        is_gone = other is None or database.rows_differ(row, other)
        kind, key, _ = row
        of_one_gone = _speaks_of_one_gone(proof, stores, kind, key)
        of_one_gone = of_one_gone or (kind == "moved" and key in moves)
        of_one_gone = of_one_gone or (kind.startswith("undo:") and key in places)
        if is_gone is not of_one_gone:
            raise ValidationError(f"table {TABLE} would change against the rule")
        if not is_gone:
            other = left.fetchone()
    if other is not None:
        raise ValidationError(f"table {TABLE} would grow")


def _gone_with_moves(proof: Proof, stores: list[str]) -> tuple[set[str], set[str]]:
    """What is gone with records that a migration had moved: keys of `moved` rows, and earlier
    places of the records as their ledgers have them."""
    moves: set[str] = set()
    places: set[str] = set()
    for store, key in rows.moved_to(proof.old):
        if store in stores and _is_gone(proof, store, key):
            found, earlier = rows.names_before(proof.old, store, key)
            moves.update(found)
            places.update(earlier)
    return moves, places


def _is_gone(proof: Proof, store: str, key: str) -> bool:
    select = f"SELECT 1 FROM {quoted(store)} WHERE key = ?"
    was, is_now = (c.execute(select, (key,)).fetchone() for c in (proof.old, proof.new))
    return was is not None and is_now is None


def _speaks_of_one_gone(proof: Proof, stores: list[str], kind: str, place: str) -> bool:
    if not kind.startswith("undo:"):
        return False
    try:
        store, key = decode(place)
    except (ValueError, TypeError):
        return False
    if store not in stores or type(key) is not str:
        return False
    return _is_gone(proof, store, key)


def _compared(
    before: dict[str, Any], gone: dict[str, Any], after: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the old count without the records gone, the new count), currencies by their old names: with
    fewer of them in the file, one that was summed under `other` may have got a name of its own."""
    named = {currency for by in before["sales"].values() for currency in by}
    expected: dict[str, Any] = {}
    counted: dict[str, Any] = {}
    for word, figures_after in after.items():
        expected[word], counted[word] = {}, {}
        for store, figure in figures_after.items():
            was, less = before[word][store], gone[word][store]
            if type(figure) is int:
                expected[word][store], counted[word][store] = was - less, figure
                continue
            expected[word][store] = _added(named, (1, was), (-1, less))
            counted[word][store] = _added(named, (1, figure))
    return expected, counted


def _added(named: set[str], *totals: tuple[int, dict[str, list[int]]]) -> dict[str, list[int]]:
    """Totals by currency, added up with their signs; what has come to nothing is left out."""
    whole: dict[str, list[int]] = {}
    for sign, by_currency in totals:
        for currency, (count, amount) in by_currency.items():
            entry = whole.setdefault(currency if currency in named else OTHER, [0, 0])
            entry[0] += sign * count
            entry[1] += sign * amount
    return {currency: entry for currency, entry in whole.items() if entry != [0, 0]}


def _same_unsettled(
    proof: Proof, contract: Contract, found: tuple[Survey, Survey], limits: tuple[int, int]
) -> None:
    sides = zip((proof.old, proof.new), found)
    was, is_now = (unsettled_digests(c, contract, f, limits, proof.mark) for c, f in sides)
    lost = losses(was, is_now)
    if any(lost.values()):
        raise ValidationError(f"unsettled records would change: {lost}")


def _same_counters(contract: Contract, was: dict[str, int], is_now: dict[str, int]) -> None:
    for counter in contract.counters:
        before, after = was.get(counter.name), is_now.get(counter.name)
        if before is not None and (after is None or counter.higher(before, after) != after):
            raise ValidationError(f"counter {counter.name} would go back")
