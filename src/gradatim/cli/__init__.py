"""The `gradatim` command. Exit codes:

- 0: done
- 1: a fault of ours (or a trial that could not be started); `--debug` shows the traceback
- 2: bad options or bad input; the one line on standard error names it and the fix
- 3: with `--strict`: a claim was not reproduced, or a trial failed
- 130: stopped with Ctrl-C; finished trials are kept
"""

from __future__ import annotations

import os
import sys

EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_STRICT = 3
EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; every error is one line unless `--debug` is given."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv or bool(os.environ.get("GRADATIM_DEBUG"))
    argv = [a for a in argv if a != "--debug"]
    sys.exit(_guarded(argv, debug))


def _guarded(argv: list[str], debug: bool) -> int:
    import typer

    from gradatim.cli.app import app, user_errors

    try:
        code = app(args=argv, prog_name="gradatim", standalone_mode=False)
        # Typer turns Ctrl-C into this code of its own.
        return _interrupted() if code == EXIT_INTERRUPTED else code if isinstance(code, int) else 0
    except typer.Exit as e:
        return _interrupted() if e.exit_code == EXIT_INTERRUPTED else int(e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:
        # The reader of our output went away (`gradatim list | head`): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        if debug:
            raise
        # Typer carries its own copy of click's errors about options, so they are known by their method.
        if hasattr(e, "format_message"):
            _say(f"error: {_one_line(e.format_message())} (see gradatim {_command(argv)}--help)")
            return EXIT_USAGE
        if isinstance(e, user_errors()):
            _say(f"error: {_one_line(str(e))}")
            return EXIT_USAGE
        _say(f"error: {type(e).__name__}: {_one_line(str(e))}; run it again with --debug for the traceback")
        return EXIT_FAULT


def _interrupted() -> int:
    _say("stopped; finished trials are kept, the same command goes on from there")
    return EXIT_INTERRUPTED


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _command(argv: list[str]) -> str:
    words = [a for a in argv[:1] if not a.startswith("-")]
    return "".join(f"{w} " for w in words)
