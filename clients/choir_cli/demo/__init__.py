"""`make demo`: train, serve, ask and swap once, on data that the project generates."""
