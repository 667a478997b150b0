"""`python -m mainspring.cli`: the same as the command `mainspring`."""

from mainspring.cli import main

if __name__ == "__main__":
    main()
