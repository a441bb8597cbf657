"""What attribution costs in time and memory, beside plain training."""
