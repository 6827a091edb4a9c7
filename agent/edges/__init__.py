"""Edges: each module touches one thing of the world and is named after it."""
