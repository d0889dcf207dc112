"""`isthmus`: the commands, and how errors become exit codes.

0  done          2  the input is wrong (flag, file, field)          3  the world failed (a peer, a process)
1  a bug of ours                                                    130  interrupted
"""

import sys
from typing import NoReturn

import cyclopts

from isthmus import __version__
from isthmus.cli.bench import bench
from isthmus.cli.certs import certs
from isthmus.cli.check import check, describe
from isthmus.cli.demo import demo
from isthmus.cli.model import model
from isthmus.cli.serve import serve
from isthmus.cli.top import top
from isthmus.cli.verify import verify
from isthmus.core.errors import IsthmusError, Lost, Rejected

__all__ = ["app", "main"]

app = cyclopts.App(
    name="isthmus",
    version=__version__,
    help="The boundary layer of heterogeneous prefill-decode LLM inference.",
)
app.command(demo)
app.command(check)
app.command(describe)
app.command(bench)
app.command(certs)
app.command(serve)
app.command(top)
app.command(model)
app.command(verify)
app.register_install_completion_command()


def main() -> NoReturn:
    """Run, and exit with the code of the table above."""
    try:
        app()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Rejected as error:
        _fail(error, 2)
    except Lost as error:
        _fail(error, 3)


def _fail(error: IsthmusError, code: int) -> NoReturn:
    print(f"isthmus: {error}", file=sys.stderr)  # noqa: T201
    sys.exit(code)
