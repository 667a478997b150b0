"""`make demo`: set up, then hand over to `mainspring demo`."""

import sys

from tools.common import VENV_BIN, ToolError, run_shown
from tools.setup import REQUIREMENTS_DEMO, install_requirements, setup


def main() -> int:
    """Run the demo; `--fast` takes the scripted model and installs no model server."""
    arguments = sys.argv[1:]
    try:
        setup()
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    if "--fast" not in arguments:
        try:
            install_requirements(REQUIREMENTS_DEMO)
        except ToolError as error:
            # The demo itself then takes the scripted model and says so.
            print(f"no local model server on this machine: {error}", file=sys.stderr)
    return run_shown([str(VENV_BIN / "mainspring"), "demo", *arguments])


if __name__ == "__main__":
    sys.exit(main())
