"""What members of generation write to rows, alone, together and ranked."""
