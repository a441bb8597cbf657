"""`python -m benchmarks`: lists what is measured, and writes docs/benchmarks.md."""

from __future__ import annotations

from benchmarks.overview import TOPICS, write_page


def main() -> None:
    """Prints one line per benchmark, then writes the page."""
    for topic in TOPICS:
        page = topic.page or "benchmarks.md"
        print(f"python -m benchmarks.{topic.name:<14} {topic.question} docs/{page}")
    write_page()


if __name__ == "__main__":
    main()
