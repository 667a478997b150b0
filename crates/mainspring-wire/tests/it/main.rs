//! What the codec sends, accepts and refuses.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod apis;
mod choices;
mod corpus;
mod decode;
mod errors;
mod fuzz;
mod inbound;
mod laws;
mod mutate;
mod outbound;
mod prefix;
mod request;
mod sse;
mod stream;

use mainspring_session::{AgentSpec, CallIndex, Message, ToolCall};
use mainspring_wire::{CallIds, Codec};
use serde_json::{Value, json};

/// Names calls without an id from `c7` on.
const IDS: CallIds = CallIds { first: CallIndex(7) };

/// An agent of one model; `model` and `agent` replace single fields.
fn agent(model: Value, agent: Value) -> AgentSpec {
    let mut model_spec = json!({
        "name": "m", "base_url": "http://127.0.0.1/v1",
        "tool_mode": "native", "output_mode": "native",
    });
    merge(&mut model_spec, model);
    let mut spec = json!({"name": "a", "instructions": "Be brief.", "models": [model_spec]});
    merge(&mut spec, agent);
    serde_json::from_value(spec).unwrap()
}

fn merge(target: &mut Value, source: Value) {
    for (key, value) in source.as_object().unwrap() {
        target[key] = value.clone();
    }
}

fn tool(name: &str, description: &str, parameters: Value) -> Value {
    json!({"name": name, "description": description, "parameters": parameters,
           "effect": "read", "timeout_ms": 1000, "attempts_max": 1})
}

fn codec(spec: &AgentSpec, stream: bool) -> Codec {
    Codec::new(spec, &spec.models[0], stream).unwrap()
}

fn native() -> Codec {
    codec(&agent(json!({}), json!({})), true)
}

/// A codec in `json_schema` tool mode with one tool, `add`.
fn constrained() -> Codec {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let tools = json!({"tools": [tool("add", "", parameters)]});
    codec(&agent(json!({"tool_mode": "json_schema"}), tools), false)
}

fn history(codec: &Codec, messages: &[Message]) -> Vec<u8> {
    let mut history = Vec::new();
    for message in messages {
        codec.encode_message(message, &mut history);
    }
    history
}

/// The body that the codec makes for the messages, as JSON.
fn body(codec: &Codec, messages: &[Message]) -> Value {
    serde_json::from_slice(&codec.body(&history(codec, messages))).unwrap()
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.into(), name: name.into(), arguments: arguments.into() }
}

fn assistant(text: &str, tool_calls: Vec<ToolCall>) -> Message {
    Message::Assistant { text: text.into(), tool_calls, reasoning: vec![] }
}

fn result(call_id: &str, name: &str, text: &str, is_error: bool) -> Message {
    Message::Tool { call_id: call_id.into(), name: name.into(), text: text.into(), is_error }
}
