"""One agent, one tool, one question.

The model is scripted, so this runs offline and prints the same every time. For a real one, write
`model="gpt-5.4-mini"` with a key in the environment, or `Model("my-model", base_url="http://...")`.
"""

from mainspring import Agent, tool
from mainspring.testing import ScriptedModel, call, calls, say


@tool(effect="read")
def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: Name of the city.
    """
    return f"12 degrees and rain in {city}"


def main() -> None:
    script = [calls(call("weather", city="Oslo")), say("Take an umbrella: rain in Oslo.")]
    with ScriptedModel(script) as model:
        agent = Agent("guide", instructions="Be brief.", model=model.model(), tools=[weather])
        print(agent.run_sync("Do I need an umbrella in Oslo?"))


if __name__ == "__main__":
    main()
