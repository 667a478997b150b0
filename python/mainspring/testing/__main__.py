"""Serves a script from a JSON file: `python -m mainspring.testing SCRIPT.json`.

Invariant: standard output carries one line, the base URL, printed when the server answers.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from mainspring.testing import ScriptedModel, _file


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the server until Ctrl-C, SIGTERM or, with `--until-eof`, the end of standard input.

    Returns:
        0 when it was ended, 1 when the port cannot be had, 2 for a bad script file.
    """
    given = _parser().parse_args(arguments)
    try:
        script = _file.load_script(given.script)
    except OSError as wrong:
        print(f"error: cannot read {given.script}: {wrong.strerror}", file=sys.stderr)
        return 2
    except ValueError as wrong:
        print(
            f"error: {wrong}\nhint: python -m mainspring.testing --help shows the form of a step",
            file=sys.stderr,
        )
        return 2
    # A served connection is a file; the soft limit of many systems is 1,024.
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    model = ScriptedModel(
        script.steps, models=script.models, api_key=script.api_key, port=given.port
    )
    try:
        with model:
            print(model.base_url, flush=True)
            if given.until_eof:
                sys.stdin.buffer.read()
            else:
                threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except OSError as wrong:
        print(f"error: cannot listen on port {given.port}: {wrong.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mainspring.testing",
        description="Serves a scripted model over the OpenAI Chat Completions protocol.",
        epilog=_file.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", type=Path, metavar="SCRIPT.json", help="the script to follow")
    parser.add_argument(
        "--port", type=int, default=0, help="port on loopback (default: a free one)"
    )
    parser.add_argument(
        "--until-eof", action="store_true", help="stop when standard input is closed"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
