"""m3ae-scale VERB: thin verbs, each calls one function of one room. A user's mistake is one line and exit code 2."""

import atexit
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from m3ae_scale.cli.lazy import LazyVerbs
from m3ae_scale.errors import EXIT_MISTAKE, InputError
from m3ae_scale.version import __version__

# verb -> the module that holds it; imported when the verb is asked for, so that --help is quick
VERBS = {
    "pretrain": "m3ae_scale.cli.pretrain",
    "data": "m3ae_scale.cli.data",
    "config": "m3ae_scale.cli.config",
    "encode": "m3ae_scale.cli.encode",
    "eval": "m3ae_scale.cli.eval",
    "reproduce": "m3ae_scale.cli.reproduce",
    "checkpoint": "m3ae_scale.cli.checkpoint",
    "weights": "m3ae_scale.cli.weights",
    "page": "m3ae_scale.cli.page",
    "bench": "m3ae_scale.cli.bench",
    "profile": "m3ae_scale.cli.profile",
    "report": "m3ae_scale.cli.report",
    "slurm": "m3ae_scale.cli.slurm",
    "sizes": "m3ae_scale.cli.sizes",
}


@click.group(
    cls=LazyVerbs, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--local_rank", hidden=True, expose_value=False)  # what the deepspeed launcher adds
@click.version_option(__version__, prog_name="m3ae-scale")
def cli() -> None:
    """Pretrain the Multimodal Masked Autoencoder at scale. Start with `m3ae-scale pretrain --help`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0, 2 after a user's mistake, 75 from a stopped run, 130 after Ctrl-C."""
    # DeepSpeed builds its operations with ninja, which lies beside this python whether or not .venv is activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        return cli.main(args=argv, prog_name="m3ae-scale", standalone_mode=False) or 0
    except InputError as error:
        return _mistake(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        verb = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "m3ae-scale"
        return _mistake(f"{' '.join(error.format_message().split())} See {verb} --help.")
    except (click.Abort, KeyboardInterrupt) as stop:
        if isinstance(stop.__cause__, EOFError):  # click takes any for a closed terminal; here it is a file or a pipe
            raise stop.__cause__ from None
        return 130
    except BrokenPipeError:  # as with `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one verb as a process of its own: `main`, all that is registered to happen at exit, and the exit code.

    Where torch was loaded, the process then ends without taking the interpreter apart: Gloo's threads live as long as
    anything in DeepSpeed refers to their group, and one that frees a tensor only now aborts the process, so that a run
    which has finished would be taken for one that crashed.
    """
    _write_whole_lines()
    code = 1  # of an exception that nobody expected

    def end() -> None:
        if "torch" in sys.modules:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    atexit.register(end)  # before all others, so it runs after them
    try:
        code = main(argv)
    except SystemExit as left:
        code = int(left.code or 0)
    sys.exit(code)


def _write_whole_lines() -> None:
    # Ranks share a terminal or a log: a line that is one write is not torn by another rank's, and is there at once.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)  # also where PYTHONUNBUFFERED is set


def _mistake(text: str) -> int:
    print(f"error: {' '.join(text.splitlines())}", file=sys.stderr)
    return EXIT_MISTAKE


if __name__ == "__main__":
    program()
