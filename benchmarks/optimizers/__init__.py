"""How right the values are for every optimizer: beside exact Shapley values, on real data."""
