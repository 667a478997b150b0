"""The server process: llama.cpp's HTTP server in a process of its own.

This file is run by path, not imported, so that it needs nothing of this project and so that the
runtime never enters the user's process.

Invariant: it never outlives its parent. The kernel kills it when the parent thread dies, and a
watch on its standard input ends it at end of file, should the first be missing on this system.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1
"""Option number of prctl(2), from linux/prctl.h."""


def main() -> None:
    """Serves the model named in the arguments until the parent goes away."""
    config = json.loads(sys.argv[1])
    _die_with_parent(parent_pid=config["parent_pid"])
    os.nice(config["nice"])
    try:
        server = _serve(config)
    except RuntimeError as error:
        # The runtime has printed its own reason; a traceback through this file would hide it.
        sys.exit(str(error))
    print(json.dumps({"url": server.listening_address}), flush=True)
    signal.pause()


def _die_with_parent(*, parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)  # It died before the call above, which then never fires.
    threading.Thread(target=_exit_at_end_of_input, name="parent-watch", daemon=True).start()
    # Ctrl-C on the terminal reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _exit_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def _serve(config: dict[str, Any]) -> Any:
    # By name, since it is an optional dependency without types, and only ever in this process.
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = config["path"]
    params.model_alias = {config["name"]}
    params.hostnames = ["127.0.0.1"]
    params.port = config["port"]
    params.n_ctx = config["context_tokens"] * config["parallel"]
    params.n_parallel = config["parallel"]
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = config["threads"]
        # Threads that spin at a barrier collapse as soon as anything else wants the core.
        cpu.poll = 0
    # The prefix of a session is the same from step to step: keep it in its slot, and keep the
    # prefixes of other sessions in memory when a slot is taken.
    params.cache_prompt = True
    params.cache_ram_mib = config["prefix_cache_mib"]
    # A prompt that does not fit is an error the caller can see, not a silent cut.
    params.ctx_shift = False
    # The default leaves as much memory as it finds; the context asked for is the one served.
    params.fit_params = False
    params.n_gpu_layers = 0
    params.ui = False
    # A page in a browser must not be able to talk to this server.
    params.cors_origins = ""
    params.verbosity = 1
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
