//! Requests of Chat Completions: what stands around the messages, and the messages.
//!
//! Reasoning goes back with the tool calls that followed it: providers want it there, and ignore it
//! elsewhere.

use mainspring_session::{
    AgentSpec, Failure, Message, ModelSpec, OutputMode, Part, Reasoning, ReasoningKind, ToolCall,
    ToolChoice,
};

use crate::codec::{Form, Request, Shared};
use crate::parts::{self, Envelope, Output};
use crate::spell::{self, Fields, envelope_text, field, string};

/// Fields of a request body that are the codec's own.
const OWN_FIELDS: [&str; 4] = ["messages", "model", "tools", "stream"];
/// The end of a user message that holds tool results. Other messages name their role first, and a
/// quotation mark inside a text is escaped, so nothing else ends like this: it marks the message
/// that the next tool result joins.
const RESULTS_END: &[u8] = b"\",\"role\":\"user\"}";

/// What stands around the messages; `constrained`: answers are held to an envelope.
pub(crate) fn request(
    agent: &AgentSpec,
    model: &ModelSpec,
    constrained: bool,
    stream: bool,
) -> Result<Request, Failure> {
    let envelope = if constrained { Some(Envelope::new(agent)?) } else { None };
    let output = if constrained { None } else { parts::output(agent, model.output_mode)? };
    let system = match &envelope {
        Some(envelope) => envelope.system.clone(),
        None => parts::system(agent, model.output_mode == OutputMode::Prompt),
    };
    let mut prefix = b"{\"model\":".to_vec();
    string(&mut prefix, &model.name);
    prefix.extend_from_slice(b",\"messages\":[");
    if !system.is_empty() {
        field(&mut prefix, b"{\"role\":\"system\",\"content\":", &system);
        prefix.push(b'}');
    }
    let suffix = |choice: &ToolChoice| {
        let format = match (&envelope, &output) {
            (Some(envelope), _) => {
                let schema = envelope.schema(choice);
                response_format(&Output { schema, strict: true })
            }
            (None, Some(output)) => response_format(output),
            (None, None) => Vec::new(),
        };
        let tools = if constrained { Vec::new() } else { tools(agent, choice) };
        suffix(agent, model, stream, &tools, &format)
    };
    let forced = Some(&agent.tool_choice).filter(|choice| choice.is_forced());
    Ok(Request {
        continues: !system.is_empty(),
        suffix: suffix(&parts::settled(&agent.tool_choice))?,
        opening: forced.map(suffix).transpose()?,
        prefix,
    })
}

/// `,"tools":[...]` and what is said about calling them; empty without tools.
fn tools(agent: &AgentSpec, choice: &ToolChoice) -> Vec<u8> {
    if agent.tools.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for (idx, tool) in agent.tools.iter().enumerate() {
        out.extend_from_slice(if idx == 0 { b",\"tools\":[" } else { b"," });
        field(&mut out, b"{\"type\":\"function\",\"function\":{\"name\":", &tool.name);
        if !tool.description.is_empty() {
            field(&mut out, b",\"description\":", &tool.description);
        }
        out.extend_from_slice(b",\"parameters\":");
        out.extend_from_slice(tool.parameters.get().as_bytes());
        out.extend_from_slice(b"}}");
    }
    out.push(b']');
    match choice {
        ToolChoice::Auto => {}
        ToolChoice::None => out.extend_from_slice(b",\"tool_choice\":\"none\""),
        ToolChoice::Required => out.extend_from_slice(b",\"tool_choice\":\"required\""),
        ToolChoice::Tool(name) => {
            let start = b",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":";
            field(&mut out, start, name);
            out.extend_from_slice(b"}}");
        }
    }
    if let Some(parallel) = agent.parallel_tool_calls {
        out.extend_from_slice(format!(",\"parallel_tool_calls\":{parallel}").as_bytes());
    }
    out
}

fn response_format(output: &Output) -> Vec<u8> {
    let Output { schema, strict } = output;
    format!(
        "{{\"type\":\"json_schema\",\"json_schema\":{{\"name\":\"answer\",\"schema\":{schema},\
         \"strict\":{strict}}}}}"
    )
    .into_bytes()
}

/// Everything behind the messages.
fn suffix(
    agent: &AgentSpec,
    model: &ModelSpec,
    stream: bool,
    tools: &[u8],
    format: &[u8],
) -> Result<Vec<u8>, Failure> {
    let mut params = parts::params(model, &OWN_FIELDS)?;
    if !format.is_empty() && params.contains_key("response_format") {
        return Err(parts::refuse_format(model, "response_format"));
    }
    let mut fields = Fields(b"]".to_vec());
    fields.0.extend_from_slice(tools);
    if !format.is_empty() {
        fields.put("response_format", format);
    }
    if model.logprobs && !params.contains_key("logprobs") {
        fields.put("logprobs", b"true");
    }
    if stream {
        fields.put("stream", b"true");
        // A server that refuses the option is helped by a parameter of null, which removes it.
        match params.remove("stream_options").map(serde_json::value::RawValue::get) {
            None => fields.put("stream_options", b"{\"include_usage\":true}"),
            Some("null") => {}
            Some(options) => fields.put("stream_options", options.as_bytes()),
        }
    }
    for (name, value) in params.into_iter().filter(|(name, _)| !parts::says(agent, name)) {
        fields.put(name, value.get().as_bytes());
    }
    fields.0.push(b'}');
    Ok(fields.0)
}

/// Appends `,` and the message.
pub(crate) fn message(shared: &Shared, message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::User { content } => user(content, out),
        Message::Assistant { text, tool_calls, reasoning } => match shared.form {
            Form::Native => assistant(shared, text, tool_calls, reasoning, out),
            Form::Envelope { typed } => {
                let text = envelope_text(text, tool_calls, typed);
                field(out, b",{\"role\":\"assistant\",\"content\":", &text);
                out.push(b'}');
            }
        },
        Message::Tool { call_id, name, text, is_error } => {
            let mark = if *is_error { "Error: " } else { "" };
            match shared.form {
                Form::Native => {
                    field(out, b",{\"role\":\"tool\",\"tool_call_id\":", call_id);
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
                        field(out, b"{\"type\":\"text\",\"text\":", text);
                        out.push(b'}');
                    }
                    Part::Image { url } => {
                        field(out, b"{\"type\":\"image_url\",\"image_url\":{\"url\":", url);
                        out.extend_from_slice(b"}}");
                    }
                }
            }
            out.push(b']');
        }
    }
    out.push(b'}');
}

fn assistant(
    shared: &Shared,
    text: &str,
    tool_calls: &[ToolCall],
    reasoning: &[Reasoning],
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b",{\"role\":\"assistant\",\"content\":");
    match text.is_empty() && !tool_calls.is_empty() {
        true => out.extend_from_slice(b"null"),
        false => string(out, text),
    }
    if !tool_calls.is_empty() {
        thoughts(shared, reasoning, out);
    }
    for (idx, call) in tool_calls.iter().enumerate() {
        out.extend_from_slice(if idx == 0 { b",\"tool_calls\":[" } else { b"," });
        field(out, b"{\"id\":", &call.id);
        field(out, b",\"type\":\"function\",\"function\":{\"name\":", &call.name);
        out.extend_from_slice(b",\"arguments\":");
        spell::arguments_text(out, &call.arguments);
        out.extend_from_slice(b"}}");
    }
    if !tool_calls.is_empty() {
        out.push(b']');
    }
    out.push(b'}');
}

/// The reasoning that came from this model, in the field in which it came.
fn thoughts(shared: &Shared, reasoning: &[Reasoning], out: &mut Vec<u8>) {
    let mut details = 0;
    for piece in reasoning.iter().filter(|piece| piece.origin == shared.origin) {
        match piece.kind {
            ReasoningKind::Content => field(out, b",\"reasoning_content\":", &piece.text),
            ReasoningKind::Plain => field(out, b",\"reasoning\":", &piece.text),
            ReasoningKind::Detail => {
                out.extend_from_slice(match details {
                    0 => b",\"reasoning_details\":[",
                    _ => b",",
                });
                out.extend_from_slice(piece.data.as_bytes());
                details += 1;
            }
            _ => {}
        }
    }
    if details > 0 {
        out.push(b']');
    }
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
        field(out, b",{\"content\":", text);
        out.truncate(out.len() - 1);
    }
    out.extend_from_slice(RESULTS_END);
}
