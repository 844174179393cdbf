"""The command line: a verb parses its options, calls one function, and prints the summary.

Verbs that run one stage are in `verbs.py`; the others have a module of their own with a click command named
`command`. They are imported only when they are used, so that `ripple --help` loads neither torch nor lsst.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, TypedDict

import click

from ripple import __version__
from ripple.errors import InputError, Interrupted, RippleError
from ripple.runtime.signals import Late, guard

#: Group of `ripple --help` -> verb -> one line, in the order in which they are used.
GROUPS: dict[str, dict[str, str]] = {
    "Sky to tensors": {
        "doctor": "Check the environment, and a repository when one is given.",
        "simulate": "Simulate a small survey in a real Butler repository.",
        "locate": "Sky position to tract, patch and pixel.",
        "plan": "Dry run of fetch: what exists, how large, how long.",
        "fetch": "Butler coadds to multi-band cutouts.",
        "import": "Cutouts in other formats to cutouts or tensors.",
        "preprocess": "PSF matching, normalisation, quality control: cutouts to tensors.",
        "inject": "Paint lensed sources into real cutouts.",
    },
    "Finder": {
        "train": "Tensors to a lens finder.",
        "score": "A lens finder and tensors to ranked candidates.",
        "search": "A lens finder and coadds to ranked candidates, in one pass.",
        "committee": "Scores of the same objects by several models, as one ranking.",
        "compare": "Scores of the same rows by several models, side by side.",
        "explain": "Why a model gives its scores: saliency, neighbours, latent space.",
        "import-model": "A network trained elsewhere to a model.",
        "export-model": "A model to ONNX or a program of torch.export.",
    },
    "Candidates": {
        "report": "A page to grade candidates on.",
        "vet": "Candidates graded by several people, with hidden tests, in the browser.",
        "consensus": "Grades of several people to candidates with a probability.",
        "match": "Which known lenses a search has found, and why not the others.",
        "completeness": "What a finder would have found: the selection function from painted arcs.",
        "embed": "What a network sees in each row, to search by likeness.",
        "similar": "Rows that look like an example; near-duplicates.",
    },
    "Artefacts": {
        "show": "Show what a directory that RIPPLe wrote contains, or which rows failed and why.",
        "status": "How far a directory is that is being written.",
        "verify": "Verify the checksums of a directory that RIPPLe wrote.",
        "export": "Tensors or cutouts to other formats.",
        "run": "The whole chain from one YAML file.",
    },
}
VERBS: dict[str, str] = {verb: line for verbs in GROUPS.values() for verb, line in verbs.items()}


class LazyGroup(click.Group):
    """A group that imports a verb when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the chain."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The verb, imported now."""
        if name not in VERBS:
            return None
        verbs = importlib.import_module("ripple.cli.verbs")
        if name in verbs.STAGES:
            command = verbs.command(name)
        else:
            # A module `run` would hide the function below once it is imported.
            command = importlib.import_module(f"ripple.cli.{'run_' if name == 'run' else name}").command
        assert isinstance(command, click.Command)
        if not any(param.name == "verbose" for param in command.params):  # a command may be asked for twice
            command.params.extend(_common_options())
        return command

    # Click would import every verb to read its first line.
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The tables of verbs, without importing any of them."""
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))


def _common_options() -> list[click.Option]:
    """Options of every verb, which change what is said and nothing that is written."""
    how: dict[str, Any] = {"expose_value": False, "callback": _keep}
    to_file = "Append events to this file: time (UTC), level, message."
    return [
        click.Option(["-v", "--verbose"], count=True, help="Say more; -vv: all.", **how),
        click.Option(["-q", "--quiet"], is_flag=True, help="Only errors.", **how),
        click.Option(["--log"], metavar="FILE", help=to_file, **how),
    ]


def _keep(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    """Act on a common option as soon as it is parsed."""
    from ripple.runtime import log

    if option.name == "log" and value:
        log.open_log(Path(value))
        log.LOGGER.info("ripple %s: %s", __version__, " ".join(map(plain_word, sys.argv[1:])))
    elif option.name == "verbose" and value:
        log.speak(value)
    elif option.name == "quiet" and value:
        log.speak(-1)


def plain_word(word: str) -> str:
    """A word of a command line for a log: without control characters, and without the secrets of a URL."""
    from ripple.runtime.summary import plain

    return re.sub(r"(://)[^/@\s]*@", r"\1***@", plain(word))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: ripple simulate sky && ripple fetch --repo sky/repo --collections mini -o cutouts",
)
@click.version_option(__version__, prog_name="ripple")
def group() -> None:
    """From a patch of Rubin/LSST sky to ranked strong-lens candidates."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script; exits with the codes of `ripple.errors`."""
    _open_standard_files()
    sys.exit(run(argv, guarded=True))


def _open_standard_files() -> None:
    """Open the null device for standard files that are closed (`2>&-`)."""
    # Otherwise the next file gets number 2, and messages would be written into a shard.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:  # Python found it closed when it started
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def run(argv: list[str] | None = None, *, guarded: bool = False) -> int:
    """Run one command line and return its exit code; errors become one line on stderr.

    Parameters
    ----------
    argv
        Arguments; those of the process by default.
    guarded
        The process runs only this command, so signals may be guarded for all of it.
    """
    from ripple.runtime import log

    as_json = "--json" in (sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv, guarded=guarded, as_json=as_json)
        log.LOGGER.info("exit %d", code)
        return code
    finally:
        log.close()


def _run(argv: list[str] | None, *, guarded: bool, as_json: bool) -> int:
    try:
        if guarded:
            guard()
        # Click turns SIGINT into Abort; verbs that must stop in an orderly way install their own handlers.
        result: Any = group.main(args=argv, prog_name="ripple", standalone_mode=False)
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.ClickException as err:  # options that click itself refuses
        err.show()
        return 2
    except Interrupted as err:
        return _fail(err, err.code, as_json)
    except RippleError as err:
        return _fail(err, err.exit_code, as_json)
    except (KeyboardInterrupt, click.Abort) as err:
        # Click takes an EOFError for the end of a prompt, but no verb prompts: it is an error in the code.
        if isinstance(err.__cause__, EOFError):
            raise err.__cause__ from None
        late = err.__cause__ if isinstance(err.__cause__, Late) else Late()
        return _fail(Interrupted(late.signum), 128 + late.signum, as_json)  # as shells report signals
    except ModuleNotFoundError as err:
        # Of a package that only some verbs need; any other one is an error in the code.
        from ripple.runtime.extras import not_installed

        known = not_installed(err.name or "")
        if known is None:
            raise
        return _fail(known, known.exit_code, as_json)
    except OSError as err:
        # For example a directory without permission, or a name that is too long. Without a file name it would
        # say nothing to the user, so the traceback is better.
        if err.filename is None:
            raise
        return _fail(
            InputError(f"{os.fsdecode(err.filename)}: {err.strerror}"), InputError.exit_code, as_json
        )
    return result if isinstance(result, int) else 0


#: Exit code, class of the error, what is wrong, and what to do, null where nothing is known.
ErrorFacts = TypedDict("ErrorFacts", {"code": int, "class": str, "message": str, "hint": str | None})


class ErrorOutput(TypedDict):
    """Why a command failed."""

    error: ErrorFacts


def _fail(err: RippleError, code: int, as_json: bool) -> int:
    """Print an error as one line, and with --json as an object on stdout; returns the exit code."""
    from ripple.runtime import log
    from ripple.runtime.summary import plain

    log.LOGGER.error(plain(str(err)))
    if as_json:
        error: ErrorFacts = {
            "code": code,
            "class": type(err).__name__,
            "message": err.message,
            "hint": err.hint,
        }
        failed: ErrorOutput = {"error": error}
        click.echo(json.dumps(failed))

    # Names and messages of files may contain control characters, which a terminal would obey.
    click.echo(f"ripple: {plain(str(err))}", err=True)
    return code
