//! Requests of Messages: what stands around the messages, and the messages.

use mainspring_session::{
    AgentSpec, Failure, Message, ModelSpec, OutputMode, Part, Reasoning, ReasoningKind, ToolCall,
    ToolChoice,
};
use serde_json::value::RawValue;

use crate::codec::{Request, Shared};
use crate::parts;
use crate::schema;
use crate::spell::{self, Fields, field, string};

/// Fields of a request body that are the codec's own.
const OWN_FIELDS: [&str; 5] = ["messages", "model", "system", "tools", "stream"];
/// Tokens that an answer may have where neither the user nor the model table says how many.
const MAX_TOKENS: u64 = 8_192;
/// Marks the end of what a prompt cache should keep.
const CACHE: &[u8] = b"{\"type\":\"ephemeral\"}";
/// The end of a user message that holds tool results. Other messages name their role first, and a
/// quotation mark inside a text is escaped, so nothing else ends like this: it marks the message
/// that the next tool result joins.
const RESULTS_END: &[u8] = b"],\"role\":\"user\"}";

/// What stands around the messages.
pub(crate) fn request(
    agent: &AgentSpec,
    model: &ModelSpec,
    stream: bool,
) -> Result<Request, Failure> {
    let format = match (&agent.output_schema, model.output_mode) {
        (Some(raw), OutputMode::Native) => {
            schema::for_messages(&parts::parse_schema(raw, "output")?)
        }
        _ => None,
    };
    let system = parts::system(agent, format.is_none());
    let mut prefix = b"{\"model\":".to_vec();
    string(&mut prefix, &model.name);
    if !system.is_empty() {
        field(&mut prefix, b",\"system\":[{\"type\":\"text\",\"text\":", &system);
        prefix.extend_from_slice(b",\"cache_control\":");
        prefix.extend_from_slice(CACHE);
        prefix.extend_from_slice(b"}]");
    }
    prefix.extend_from_slice(b",\"messages\":[");
    let format = format.map(|schema| schema.to_json());
    let suffix = |choice: &ToolChoice| suffix(agent, model, stream, choice, format.as_deref());
    let forced = Some(&agent.tool_choice).filter(|choice| choice.is_forced());
    Ok(Request {
        prefix,
        suffix: suffix(&parts::settled(&agent.tool_choice))?,
        opening: forced.map(suffix).transpose()?,
        continues: false,
    })
}

/// Everything behind the messages.
fn suffix(
    agent: &AgentSpec,
    model: &ModelSpec,
    stream: bool,
    choice: &ToolChoice,
    format: Option<&str>,
) -> Result<Vec<u8>, Failure> {
    let mut params = parts::params(model, &OWN_FIELDS)?;
    let mut fields = Fields(b"]".to_vec());
    tools(agent, choice, &mut fields);
    output(model, params.remove("output_config"), format, &mut fields)?;
    // A server that knows no prompt cache is helped by a parameter of null.
    match params.remove("cache_control").map(RawValue::get) {
        None => fields.put("cache_control", CACHE),
        Some("null") => {}
        Some(own) => fields.put("cache_control", own.as_bytes()),
    }
    if !params.contains_key("max_tokens") {
        let max_tokens = model.output_tokens_max.unwrap_or(MAX_TOKENS);
        fields.put("max_tokens", max_tokens.to_string().as_bytes());
    }
    if stream {
        fields.put("stream", b"true");
    }
    for (name, value) in params.into_iter().filter(|(name, _)| !parts::says(agent, name)) {
        fields.put(name, value.get().as_bytes());
    }
    fields.0.push(b'}');
    Ok(fields.0)
}

fn tools(agent: &AgentSpec, choice: &ToolChoice, fields: &mut Fields) {
    let Some(last) = agent.tools.len().checked_sub(1) else { return };
    let out = &mut fields.0;
    for (idx, tool) in agent.tools.iter().enumerate() {
        out.extend_from_slice(if idx == 0 { b",\"tools\":[" } else { b"," });
        field(out, b"{\"name\":", &tool.name);
        if !tool.description.is_empty() {
            field(out, b",\"description\":", &tool.description);
        }
        out.extend_from_slice(b",\"input_schema\":");
        out.extend_from_slice(tool.parameters.get().as_bytes());
        if idx == last {
            out.extend_from_slice(b",\"cache_control\":");
            out.extend_from_slice(CACHE);
        }
        out.push(b'}');
    }
    out.push(b']');
    let single = agent.parallel_tool_calls == Some(false);
    let mut chosen = match choice {
        ToolChoice::Auto if !single => return,
        ToolChoice::Auto => b"{\"type\":\"auto\"".to_vec(),
        ToolChoice::None => b"{\"type\":\"none\"".to_vec(),
        ToolChoice::Required => b"{\"type\":\"any\"".to_vec(),
        ToolChoice::Tool(name) => {
            let mut chosen = b"{\"type\":\"tool\",\"name\":".to_vec();
            string(&mut chosen, name);
            chosen
        }
    };
    if single && *choice != ToolChoice::None {
        chosen.extend_from_slice(b",\"disable_parallel_tool_use\":true");
    }
    chosen.push(b'}');
    fields.put("tool_choice", &chosen);
}

/// `output_config`: the answer's schema, beside what the user says of the output.
fn output(
    model: &ModelSpec,
    own: Option<&RawValue>,
    format: Option<&str>,
    fields: &mut Fields,
) -> Result<(), Failure> {
    let Some(schema) = format else {
        if let Some(own) = own {
            fields.put("output_config", own.get().as_bytes());
        }
        return Ok(());
    };
    let own = parts::object(model, "output_config", own)?;
    if own.contains_key("format") {
        return Err(parts::refuse_format(model, "output_config.format"));
    }
    let format = format!("{{\"format\":{{\"type\":\"json_schema\",\"schema\":{schema}}}");
    let mut config = Fields(format.into_bytes());
    for (name, value) in own {
        config.put(name, value.get().as_bytes());
    }
    config.0.push(b'}');
    fields.put("output_config", &config.0);
    Ok(())
}

/// Appends `,` and the message.
pub(crate) fn message(shared: &Shared, message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::User { content } => user(content, out),
        Message::Assistant { text, tool_calls, reasoning } => {
            assistant(shared, text, tool_calls, reasoning, out);
        }
        Message::Tool { call_id, text, is_error, .. } => result(call_id, text, *is_error, out),
    }
}

/// What stands for a text without a visible character, which the API refuses.
fn visible<'a>(text: &'a str, instead: &'a str) -> &'a str {
    if text.trim().is_empty() { instead } else { text }
}

fn user(content: &[Part], out: &mut Vec<u8>) {
    out.extend_from_slice(b",{\"role\":\"user\",\"content\":");
    match content {
        [] => string(out, "(empty)"),
        [Part::Text { text }] => string(out, visible(text, "(empty)")),
        parts => {
            for (idx, part) in parts.iter().enumerate() {
                out.push(if idx == 0 { b'[' } else { b',' });
                match part {
                    Part::Text { text } => {
                        field(out, b"{\"type\":\"text\",\"text\":", visible(text, "(empty)"));
                        out.push(b'}');
                    }
                    Part::Image { url } => image(url, out),
                }
            }
            out.push(b']');
        }
    }
    out.push(b'}');
}

fn image(url: &str, out: &mut Vec<u8>) {
    let inline = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    match inline {
        Some((media_type, data)) => {
            let start = b"{\"type\":\"image\",\"source\":{\"type\":\"base64\",\"media_type\":";
            field(out, start, media_type);
            field(out, b",\"data\":", data);
        }
        None => field(out, b"{\"type\":\"image\",\"source\":{\"type\":\"url\",\"url\":", url),
    }
    out.extend_from_slice(b"}}");
}

/// Thinking, text and calls, each a block, in the order in which they came.
fn assistant(
    shared: &Shared,
    text: &str,
    tool_calls: &[ToolCall],
    reasoning: &[Reasoning],
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b",{\"role\":\"assistant\",\"content\":[");
    let begun = out.len();
    let own = reasoning.iter().filter(|piece| piece.origin == shared.origin);
    let mut own = own.peekable();
    let mut part = 0;
    let mut thoughts = |part: u32, out: &mut Vec<u8>| {
        while let Some(piece) = own.next_if(|piece| piece.after <= part) {
            thought(piece, out);
        }
    };
    thoughts(part, out);
    // Text stands alone where there is nothing else, since a message without content is refused.
    if !text.trim().is_empty() || tool_calls.is_empty() {
        field(out, b"{\"type\":\"text\",\"text\":", visible(text, "(no answer)"));
        out.extend_from_slice(b"},");
    }
    part += u32::from(!text.is_empty());
    for call in tool_calls {
        thoughts(part, out);
        field(out, b"{\"type\":\"tool_use\",\"id\":", &call.id);
        field(out, b",\"name\":", &call.name);
        out.extend_from_slice(b",\"input\":");
        spell::arguments(out, &call.arguments);
        out.extend_from_slice(b"},");
        part += 1;
    }
    // Each block brings the comma behind it; the last of the array has none.
    if out.len() > begun {
        out.pop();
    }
    out.extend_from_slice(b"]}");
}

fn thought(piece: &Reasoning, out: &mut Vec<u8>) {
    match piece.kind {
        ReasoningKind::Thinking => {
            field(out, b"{\"type\":\"thinking\",\"thinking\":", &piece.text);
            field(out, b",\"signature\":", &piece.signature);
        }
        ReasoningKind::Redacted => {
            field(out, b"{\"type\":\"redacted_thinking\",\"data\":", &piece.data);
        }
        _ => return,
    }
    out.extend_from_slice(b"},");
}

/// One user message for all results of an answer's calls, as the API wants it. A result that
/// follows another joins its message; all bytes before its end stay the same.
fn result(call_id: &str, text: &str, is_error: bool, out: &mut Vec<u8>) {
    if out.ends_with(RESULTS_END) {
        out.truncate(out.len() - RESULTS_END.len());
        out.push(b',');
    } else {
        out.extend_from_slice(b",{\"content\":[");
    }
    field(out, b"{\"type\":\"tool_result\",\"tool_use_id\":", call_id);
    if !text.is_empty() {
        field(out, b",\"content\":", text);
    }
    if is_error {
        out.extend_from_slice(b",\"is_error\":true");
    }
    out.push(b'}');
    out.extend_from_slice(RESULTS_END);
}
