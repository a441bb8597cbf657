"""A long run with attribution: memory flat, store complete, time a step flat."""
