"""The public object: attach to a loop, score in the optimizer's step hooks, give tables."""

from inrun.attribution._attach import attach
from inrun.attribution._attribution import Attribution
from inrun.attribution._audit import Audit
from inrun.attribution._settings import demand_settings
from inrun.attribution._tokens import Tokens

__all__ = ["Attribution", "Audit", "Tokens", "attach", "demand_settings"]
