"""How right the values are: every estimator beside exact Shapley values, on real data."""
