"""`choir leaderboard` and `choir merge`, and the engine in which the leaderboard measures requests."""
