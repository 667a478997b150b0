"""A process is killed with SIGKILL in the middle of a run; another one finishes the run.

The child process charges an order and then asks a slow tool where the parcel is. The parent kills
it there, without warning, and resumes the session. The charge is not repeated, because its result
is in the journal. The slow tool was still running; it only reads, so it is asked again.
"""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

from mainspring import Agent, Context, Engine, Model, tool
from mainspring.testing import ScriptedModel, call, calls, say

STORE = "sqlite:///crash.db"
SESSION = "order-7"
CHARGES = Path("charges.txt")
IS_CHILD = len(sys.argv) > 1


@tool(effect="keyed")
def charge(order: int, ctx: Context) -> str:
    """Charge an order."""
    with CHARGES.open("a") as file:
        file.write(f"order {order} charged, key {ctx.effect_id}\n")
    return f"order {order} is charged"


@tool(effect="read")
async def track(order: int) -> str:
    """Find the parcel of an order."""
    if IS_CHILD:
        print("tracking", flush=True)  # The parent waits for this line, then kills.
        await asyncio.Event().wait()
    return f"the parcel of order {order} left today"


def shop(base_url: str) -> Agent[str]:
    model = Model("scripted", base_url=base_url)
    return Agent("shop", model=model, tools=[charge, track])


async def begin(base_url: str) -> None:
    async with Engine(STORE) as engine:
        run = await engine.start(
            shop(base_url), "Charge order 7, then tell me where it is.", session=SESSION
        )
        await run.result()


async def finish(base_url: str) -> None:
    async with Engine(STORE) as engine:
        run = await engine.resume(SESSION, shop(base_url))
        print(f"answer: {await run.result()}")
        for event in await engine.log(SESSION):
            print(f"{event.seq:>3}  {event.kind}")


def main() -> None:
    if IS_CHILD:
        asyncio.run(begin(sys.argv[1]))
        return
    script = [
        calls(call("charge", order=7)),
        calls(call("track", order=7)),
        say("Order 7 is charged and left today."),
    ]
    with ScriptedModel(script) as model:
        command = [sys.executable, __file__, model.base_url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            print(f"the child says: {child.stdout.readline().strip()}")
            child.kill()
        print(f"the child ended by {signal.Signals(-child.returncode).name}")
        asyncio.run(finish(model.base_url))
        print(f"charges made: {len(CHARGES.read_text().splitlines())}")
        print(f"model calls answered: {model.request_count}")


if __name__ == "__main__":
    main()
