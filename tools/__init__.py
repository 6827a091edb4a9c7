"""Host-side tools; they may use what a laptop has."""
