"""`python -m fuzz.run TARGET --seconds N`: coverage-guided fuzzing of one parser, until it finds something.

What a parser raises beside its `REFUSALS` ends the run with the input that did it, and so does an input that takes
longer than `--timeout` or more memory than `--megabytes`. Needs `atheris`.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import atheris

TARGETS = sorted(path.stem for path in (Path(__file__).parent / "targets").glob("*.py") if path.stem != "__init__")


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--timeout", type=int, default=5, help="seconds that one input may take")
    parser.add_argument("--megabytes", type=int, default=1024, help="memory that the process may take")
    parser.add_argument("--corpus", type=Path, help="inputs of interest are read from here, and kept; default: none is")
    given = parser.parse_args()
    with atheris.instrument_imports(include=["isthmus"]):
        target = importlib.import_module(f"fuzz.targets.{given.target}")
    with tempfile.TemporaryDirectory(prefix="isthmus-corpus-") as name:
        corpus = given.corpus or Path(name)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        options = [
            f"-max_total_time={given.seconds}",
            f"-timeout={given.timeout}",
            f"-rss_limit_mb={given.megabytes}",
            "-max_len=8192",
            "-print_final_stats=1",
        ]
        _fuzz(target, [sys.argv[0], str(corpus), *options])


def _fuzz(target: ModuleType, arguments: list[str]) -> NoReturn:
    def once(data: bytes) -> None:
        try:
            target.parse(data)
        except target.REFUSALS:
            return

    atheris.Setup(arguments, once)
    atheris.Fuzz()
    sys.exit(0)


if __name__ == "__main__":
    main()
