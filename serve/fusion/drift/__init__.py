"""How the answers of an ensemble change: against its validation rows, and without one of its members."""
