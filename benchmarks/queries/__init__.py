"""What look-ahead for many queries in one sweep costs, beside one query at a time."""
