"""Which way to contract: counted in multiply-adds and bytes, integers only.

For one sample with T positions, a matrix share of M x N and K directions:

    push         sum_t left_t . (Q_k right_t)      K * T * (M * N + M)
    materialize  c = sum_t left_t right_t^T, <Q_k, c>   T * M * N + K * M * N, and M * N numbers

A sample's share is materialized where that is less work and a block of samples fits the limit.
"""

MATERIALIZED_BYTES = 64 * 2**20  # what a block of materialized shares may take


def push_flops(positions: int, rows: int, columns: int, directions: int) -> int:
    """Multiply-adds a sample of pushing every direction through the use."""
    return directions * positions * (rows * columns + rows)


def materialize_flops(positions: int, rows: int, columns: int, directions: int) -> int:
    """Multiply-adds a sample of building the share and taking its inner products."""
    return positions * rows * columns + directions * rows * columns


def samples_per_block(share_elements: int, itemsize: int, limit: int = MATERIALIZED_BYTES) -> int:
    """How many materialized shares fit the limit; 0 where not even one does."""
    return limit // max(1, share_elements * itemsize)


def materialize_is_cheaper(
    positions: int, rows: int, columns: int, directions: int, itemsize: int
) -> bool:
    """Whether to materialize blocks of shares instead of pushing directions through."""
    fits = samples_per_block(rows * columns, itemsize) > 0
    build = materialize_flops(positions, rows, columns, directions)
    return fits and build < push_flops(positions, rows, columns, directions)
