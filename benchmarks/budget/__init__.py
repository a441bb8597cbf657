"""What cheaper attribution costs in fidelity: the curve of agreement against overhead."""
