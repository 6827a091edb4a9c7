"""Verbs: the steps of a run, each readable on its own."""
