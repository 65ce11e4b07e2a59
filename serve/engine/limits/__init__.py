"""What a request may bring into the engine, and how much of the engine's queue it may fill."""
