"""The ``sisopt`` command.

Extras are imported where they are used: ``--help`` and ``--version`` need none but click, and a missing one gets a
message instead of a traceback. The commands themselves are in `sisopt.commands`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .commands.console import fail
from .errors import InvalidInputError, SisoptError, UnsupportedError

if TYPE_CHECKING:
    import click

FAILURE = 1  # the goal cannot be met, a result failed its checks, or the system refused
USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
EXTRA_OF = {
    "click": "cli", "rich": "cli", "jinja2": "demo", "matplotlib": "demo", "sklearn": "demo",
    "onnx": "onnx", "onnxruntime": "onnx",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the command's name; by default that of the process.

    Returns
    -------
    int
        0; 1 where the goal cannot be met or something else went wrong; 2 where the call has to change; 130 where it was
        interrupted.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if "sisopt[" in str(error):
            fail(str(error))
        elif package in EXTRA_OF:
            fail(f'{package} is not installed. Install it with\n\n    pip install "sisopt[{EXTRA_OF[package]}]"\n')
        else:
            raise
        return USER_ERROR
    except (InvalidInputError, UnsupportedError) as error:
        fail(str(error))
        return USER_ERROR
    except SisoptError as error:
        fail(str(error))
        return FAILURE
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return FAILURE
    except MemoryError as error:
        fail(f"not enough memory: {error}")
        return FAILURE
    except KeyboardInterrupt:
        fail("interrupted")
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    import click

    try:
        status = _commands().main(arguments, prog_name="sisopt", standalone_mode=False)
    except click.Abort:  # how click reports Ctrl-C
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        if isinstance(error, click.UsageError):
            error.show()
        else:
            fail(error.format_message())
        return error.exit_code
    return status if isinstance(status, int) else 0


def _commands() -> click.Group:
    import click

    from . import __version__
    from .commands.bench import bench
    from .commands.demo import demo
    from .commands.layer import layer
    from .commands.onnx import onnx
    from .commands.show import show

    @click.group(
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Exit status: 0 done, 1 the goal cannot be met or something failed, 2 the call is wrong, 130 stopped.",
    )
    @click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
    def group() -> None:
        """Sparse neural-network layers by certified convex optimisation."""

    for command in (demo, layer, onnx, show, bench):
        group.add_command(command)
    return group


if __name__ == "__main__":
    sys.exit(main())
