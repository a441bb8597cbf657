"""What following owners costs: a step of this version beside one of the version before."""
