"""What a fused language model head saves of memory, and that attribution leaves it saved."""
