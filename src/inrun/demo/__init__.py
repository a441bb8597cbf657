"""The first run: digits with wrong labels, found, explained, checked and pruned."""

from inrun.errors import require_extra

require_extra("demo", "sklearn", "altair", "jinja2", "vl_convert", "PIL")

from inrun.demo._demo import run_demo  # noqa: E402 - the extra is named first

__all__ = ["run_demo"]
