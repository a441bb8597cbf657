"""The ledger, totals per sample, and the run on disk."""

from inrun.ledger._books import (
    ENTRIES,
    LEDGER,
    NO_PASS,
    OTHER_ROWS,
    TOTAL,
    Entries,
    balance,
    in_present_columns,
    known_residual_shares,
    ledger_rows,
    residual_shares,
    totals,
)
from inrun.ledger._documents import (
    Log,
    read_content,
    read_document,
    write_content,
    write_document,
)
from inrun.ledger._files import (
    Seal,
    as_table,
    as_tensor,
    read_state,
    read_table,
    seal,
    store_path,
    unseal,
    write_state,
    write_table,
)
from inrun.ledger._lock import Lock, machine
from inrun.ledger._run import Run, books_of, load_run
from inrun.ledger._running_totals import (
    Extra,
    Ids,
    RunningTotals,
    normalised,
    relative_error,
    target_columns,
)
from inrun.ledger._sample_file import read_samples
from inrun.ledger._samples import Pictures, opened_picture, png, samples_table
from inrun.ledger._store import RunFolder
from inrun.ledger._tokens import TokenFolder, token_parts

__all__ = [
    "ENTRIES",
    "LEDGER",
    "NO_PASS",
    "OTHER_ROWS",
    "TOTAL",
    "Entries",
    "Extra",
    "Ids",
    "Lock",
    "Log",
    "Pictures",
    "Run",
    "RunFolder",
    "RunningTotals",
    "Seal",
    "TokenFolder",
    "as_table",
    "as_tensor",
    "balance",
    "books_of",
    "in_present_columns",
    "known_residual_shares",
    "ledger_rows",
    "load_run",
    "machine",
    "normalised",
    "opened_picture",
    "png",
    "read_content",
    "read_document",
    "read_samples",
    "read_state",
    "read_table",
    "relative_error",
    "residual_shares",
    "samples_table",
    "seal",
    "store_path",
    "target_columns",
    "token_parts",
    "totals",
    "unseal",
    "write_content",
    "write_document",
    "write_state",
    "write_table",
]
