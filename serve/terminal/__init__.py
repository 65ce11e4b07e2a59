"""What people read on a terminal: lines, tables and counts, in one style."""
