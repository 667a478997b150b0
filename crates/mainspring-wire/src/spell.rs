//! Pieces of JSON that requests of every API are made of.

use mainspring_session::ToolCall;
use serde_json::value::RawValue;

/// Appends `text` as a JSON string.
pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string always encodes into memory");
}

/// Appends `start`, which ends where a value begins, and `text` as a JSON string.
pub(crate) fn field(out: &mut Vec<u8>, start: &[u8], text: &str) {
    out.extend_from_slice(start);
    string(out, text);
}

/// Appends the arguments of a call as a JSON object.
pub(crate) fn arguments(out: &mut Vec<u8>, arguments: &str) {
    match valid_arguments(arguments) {
        Some(arguments) => out.extend_from_slice(arguments.as_bytes()),
        None => out.extend_from_slice(wrapped_arguments(arguments).as_bytes()),
    }
}

/// Appends the arguments of a call as a JSON string that holds a JSON object.
pub(crate) fn arguments_text(out: &mut Vec<u8>, arguments: &str) {
    match valid_arguments(arguments) {
        Some(arguments) => string(out, arguments),
        None => string(out, &wrapped_arguments(arguments)),
    }
}

/// The arguments, if they are a JSON object.
fn valid_arguments(arguments: &str) -> Option<&str> {
    let raw: &RawValue = serde_json::from_str(arguments).ok()?;
    raw.get().starts_with('{').then_some(raw.get())
}

/// Arguments that are no JSON object, inside one: servers parse the arguments of the history and
/// refuse the whole request over one that a model got wrong, and the model must see what it wrote.
fn wrapped_arguments(arguments: &str) -> String {
    let mut wrapped = b"{\"malformed\":".to_vec();
    string(&mut wrapped, arguments);
    wrapped.push(b'}');
    String::from_utf8(wrapped).expect("serde_json writes UTF-8")
}

/// An assistant's turn as it would have written it under the constraint, so that the examples in
/// its history agree with the form that it is held to.
pub(crate) fn envelope_text(text: &str, tool_calls: &[ToolCall], typed: bool) -> String {
    let mut json = Vec::with_capacity(text.len() + 64);
    if tool_calls.is_empty() {
        let is_envelope = ["{\"answer\"", "{\"tool_calls\""].iter().any(|s| text.starts_with(s));
        if is_envelope {
            return text.to_owned();
        }
        json.extend_from_slice(b"{\"answer\":");
        match serde_json::from_str::<&RawValue>(text) {
            Ok(value) if typed => json.extend_from_slice(value.get().as_bytes()),
            _ => string(&mut json, text),
        }
        json.push(b'}');
    } else {
        if !text.is_empty() {
            json.extend_from_slice(text.as_bytes());
            json.push(b'\n');
        }
        for (idx, call) in tool_calls.iter().enumerate() {
            json.extend_from_slice(if idx == 0 { b"{\"tool_calls\":[" } else { b"," });
            json.extend_from_slice(b"{\"name\":");
            string(&mut json, &call.name);
            json.extend_from_slice(b",\"arguments\":");
            arguments(&mut json, &call.arguments);
            json.push(b'}');
        }
        json.extend_from_slice(b"]}");
    }
    String::from_utf8(json).expect("texts and serde_json's output are UTF-8")
}

/// The fields of a JSON object, one after the other.
#[derive(Debug)]
pub(crate) struct Fields(pub(crate) Vec<u8>);

impl Fields {
    /// Adds a field behind others.
    pub(crate) fn put(&mut self, name: &str, json: &[u8]) {
        self.0.push(b',');
        string(&mut self.0, name);
        self.0.push(b':');
        self.0.extend_from_slice(json);
    }
}
