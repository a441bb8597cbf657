"""From values to decisions."""

from inrun.uses._harm import harm_profile

__all__ = ["harm_profile"]
