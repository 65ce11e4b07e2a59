"""What the server writes down: log files, one for each process, and the events that its console shows."""
