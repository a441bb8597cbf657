"""x."""


def write_page():
    """x."""
