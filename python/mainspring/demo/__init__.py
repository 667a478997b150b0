"""The main job as a demonstration: an agent answers a question about the git repository it is in.

Invariant: real models and scripted ones get the same agent, tools and checks; nothing here answers
in the place of a model. `local` and `scripted` are factories, `MODULE:AGENT` for the command line:
each starts its model servers and stops them at the end. Start reading at `local`.
"""

from mainspring.demo._agent import MODELS, default_question, local, repository, scripted
from mainspring.demo._check import Check

__all__ = ["Check", "MODELS", "default_question", "local", "repository", "scripted"]
