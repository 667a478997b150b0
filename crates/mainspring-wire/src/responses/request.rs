//! Requests of Responses: what stands around the input items, and the items.

use mainspring_session::{
    Ability, AgentSpec, Failure, Message, ModelSpec, OutputMode, Part, Reasoning, ReasoningKind,
    ToolCall, ToolChoice,
};
use serde_json::value::RawValue;

use crate::codec::{Request, Shared};
use crate::parts;
use crate::spell::{self, Fields, field, string};

/// Fields of a request body that are the codec's own.
const OWN_FIELDS: [&str; 5] = ["input", "instructions", "model", "tools", "stream"];

/// What stands around the input items.
pub(crate) fn request(
    agent: &AgentSpec,
    model: &ModelSpec,
    stream: bool,
) -> Result<Request, Failure> {
    let system = parts::system(agent, model.output_mode == OutputMode::Prompt);
    let mut prefix = b"{\"model\":".to_vec();
    string(&mut prefix, &model.name);
    if !system.is_empty() {
        field(&mut prefix, b",\"instructions\":", &system);
    }
    prefix.extend_from_slice(b",\"input\":[");
    let suffix = |choice: &ToolChoice| suffix(agent, model, stream, choice);
    let forced = Some(&agent.tool_choice).filter(|choice| choice.is_forced());
    Ok(Request {
        prefix,
        suffix: suffix(&parts::settled(&agent.tool_choice))?,
        opening: forced.map(suffix).transpose()?,
        continues: false,
    })
}

/// Everything behind the input items.
fn suffix(
    agent: &AgentSpec,
    model: &ModelSpec,
    stream: bool,
    choice: &ToolChoice,
) -> Result<Vec<u8>, Failure> {
    let mut params = parts::params(model, &OWN_FIELDS)?;
    let mut fields = Fields(b"]".to_vec());
    tools(agent, choice, &mut fields);
    text(agent, model, params.remove("text"), &mut fields)?;
    if !params.contains_key("store") {
        fields.put("store", b"false");
    }
    include(model, params.remove("include"), &mut fields);
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
    if agent.tools.is_empty() {
        return;
    }
    let out = &mut fields.0;
    for (idx, tool) in agent.tools.iter().enumerate() {
        out.extend_from_slice(if idx == 0 { b",\"tools\":[" } else { b"," });
        field(out, b"{\"type\":\"function\",\"name\":", &tool.name);
        if !tool.description.is_empty() {
            field(out, b",\"description\":", &tool.description);
        }
        out.extend_from_slice(b",\"parameters\":");
        out.extend_from_slice(tool.parameters.get().as_bytes());
        // Strict is the default of this API, and refuses schemas with fields that may be absent.
        out.extend_from_slice(b",\"strict\":false}");
    }
    out.push(b']');
    match choice {
        ToolChoice::Auto => {}
        ToolChoice::None => fields.put("tool_choice", b"\"none\""),
        ToolChoice::Required => fields.put("tool_choice", b"\"required\""),
        ToolChoice::Tool(name) => {
            let mut forced = b"{\"type\":\"function\",\"name\":".to_vec();
            string(&mut forced, name);
            forced.push(b'}');
            fields.put("tool_choice", &forced);
        }
    }
    if let Some(parallel) = agent.parallel_tool_calls {
        fields.put("parallel_tool_calls", parallel.to_string().as_bytes());
    }
}

/// `text`: the answer's schema, beside what the user says of the text.
fn text(
    agent: &AgentSpec,
    model: &ModelSpec,
    own: Option<&RawValue>,
    fields: &mut Fields,
) -> Result<(), Failure> {
    let Some(output) = parts::output(agent, model.output_mode)? else {
        if let Some(own) = own {
            fields.put("text", own.get().as_bytes());
        }
        return Ok(());
    };
    let own = parts::object(model, "text", own)?;
    if own.contains_key("format") {
        return Err(parts::refuse_format(model, "text.format"));
    }
    let (schema, strict) = (&output.schema, output.strict);
    let format = format!(
        "{{\"format\":{{\"type\":\"json_schema\",\"name\":\"answer\",\"schema\":{schema},\
         \"strict\":{strict}}}"
    );
    let mut text = Fields(format.into_bytes());
    for (name, value) in own {
        text.put(name, value.get().as_bytes());
    }
    text.0.push(b'}');
    fields.put("text", &text.0);
    Ok(())
}

/// `include`: what the answer is to hold beyond the usual, ours and the user's.
fn include(model: &ModelSpec, own: Option<&RawValue>, fields: &mut Fields) {
    let own: Vec<String> =
        own.and_then(|own| serde_json::from_str(own.get()).ok()).unwrap_or_default();
    let mut names = own;
    // Models that do not reason refuse to be asked for reasoning.
    let reasons = model.can(Ability::Reasoning) == Some(true);
    for (wanted, name) in
        [(reasons, "reasoning.encrypted_content"), (model.logprobs, "message.output_text.logprobs")]
    {
        if wanted && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    if !names.is_empty() {
        let names = serde_json::to_vec(&names).expect("strings always encode");
        fields.put("include", &names);
    }
}

/// Appends `,` and the items of the message.
pub(crate) fn message(shared: &Shared, message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::User { content } => user(content, out),
        Message::Assistant { text, tool_calls, reasoning } => {
            assistant(shared, text, tool_calls, reasoning, out);
        }
        Message::Tool { call_id, text, is_error, .. } => {
            field(out, b",{\"type\":\"function_call_output\",\"call_id\":", call_id);
            out.extend_from_slice(b",\"output\":");
            match is_error {
                true => string(out, &format!("Error: {text}")),
                false => string(out, text),
            }
            out.push(b'}');
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
                    Part::Text { text } => field(out, b"{\"type\":\"input_text\",\"text\":", text),
                    Part::Image { url } => {
                        let start = b"{\"type\":\"input_image\",\"detail\":\"auto\",\"image_url\":";
                        field(out, start, url);
                    }
                }
                out.push(b'}');
            }
            out.push(b']');
        }
    }
    out.push(b'}');
}

/// Reasoning, text and calls, each an item, in the order in which they came.
fn assistant(
    shared: &Shared,
    text: &str,
    tool_calls: &[ToolCall],
    reasoning: &[Reasoning],
    out: &mut Vec<u8>,
) {
    let own = reasoning.iter().filter(|piece| piece.origin == shared.origin);
    let mut own = own.filter(|piece| can_go_back(piece)).peekable();
    let mut part = 0;
    let mut thoughts = |part: u32, out: &mut Vec<u8>| {
        while let Some(piece) = own.next_if(|piece| piece.after <= part) {
            thought(piece, out);
        }
    };
    thoughts(part, out);
    if !text.is_empty() || (tool_calls.is_empty() && reasoning.is_empty()) {
        field(out, b",{\"role\":\"assistant\",\"content\":", text);
        out.push(b'}');
        part += u32::from(!text.is_empty());
    }
    for call in tool_calls {
        thoughts(part, out);
        field(out, b",{\"type\":\"function_call\",\"call_id\":", &call.id);
        field(out, b",\"name\":", &call.name);
        out.extend_from_slice(b",\"arguments\":");
        spell::arguments_text(out, &call.arguments);
        out.push(b'}');
        part += 1;
    }
}

/// An item whose content the server keeps to itself is of no use to it without the encrypted form.
fn can_go_back(piece: &Reasoning) -> bool {
    match piece.kind {
        ReasoningKind::Summary => !piece.data.is_empty(),
        ReasoningKind::Item => true,
        _ => false,
    }
}

fn thought(piece: &Reasoning, out: &mut Vec<u8>) {
    field(out, b",{\"type\":\"reasoning\",\"id\":", &piece.id);
    let texts = |kind: &[u8], out: &mut Vec<u8>| {
        if !piece.text.is_empty() {
            field(out, b"{\"type\":", std::str::from_utf8(kind).unwrap_or(""));
            field(out, b",\"text\":", &piece.text);
            out.push(b'}');
        }
    };
    out.extend_from_slice(b",\"summary\":[");
    if piece.kind == ReasoningKind::Summary {
        texts(b"summary_text", out);
    }
    out.push(b']');
    if piece.kind == ReasoningKind::Item {
        out.extend_from_slice(b",\"content\":[");
        texts(b"reasoning_text", out);
        out.push(b']');
    }
    if !piece.data.is_empty() {
        field(out, b",\"encrypted_content\":", &piece.data);
    }
    out.push(b'}');
}
