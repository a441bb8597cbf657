"""How far values of scoring windows agree with those of every step, and what they cost."""
