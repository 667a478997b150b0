//! Messages to the JSON of a Chat Completions request, appended to a byte buffer.
//!
//! Encoding only ever depends on the message and the [`Form`], never on the model, so an encoded
//! history can be kept and sent to every model that takes the same form.

use mainspring_session::{Message, Part, ToolCall};
use serde_json::value::RawValue;

/// How messages are spelled for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As the provider's own messages.
    Native,
    /// As text that has the form of the constrained answers.
    Envelope {
        /// Whether answers are values of an output schema instead of strings.
        typed: bool,
    },
}

/// The end of a user message that holds tool results. Other messages name their role first, and a
/// quotation mark inside a text is escaped, so nothing else ends like this: it marks the message
/// that the next tool result joins.
const RESULTS_END: &[u8] = b"\",\"role\":\"user\"}";

/// Appends `text` as a JSON string.
pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string always encodes into memory");
}

/// Appends `,` and the message.
pub(crate) fn message(form: Form, message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::User { content } => user(content, out),
        Message::Assistant { text, tool_calls } => match form {
            Form::Native => assistant(text, tool_calls, out),
            Form::Envelope { typed } => {
                out.extend_from_slice(b",{\"role\":\"assistant\",\"content\":");
                string(out, &envelope_text(text, tool_calls, typed));
                out.push(b'}');
            }
        },
        Message::Tool { call_id, name, text, is_error } => {
            let mark = if *is_error { "Error: " } else { "" };
            match form {
                Form::Native => {
                    out.extend_from_slice(b",{\"role\":\"tool\",\"tool_call_id\":");
                    string(out, call_id);
                    out.extend_from_slice(b",\"content\":");
                    match is_error {
                        true => string(out, &format!("{mark}{text}")),
                        false => string(out, text),
                    }
                    out.push(b'}');
                }
                Form::Envelope { .. } => result(&format!("Result of {name}: {mark}{text}"), out),
            }
        }
    }
}

fn user(content: &[Part], out: &mut Vec<u8>) {
    out.extend_from_slice(b",{\"role\":\"user\",\"content\":");
    match content {
        [] => string(out, ""),
        [Part::Text { text }] => string(out, text),
        parts => {
            for (idx, part) in parts.iter().enumerate() {
                out.push(if idx == 0 { b'[' } else { b',' });
                match part {
                    Part::Text { text } => {
                        out.extend_from_slice(b"{\"type\":\"text\",\"text\":");
                        string(out, text);
                        out.push(b'}');
                    }
                    Part::Image { url } => {
                        out.extend_from_slice(b"{\"type\":\"image_url\",\"image_url\":{\"url\":");
                        string(out, url);
                        out.extend_from_slice(b"}}");
                    }
                }
            }
            out.push(b']');
        }
    }
    out.push(b'}');
}

fn assistant(text: &str, tool_calls: &[ToolCall], out: &mut Vec<u8>) {
    out.extend_from_slice(b",{\"role\":\"assistant\",\"content\":");
    match text.is_empty() && !tool_calls.is_empty() {
        true => out.extend_from_slice(b"null"),
        false => string(out, text),
    }
    for (idx, call) in tool_calls.iter().enumerate() {
        out.extend_from_slice(if idx == 0 { b",\"tool_calls\":[" } else { b"," });
        out.extend_from_slice(b"{\"id\":");
        string(out, &call.id);
        out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
        string(out, &call.name);
        out.extend_from_slice(b",\"arguments\":");
        match valid_arguments(&call.arguments) {
            Some(arguments) => string(out, arguments),
            None => string(out, &wrapped_arguments(&call.arguments)),
        }
        out.extend_from_slice(b"}}");
    }
    if !tool_calls.is_empty() {
        out.push(b']');
    }
    out.push(b'}');
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
fn envelope_text(text: &str, tool_calls: &[ToolCall], typed: bool) -> String {
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
            match valid_arguments(&call.arguments) {
                Some(arguments) => json.extend_from_slice(arguments.as_bytes()),
                None => json.extend_from_slice(wrapped_arguments(&call.arguments).as_bytes()),
            }
            json.push(b'}');
        }
        json.extend_from_slice(b"]}");
    }
    String::from_utf8(json).expect("texts and serde_json's output are UTF-8")
}

/// One user message for a run of tool results: many chat templates refuse two user messages in a
/// row. A result that follows another joins its message; all bytes before its end stay the same.
fn result(text: &str, out: &mut Vec<u8>) {
    if out.ends_with(RESULTS_END) {
        out.truncate(out.len() - RESULTS_END.len());
        let mut escaped = Vec::with_capacity(text.len() + 16);
        string(&mut escaped, text);
        out.extend_from_slice(b"\\n");
        out.extend_from_slice(&escaped[1..escaped.len() - 1]);
    } else {
        out.extend_from_slice(b",{\"content\":");
        string(out, text);
        out.truncate(out.len() - 1);
    }
    out.extend_from_slice(RESULTS_END);
}
