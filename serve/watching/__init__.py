"""What watching needs beside the metrics: the board of all processes, and spans."""
