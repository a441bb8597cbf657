"""Whether planted rows with a trigger are found, and what is left of them without those found."""
