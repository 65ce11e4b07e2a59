"""`choir improve`: measures what would make an ensemble better, and says what each step costs."""
