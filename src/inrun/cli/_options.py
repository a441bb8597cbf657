"""Options that several verbs share, and what they mean."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from inrun.errors import MisuseError
from inrun.ledger import Run, read_samples

RunFolder = Annotated[Path, typer.Argument(help="A run's folder, written by attach(store=...).")]
SamplesFile = Annotated[
    Path | None,
    typer.Option(
        "--samples", help="What the samples are: .parquet, .csv or .jsonl; else what the run says."
    ),
]
IdColumn = Annotated[
    str, typer.Option(help="The file's column with the run's ids; ':row' for row numbers from 0.")
]
TextColumn = Annotated[
    str | None, typer.Option(help="The file's column to show as text, if not 'text'.")
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="even: every class counts alike; training: by its share of the samples. Default: as "
        "the run was trained."
    ),
]

PicturesFolder = Annotated[
    Path | None,
    typer.Option(
        help="Where files lie that the file's column 'image' names; others are not read. Default: "
        "the file's own folder."
    ),
]


def samples_of(
    run: Run,
    file: Path | None,
    id_column: str,
    text_column: str | None = None,
    pictures: Path | None = None,
) -> pa.Table | None:
    """The samples that the command line named, or those that the run was told of."""
    if file is None:
        if text_column is not None or id_column != "sample_id":
            raise MisuseError("--id-column and --text-column say how --samples FILE is read.")
        return run.samples()
    return read_samples(
        file, id_column=id_column, id_type=run.id_type, text_column=text_column, pictures=pictures
    )


def entered(name: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules of the present folder are found too.

    Raises:
        MisuseError: no such module or function; an error inside the module is raised as it is.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise MisuseError(f"--entry {name!r} must read module:function, as in train:retrain.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = importlib.import_module(module.removesuffix(".py"))
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MisuseError(
            f"--entry names the module {module!r}, which is neither installed nor in {here}."
        ) from None
    found = getattr(loaded, function, None)
    if not callable(found):
        raise MisuseError(f"{module} has no function {function!r}.")
    return found  # type: ignore[no-any-return]  # the user's own
