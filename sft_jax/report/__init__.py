"""What a run tells the user: console lines, metrics and results."""
