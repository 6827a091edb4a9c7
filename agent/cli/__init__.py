"""Command line: one small module per group of verbs."""
