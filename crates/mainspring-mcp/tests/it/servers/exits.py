"""A server that ends at once with a word on stderr."""

import sys

sys.stderr.write("cannot open the database\n")
sys.exit(3)
