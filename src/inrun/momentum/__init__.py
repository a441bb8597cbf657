"""The window of momentum: what later steps do for a step's samples, and where they wait for it."""

from inrun.momentum._tensor_store import Holding, tensor_store_of
from inrun.momentum._waiting import Paid
from inrun.momentum._window import Payouts

__all__ = ["Holding", "Paid", "Payouts", "tensor_store_of"]
