"""What paying momentum out to the samples gains, and what it takes."""
