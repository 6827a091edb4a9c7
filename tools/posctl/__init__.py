"""The host's end of a terminal's line: the command `posctl` and the library behind it.

A program of one's own begins with `from posctl.client import connect`. Reading order, from what a
person sees to the bytes: main, verbs, client, runs, conversation, frames, lines.
"""
