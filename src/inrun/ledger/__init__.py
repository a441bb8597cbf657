"""The books, the totals a sample, and the run on disk."""

from inrun.ledger._books import (
    LEDGER,
    TOTAL,
    Entries,
    balance,
    ledger_rows,
    residual_shares,
    totals,
)
from inrun.ledger._doubt import relative_error
from inrun.ledger._run import Run, books_of, load
from inrun.ledger._sample_file import read_samples
from inrun.ledger._samples import samples_table
from inrun.ledger._sealed import as_table, as_tensor, read_state, seal, unseal, write_state
from inrun.ledger._store import RunFolder
from inrun.ledger._tally import Extra, Ids, Tally, normalised, target_columns
from inrun.ledger._tokens import TokenFolder, read_tokens

__all__ = [
    "LEDGER",
    "TOTAL",
    "Entries",
    "Extra",
    "Ids",
    "Run",
    "RunFolder",
    "Tally",
    "TokenFolder",
    "as_table",
    "as_tensor",
    "balance",
    "books_of",
    "ledger_rows",
    "load",
    "normalised",
    "read_samples",
    "read_state",
    "read_tokens",
    "relative_error",
    "residual_shares",
    "samples_table",
    "seal",
    "target_columns",
    "totals",
    "unseal",
    "write_state",
]
