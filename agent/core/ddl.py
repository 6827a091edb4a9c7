"""One schema statement as data: what it makes, changes or drops, and under which name.

Only forms that cannot touch a record are known: further tables, indexes and views. Whatever else
SQL can say is refused here by its shape, and once more by SQLite's authorizer where the statement
is compiled (verbs/schema). Nothing here opens a database.
"""

from __future__ import annotations

from agent.core.terminal import TABLE
from agent.ground.errors import MigrationsRejected

STATEMENT_CHARS_MAX = 8192
KINDS = ("INDEX", "TABLE", "VIEW")


class Statement:
    """One statement: `verb` is CREATE, DROP or ALTER, `kind` INDEX, TABLE or VIEW; `table` is the
    table an index stands on, else the object's own name; `column` is what ALTER adds, else ""."""

    __slots__ = ("column", "if_absent", "kind", "name", "sql", "table", "verb")

    def __init__(
        self, verb: str, kind: str, name: str, table: str, sql: str, column: str = ""
    ) -> None:
        self.verb = verb
        self.kind = kind
        self.name = name
        self.table = table
        self.sql = sql
        self.column = column
        self.if_absent = False  # IF NOT EXISTS: whatever has the name already will do

    def describe(self) -> str:
        """A few words for a plan."""
        on = f" on {self.table}" if self.table != self.name else ""
        doing = {"CREATE": "create", "DROP": "drop", "ALTER": f"add column {self.column} to"}
        return f"{doing[self.verb]} {self.kind.lower()} {self.name}{on}"

    @property
    def drops_table(self) -> bool:
        """Whether rows could go with it."""
        return self.verb == "DROP" and self.kind == "TABLE"

    def made(self, kept: str | None) -> bool:
        """Whether `kept`, as SQLite wrote it down, is what this CREATE statement makes."""
        return _essence(kept or "") == _essence(self.sql)


def _essence(sql: str) -> list[tuple[str, str]]:
    """A CREATE statement's tokens without what SQLite drops when it writes it down."""
    tokens = [(kind, text.lower() if kind == "word" else text) for kind, text in _tokens(sql)]
    if tokens and tokens[-1] == ("sign", ";"):
        tokens.pop()
    for at in range(1, 4):
        if [text for _, text in tokens[at : at + 3]] == ["if", "not", "exists"]:
            del tokens[at : at + 3]
    return tokens


def statement_of(sql: str) -> Statement:
    """Read one statement. Raises MigrationsRejected for any other form, naming what is allowed."""
    if type(sql) is not str or len(sql) > STATEMENT_CHARS_MAX:
        raise MigrationsRejected(f"sql() takes a text of at most {STATEMENT_CHARS_MAX} characters")
    try:
        sql.encode()
    except UnicodeEncodeError:
        raise MigrationsRejected("sql() takes text that UTF-8 can hold") from None
    reader = _Reader(sql)
    verb = reader.word()
    if verb == "CREATE":
        statement = _create(reader, sql)
    elif verb == "DROP":
        kind = reader.one_of(*KINDS)
        reader.skip("IF", "EXISTS")
        name = reader.name()
        statement = Statement("DROP", kind, name, name, sql)
        reader.end()
    elif verb == "ALTER":
        reader.one_of("TABLE")
        name = reader.name()
        reader.one_of("ADD")
        reader.skip("COLUMN")
        statement = Statement("ALTER", "TABLE", name, name, sql, reader.name())
    else:
        raise _refused(sql)
    reader.rest_is_one_statement()
    for name in (statement.name, statement.table):
        if name.lower() == TABLE or name.lower().startswith("sqlite_"):
            raise MigrationsRejected(f"sql(): {name} is not the application's to change")
    return statement


def _create(reader: _Reader, sql: str) -> Statement:
    kind = reader.one_of("UNIQUE", *KINDS)
    if kind == "UNIQUE":
        kind = reader.one_of("INDEX")
    if_absent = reader.skip("IF", "NOT", "EXISTS")
    name = reader.name()
    table = name
    if kind == "INDEX":
        reader.one_of("ON")
        table = reader.name()
    if kind == "VIEW":
        reader.skip_brackets()
        reader.one_of("AS")
    elif not reader.punctuation("("):
        raise MigrationsRejected(
            f"sql(): CREATE {kind} {name} must list its columns in brackets; AS SELECT would copy "
            "records"
        )
    statement = Statement("CREATE", kind, name, table, sql)
    statement.if_absent = if_absent
    return statement


def _refused(sql: str) -> MigrationsRejected:
    return MigrationsRejected(
        f"sql({sql[:40]!r}...): only CREATE and DROP of an INDEX, TABLE or VIEW and ALTER TABLE "
        "... ADD COLUMN are known; records are changed by the other steps"
    )


class _Reader:
    """The statement's tokens from left to right; comments and blanks are passed over."""

    def __init__(self, sql: str) -> None:
        self._sql = sql
        self._tokens = _tokens(sql)
        self._at = 0

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def word(self) -> str:
        """The next token if it is a bare word, in capitals, else ""."""
        kind, text = self._peek()
        if kind != "word":
            return ""
        self._at += 1
        return text.upper()

    def one_of(self, *known: str) -> str:
        found = self.word()
        if found not in known:
            raise _refused(self._sql)
        return found

    def skip(self, *words: str) -> bool:
        """Pass over these words where all of them come next; whether they did."""
        ahead = self._tokens[self._at : self._at + len(words)]
        if [text.upper() for kind, text in ahead if kind == "word"] == list(words):
            self._at += len(words)
            return True
        return False

    def name(self) -> str:
        kind, text = self._peek()
        self._at += 1
        if kind not in ("word", "name") or self._peek() == ("sign", "."):
            raise MigrationsRejected("sql(): a name is missing, or has another database before it")
        return text

    def punctuation(self, sign: str) -> bool:
        return self._peek() == ("sign", sign)

    def skip_brackets(self) -> None:
        """Pass over a list in brackets, such as a view's columns."""
        if not self.punctuation("("):
            return
        while self._peek()[0] != "end" and not self.punctuation(")"):
            self._at += 1
        self._at += 1

    def end(self) -> None:
        """Nothing but a semicolon may follow."""
        if self._peek() not in (("end", ""), ("sign", ";")):
            raise _refused(self._sql)

    def rest_is_one_statement(self) -> None:
        signs = [number for number, token in enumerate(self._tokens) if token == ("sign", ";")]
        if signs and signs != [len(self._tokens) - 1]:
            raise MigrationsRejected("sql() takes one statement; make two steps of two")
        depth = 0
        for kind, text in self._tokens:
            depth += (kind == "sign") * ((text == "(") - (text == ")"))
            if depth < 0:
                break
        if depth:
            raise MigrationsRejected("sql(): its brackets do not match")


_CLOSING = {'"': '"', "[": "]", "`": "`", "'": "'"}


def _tokens(sql: str) -> list[tuple[str, str]]:
    """(kind, text): a bare "word", a quoted "name", a "text", or one "sign"."""
    found: list[tuple[str, str]] = []
    at, end = 0, len(sql)
    while at < end:
        char = sql[at]
        if sql.startswith("--", at):
            at = _after(sql, "\n", at)
        elif sql.startswith("/*", at):
            at = _after(sql, "*/", at + 2)
        elif char.isspace():
            at += 1
        elif char in _CLOSING:
            text, at = _quoted(sql, at)
            found.append(("text" if char == "'" else "name", text))
        elif char.isalnum() or char in "_$" or char > "\x7f":
            start = at
            while at < end and (sql[at].isalnum() or sql[at] in "_$" or sql[at] > "\x7f"):
                at += 1
            found.append(("word", sql[start:at]))
        else:
            found.append(("sign", char))
            at += 1
    return found


def _after(sql: str, mark: str, at: int) -> int:
    found = sql.find(mark, at)
    return len(sql) if found < 0 else found + len(mark)


def _quoted(sql: str, at: int) -> tuple[str, int]:
    """A quoted text without its quotes, and where it ends; a doubled quote stands for one."""
    close, text, start = _CLOSING[sql[at]], "", at + 1
    while True:
        stop = sql.find(close, start)
        if stop < 0:
            raise MigrationsRejected("sql(): a quote is not closed")
        text += sql[start:stop]
        if close == "]" or sql[stop + 1 : stop + 2] != close:
            return text, stop + 1
        text += close
        start = stop + 2
