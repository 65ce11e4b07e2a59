"""`choir leaderboard`, `choir merge` and `choir distil`, and the engine in which the leaderboard measures requests."""
