"""`python -m tools.termsim new DIR ...`: arguments in, a sample terminal and its summary out.
`python -m tools.termsim serve DIR... [-- COMMAND]`: terminals that run, until somebody says stop.

Exit codes: 0 made, or served and told to stop; 64 the arguments or the folder cannot be used, and
nothing was written. `serve` besides: 1 a terminal does not come up; that of the COMMAND.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

from tools.termsim import serve
from tools.termsim.recipe import BAD_KINDS, BAD_KINDS_DEFAULT, Recipe, RecipeError
from tools.termsim.terminal import Summary, make_terminal

EXIT_USAGE = 64


class Parser(argparse.ArgumentParser):
    """argparse with the exit code that the other commands use for wrong arguments."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def setting(text: str) -> tuple[str, object]:
    """`key=json` as a pair."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=json")
    try:
        return key, json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"the value of {key} is not JSON; a text needs its quotes: {key}='\"...\"'"
        ) from error


def kinds(text: str) -> tuple[str, ...]:
    """A comma-separated list of kinds of bad records."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def build_parser() -> Parser:
    """All arguments with the words that `--help` shows."""
    parser = Parser(
        prog="python -m tools.termsim", description="Make sample terminals, and run them."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    new = verbs.add_parser("new", help="make a terminal's root folder at schema 0")
    add = new.add_argument
    add("root", metavar="DIR", type=Path, help="a folder that is new or empty")
    add("--profile", required=True, help="device profile named in config.json")
    add("--records", type=int, required=True, help="tx_ records in the transactions store")
    add("--unsettled", type=int, required=True, help="how many of them wait to be settled")
    add("--seed", type=int, required=True, help="the same arguments give the same rows")
    add("--layout", choices=("rowid", "without-rowid"), default="rowid", help="of the four stores")
    add("--keys", choices=("random", "time"), default="random", help="order of new keys")
    add("--journal", choices=("delete", "wal"), default="delete", help="journal mode of pos.db")
    add("--extra-tables", action="store_true", help="application tables, triggers, foreign keys")
    add("--bad-records", type=float, default=0.0, metavar="SHARE", help="0..1 of the tx_ records")
    add(
        "--bad-kinds",
        type=kinds,
        default=BAD_KINDS_DEFAULT,
        metavar="A,B",
        help=f"taken in turn; known: {', '.join(BAD_KINDS)} (default: all but too_large)",
    )
    add("--free-pages", type=float, default=0.0, metavar="SHARE", help="0..0.95 of the file")
    add("--no-preferences", action="store_true", help="leave nimipay_preferences out")
    add("--page-size", type=int, default=4_096, help="bytes, a power of two")
    add("--set", type=setting, action="append", default=[], metavar="KEY=JSON", dest="settings")
    add("--json", action="store_true", help="print one JSON object instead of sentences")
    serve.add_arguments(verbs.add_parser("serve", help="run terminals, each on a line of its own"))
    return parser


def sentences(summary: Summary) -> str:
    """The summary for a person."""
    of = summary.unsettled
    money = ", ".join(
        f"{currency} {entry['sum']} in {entry['count']}"
        for currency, entry in summary.money["unsettled"].items()
    )
    return "\n".join(
        (
            f"{summary.root}: profile {summary.recipe.profile}, schema 0, "
            f"{summary.file_bytes / 1e6:.1f} MB ({summary.free_pages} of {summary.pages} pages "
            "free)",
            "records: " + ", ".join(f"{store} {n}" for store, n in summary.records.items()),
            f"unsettled: {of['sales']} sales, {of['queued']} queued, {of['failed']} failed, "
            f"{of['retry']} to retry, {of['sync']} to sync",
            f"unsettled money (minor units): {money}",
            "bad records: "
            + (", ".join(f"{kind} {n}" for kind, n in summary.bad.items()) or "none"),
        )
    )


def recipe_of(args: argparse.Namespace) -> Recipe:
    """What `new` was asked for."""
    return Recipe(
        profile=args.profile,
        records=args.records,
        unsettled=args.unsettled,
        seed=args.seed,
        layout=args.layout,
        keys=args.keys,
        journal=args.journal,
        extra_tables=args.extra_tables,
        bad_share=args.bad_records,
        bad_kinds=args.bad_kinds,
        free_share=args.free_pages,
        preferences=not args.no_preferences,
        page_size=args.page_size,
        overrides=dict(args.settings),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    own = words.index("--") if "--" in words else len(words)
    parser = build_parser()
    args = parser.parse_args(words[:own])
    try:
        if args.verb == "serve":
            return serve.main(args, words[own + 1 :])
        summary = make_terminal(args.root, recipe_of(args))
    except RecipeError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return EXIT_USAGE
    if args.json:
        print(json.dumps(summary.as_json(), ensure_ascii=False))
    else:
        print(sentences(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
