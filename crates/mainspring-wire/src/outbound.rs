//! Answers as a Chat Completions server gives them: whole, as chunks of a stream, and errors.
//!
//! Everything is appended to a byte buffer, so a stream of many small chunks costs no allocation
//! for each of them.
//!
//! # Source
//! OpenAI API reference, "The chat completion object", "The chat completion chunk object" and
//! "Error codes" (2026-11).

use mainspring_session::{Answer, FinishReason, ToolCall, Usage};

use crate::spell::string;

/// What is the same in all parts of one answer.
#[derive(Debug, Clone)]
pub struct ChatHead {
    /// The answer's id, such as `chatcmpl-7`.
    pub id: String,
    /// When it was made, in seconds since the epoch.
    pub created_s: u64,
    /// The model that made it.
    pub model: String,
}

impl ChatHead {
    fn write(&self, object: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        string(out, &self.id);
        out.extend_from_slice(b",\"object\":\"");
        out.extend_from_slice(object.as_bytes());
        out.extend_from_slice(b"\",\"created\":");
        out.extend_from_slice(self.created_s.to_string().as_bytes());
        out.extend_from_slice(b",\"model\":");
        string(out, &self.model);
    }

    /// Appends a whole answer, as JSON.
    pub fn completion(
        &self,
        answer: &Answer,
        finish_reason: FinishReason,
        usage: Usage,
        out: &mut Vec<u8>,
    ) {
        self.write("chat.completion", out);
        out.extend_from_slice(b",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\"");
        let is_refusal = finish_reason == FinishReason::ContentFilter && !answer.text.is_empty();
        let content = (!answer.text.is_empty() && !is_refusal).then_some(answer.text.as_str());
        let is_empty = answer.tool_calls.is_empty() && !is_refusal;
        text_field(out, "content", content.or(is_empty.then_some("")));
        text_field(out, "refusal", is_refusal.then_some(answer.text.as_str()));
        if !answer.tool_calls.is_empty() {
            out.extend_from_slice(b",\"tool_calls\":[");
            for (idx, call) in answer.tool_calls.iter().enumerate() {
                if idx > 0 {
                    out.push(b',');
                }
                out.push(b'{');
                tool_call(call, out);
            }
            out.push(b']');
        }
        out.extend_from_slice(b"},\"logprobs\":null,\"finish_reason\":\"");
        out.extend_from_slice(finish_name(finish_reason).as_bytes());
        out.extend_from_slice(b"\"}],\"usage\":");
        usage_json(usage, out);
        out.push(b'}');
    }

    fn chunk(&self, choices: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        out.extend_from_slice(b"data: ");
        self.write("chat.completion.chunk", out);
        out.extend_from_slice(b",\"choices\":[");
        choices(out);
    }

    fn delta(&self, delta: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        let choices = |out: &mut Vec<u8>| {
            out.extend_from_slice(b"{\"index\":0,\"delta\":{");
            delta(out);
            out.extend_from_slice(b"},\"logprobs\":null,\"finish_reason\":null}]");
        };
        self.chunk(choices, out);
        out.extend_from_slice(b"}\n\n");
    }

    /// Appends the first event of a stream.
    pub fn first_chunk(&self, out: &mut Vec<u8>) {
        self.delta(|out| out.extend_from_slice(b"\"role\":\"assistant\",\"content\":\"\""), out);
    }

    /// Appends an event with a piece of text.
    pub fn text_chunk(&self, text: &str, out: &mut Vec<u8>) {
        let delta = |out: &mut Vec<u8>| {
            out.extend_from_slice(b"\"content\":");
            string(out, text);
        };
        self.delta(delta, out);
    }

    /// Appends an event with whole tool calls.
    pub fn tools_chunk(&self, calls: &[ToolCall], out: &mut Vec<u8>) {
        let delta = |out: &mut Vec<u8>| {
            out.extend_from_slice(b"\"tool_calls\":[");
            for (idx, call) in calls.iter().enumerate() {
                if idx > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(b"{\"index\":");
                out.extend_from_slice(idx.to_string().as_bytes());
                out.push(b',');
                tool_call(call, out);
            }
            out.push(b']');
        };
        self.delta(delta, out);
    }

    /// Appends the event that says why the answer ends.
    pub fn finish_chunk(&self, finish_reason: FinishReason, out: &mut Vec<u8>) {
        let choices = |out: &mut Vec<u8>| {
            out.extend_from_slice(
                b"{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"",
            );
            out.extend_from_slice(finish_name(finish_reason).as_bytes());
            out.extend_from_slice(b"\"}]");
        };
        self.chunk(choices, out);
        out.extend_from_slice(b"}\n\n");
    }

    /// Appends the event with the usage, which has no choices. `extra` is a further field, as
    /// `"name":value`, or empty.
    pub fn usage_chunk(&self, usage: Usage, extra: &str, out: &mut Vec<u8>) {
        self.chunk(|out| out.push(b']'), out);
        out.extend_from_slice(b",\"usage\":");
        usage_json(usage, out);
        if !extra.is_empty() {
            out.push(b',');
            out.extend_from_slice(extra.as_bytes());
        }
        out.extend_from_slice(b"}\n\n");
    }
}

/// The event after the last.
pub const DONE_CHUNK: &[u8] = b"data: [DONE]\n\n";

/// Appends an error, as a body's JSON. `kind` is what the API calls its type.
pub fn error_body(kind: &str, code: &str, message: &str, param: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"error\":{\"message\":");
    string(out, message);
    out.extend_from_slice(b",\"type\":");
    string(out, kind);
    text_field(out, "param", param);
    text_field(out, "code", Some(code));
    out.extend_from_slice(b"}}");
}

fn tool_call(call: &ToolCall, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\"id\":");
    string(out, &call.id);
    out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
    string(out, &call.name);
    out.extend_from_slice(b",\"arguments\":");
    string(out, &call.arguments);
    out.extend_from_slice(b"}}");
}

fn text_field(out: &mut Vec<u8>, name: &str, text: Option<&str>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    match text {
        Some(text) => string(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

fn usage_json(usage: Usage, out: &mut Vec<u8>) {
    let mut field = |name: &str, count: u64| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(count.to_string().as_bytes());
    };
    field("{\"prompt_tokens\":", usage.input_tokens);
    field(",\"completion_tokens\":", usage.output_tokens);
    field(",\"total_tokens\":", usage.total());
    field(",\"prompt_tokens_details\":{\"cached_tokens\":", usage.cached_tokens);
    field("},\"completion_tokens_details\":{\"reasoning_tokens\":", usage.reasoning_tokens);
    out.extend_from_slice(b"}}");
}

fn finish_name(finish_reason: FinishReason) -> &'static str {
    match finish_reason {
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
        _ => "stop",
    }
}
