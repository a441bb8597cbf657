"""The slope of a step: the linear map from gradient to displacement that stands for the rule.

A slope J of one parameter takes a change of the consumed gradient to a change of the displacement.
Attribution needs it transposed: for a validation gradient v,

    <v, J share_b> = <J^T v, share_b>

so that one pull of v serves all samples. For an elementwise rule J is diagonal and the pull is a
multiplication; for a rule that mixes a matrix's elements it is a vector-Jacobian product. Letters:
K targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Slope(ABC):
    """A linear map from gradients of one parameter to its displacements, learning rate included."""

    @abstractmethod
    def transposed(self, gradient_K: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """J^T v, times a scale, for each of K gradients v.

        Args:
            gradient_K: (K, *shape).
            scale: what a share is multiplied by before J acts, (*shape) or a number.

        Returns:
            (K, *shape), in the gradients' dtype or a wider one.
        """

    @abstractmethod
    def along(self, gradient: Tensor) -> Tensor:
        """J g, (*shape)."""

    def kept(self) -> Slope:
        """The same map, on nothing that the optimizer's step overwrites."""
        return self


class Diagonal(Slope):
    """An elementwise rule's slope: `coefficient` of the parameter's shape, or one number."""

    def __init__(self, coefficient: Tensor | float):
        self.coefficient = coefficient

    def transposed(self, gradient_K: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """See `Slope.transposed`: a product, its own transpose."""
        number = isinstance(scale, float) and scale == 1.0
        return gradient_K * (self.coefficient if number else self.coefficient * scale)

    def along(self, gradient: Tensor) -> Tensor:
        """See `Slope.along`."""
        return gradient * self.coefficient
