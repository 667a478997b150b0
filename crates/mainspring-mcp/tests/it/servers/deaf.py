"""A server that never answers, and stays when its standard input ends."""

import signal

signal.pause()
