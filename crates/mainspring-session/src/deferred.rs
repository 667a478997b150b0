//! Deferred tools: a model is not shown them, it finds them with `tool_search` and calls them with
//! `tool_call`.
//!
//! Invariant: what is found changes no tool that a model is shown, only the conversation's end, so
//! that a provider's prompt cache, which begins with the tools, stays good. The transcript keeps the
//! call as the model made it; what runs is the call that it stands for.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::message::{Answer, ToolCall};
use crate::spec::{AgentSpec, Approve, Effect, ToolSpec};

/// The tool that finds deferred tools.
pub const TOOL_SEARCH: &str = "tool_search";
/// The tool that calls them.
pub const TOOL_CALL: &str = "tool_call";

const SEARCH_TIMEOUT_MS: u64 = 10_000;

#[derive(Deserialize)]
struct Wrapped<'a> {
    name: String,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

/// The call that a call of `tool_call` stands for; none if it is none, or names no tool.
#[must_use]
pub fn meant(call: &ToolCall) -> Option<ToolCall> {
    if call.name != TOOL_CALL {
        return None;
    }
    let wrapped: Wrapped<'_> = serde_json::from_str(&call.arguments).ok()?;
    let raw = wrapped.arguments.map_or("{}", RawValue::get);
    // Models that are used to arguments as text write them as text here too.
    let arguments = match serde_json::from_str::<String>(raw) {
        Ok(text) => text,
        Err(_) if raw == "null" => "{}".to_owned(),
        Err(_) => raw.to_owned(),
    };
    Some(ToolCall { id: call.id.clone(), name: wrapped.name, arguments })
}

/// Whether calls of `tool_call` in an answer stand for other tools.
pub(crate) fn is_deferring(spec: &AgentSpec, answer: &Answer) -> bool {
    spec.deferred > 0 && answer.tool_calls.iter().any(|call| call.name == TOOL_CALL)
}

/// The two tools that stand for the deferred ones. What they say names and counts none of those, so
/// that it is the same whatever is deferred.
#[must_use]
pub fn stand_ins() -> [ToolSpec; 2] {
    let search = "Finds tools that are not listed here, by what they do. Returns the best ones with \
                  their parameters; call one of them with tool_call.";
    let call = "Calls a tool that tool_search found. `arguments` must fit the parameters that \
                tool_search showed for it.";
    [
        tool(
            TOOL_SEARCH,
            search,
            r#"{"type":"object","properties":{"query":{"type":"string","description":"what the tool should do, in a few words"},"limit":{"type":"integer","minimum":1,"maximum":20,"description":"how many tools to return, 5 if not given"}},"required":["query"]}"#,
        ),
        tool(
            TOOL_CALL,
            call,
            r#"{"type":"object","properties":{"name":{"type":"string","description":"the tool's name"},"arguments":{"type":"object","description":"its arguments"}},"required":["name","arguments"]}"#,
        ),
    ]
}

fn tool(name: &str, description: &str, parameters: &str) -> ToolSpec {
    ToolSpec {
        name: name.to_owned(),
        description: description.to_owned(),
        parameters: RawValue::from_string(parameters.to_owned()).expect("the text is JSON"),
        effect: Effect::Read,
        timeout_ms: SEARCH_TIMEOUT_MS,
        attempts_max: 1,
        approve: Approve::Never,
        reconcile: false,
    }
}
