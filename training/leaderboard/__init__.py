"""The leaderboard: everything that can be served instead of an ensemble, with its quality and its cost, and the
recommendation."""
