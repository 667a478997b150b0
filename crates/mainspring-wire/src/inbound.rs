//! A Chat Completions request as a client sends it, read into neutral values.
//!
//! What the neutral conversation knows is taken apart and checked, each refusal with the field it
//! is about; every other field is kept as it is, for servers that know it. System and developer
//! messages are gathered, in their order, into one text: not every provider takes them elsewhere
//! than at the front.
//!
//! # Source
//! OpenAI API reference, "Create chat completion" (2026-11).

use std::borrow::Cow;
use std::collections::BTreeMap;

use mainspring_session::{Message, Part, ToolCall, ToolChoice};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// Messages of one request.
pub const INBOUND_MESSAGES_MAX: usize = 20_000;
/// Tools of one request.
pub const INBOUND_TOOLS_MAX: usize = 4_096;
/// Characters of a seen value in a message.
const SEEN_CHARS_MAX: usize = 60;

/// Fields that the route sets itself, and that no client needs.
const IGNORED: [&str; 2] = ["service_tier", "store"];

/// A request, read.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// The model that was asked for.
    pub model: String,
    /// All system and developer messages, with empty lines between.
    pub instructions: String,
    /// The other messages, oldest first.
    pub messages: Vec<Message>,
    /// The tools.
    pub tools: Vec<ChatTool>,
    /// Whether the model may or must call tools.
    pub tool_choice: ToolChoice,
    /// Whether one answer may call several tools.
    pub parallel_tool_calls: Option<bool>,
    /// JSON Schema of the answer, if one was given.
    pub output_schema: Option<Box<RawValue>>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Whether a stream is to end with the usage.
    pub include_usage: bool,
    /// Most tokens of the answer.
    pub output_tokens_max: Option<u64>,
    /// All other fields, as a JSON object.
    pub params: Option<Box<RawValue>>,
}

/// A tool of a request.
#[derive(Debug, Clone)]
pub struct ChatTool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: Box<RawValue>,
}

/// Why a request cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadRequest {
    /// What is wrong: the field, the value seen, the value allowed.
    pub message: String,
    /// The field, such as `messages[2].content`; none for the body as a whole.
    pub param: Option<String>,
}

impl BadRequest {
    fn at(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()) }
    }
}

type Raw<'a> = &'a RawValue;
type Fields<'a> = BTreeMap<Cow<'a, str>, Raw<'a>>;

impl ChatRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// [`BadRequest`] for what is no JSON, has a wrong type, is missing, or cannot be answered here.
    pub fn parse(body: &[u8]) -> Result<Self, BadRequest> {
        let text = std::str::from_utf8(body).map_err(|error| BadRequest {
            message: format!("the body is not UTF-8 from byte {} on", error.valid_up_to()),
            param: None,
        })?;
        let mut fields: Fields<'_> = serde_json::from_str(text).map_err(|error| BadRequest {
            message: match text.trim_start().starts_with('{') {
                true => format!("the body cannot be read as JSON: {error}"),
                false => format!("the body is {}, must be a JSON object", seen(text)),
            },
            param: None,
        })?;
        // A field of null is as good as none.
        fields.retain(|_, value| value.get() != "null");
        let mut request = Self {
            model: required(&mut fields, "model", "text")?,
            stream: optional(&mut fields, "stream", "true or false")?.unwrap_or(false),
            ..Self::default()
        };
        refuse_unanswerable(&mut fields)?;
        request.output_tokens_max = output_tokens_max(&mut fields)?;
        let options: Option<StreamOptions> =
            optional(&mut fields, "stream_options", "an object such as {\"include_usage\":true}")?;
        request.include_usage = options.is_some_and(|options| options.include_usage);
        if let Some(raw) = fields.remove("tools") {
            request.tools = tools(raw)?;
        }
        if let Some(raw) = fields.remove("tool_choice") {
            request.tool_choice = tool_choice(raw, &request.tools)?;
        }
        request.parallel_tool_calls =
            optional(&mut fields, "parallel_tool_calls", "true or false")?;
        if let Some(raw) = fields.get("response_format").copied()
            && let Some(schema) = output_schema(raw)?
        {
            request.output_schema = schema;
            fields.remove("response_format");
        }
        let raw = fields
            .remove("messages")
            .ok_or_else(|| BadRequest::at("messages", "\"messages\" is missing, it is required"))?;
        request.read_messages(raw)?;
        if !fields.is_empty() {
            let raw = serde_json::value::to_raw_value(&fields);
            request.params = Some(raw.expect("string keys and JSON values always encode"));
        }
        Ok(request)
    }

    fn read_messages(&mut self, raw: Raw<'_>) -> Result<(), BadRequest> {
        let messages: Vec<Raw<'_>> = typed(raw, "messages", "a list of messages")?;
        if messages.is_empty() {
            return Err(BadRequest::at("messages", "\"messages\" is empty, at least 1 is needed"));
        }
        if messages.len() > INBOUND_MESSAGES_MAX {
            let message = format!(
                "\"messages\" has {} entries, limit {INBOUND_MESSAGES_MAX}",
                messages.len()
            );
            return Err(BadRequest::at("messages", message));
        }
        let mut names = BTreeMap::new();
        self.messages.reserve(messages.len());
        for (idx, raw) in messages.into_iter().enumerate() {
            let param = format!("messages[{idx}]");
            let message: MessageJson<'_> =
                typed(raw, &param, "an object with a role and a content")?;
            self.read_message(message, &param, &mut names)?;
        }
        if self.messages.is_empty() {
            // Some clients say all they have to say in a system message.
            self.messages.push(Message::user(std::mem::take(&mut self.instructions)));
        }
        Ok(())
    }

    fn read_message(
        &mut self,
        message: MessageJson<'_>,
        param: &str,
        names: &mut BTreeMap<String, String>,
    ) -> Result<(), BadRequest> {
        let content = || format!("{param}.content");
        match message.role.as_deref() {
            Some("system" | "developer") => {
                let text = text(message.content, &content())?;
                if !self.instructions.is_empty() && !text.is_empty() {
                    self.instructions.push_str("\n\n");
                }
                self.instructions.push_str(&text);
            }
            Some("user") => {
                let content = parts(message.content, &content())?;
                self.messages.push(Message::User { content });
            }
            Some("assistant") => {
                let calls = calls(message.tool_calls, param)?;
                let mut text = text(message.content, &content())?;
                if text.is_empty() {
                    text = message.refusal.unwrap_or_default().into_owned();
                }
                for call in &calls {
                    names.insert(call.id.clone(), call.name.clone());
                }
                // What a model thought goes back to that model alone, and nothing here says who.
                let reasoning = Vec::new();
                self.messages.push(Message::Assistant { text, tool_calls: calls, reasoning });
            }
            Some("tool") => {
                let text = text(message.content, &content())?;
                let call_id = message.tool_call_id.unwrap_or_default().into_owned();
                let name = names.get(&call_id).cloned().ok_or_else(|| {
                    BadRequest::at(
                        format!("{param}.tool_call_id"),
                        format!(
                            "{param} answers tool call {}, which no assistant message before it has",
                            seen(&call_id)
                        ),
                    )
                })?;
                self.messages.push(Message::Tool { call_id, name, text, is_error: false });
            }
            other => {
                return Err(BadRequest::at(
                    format!("{param}.role"),
                    format!(
                        "role of {param} is {}, allowed are system, developer, user, assistant, tool",
                        other.map_or("missing".to_owned(), seen)
                    ),
                ));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
struct MessageJson<'a> {
    #[serde(borrow, default)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    content: Option<Raw<'a>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<Raw<'a>>,
    #[serde(borrow, default)]
    tool_call_id: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct PartJson<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    image_url: Option<Raw<'a>>,
}

#[derive(Deserialize)]
struct ImageJson {
    url: String,
}

#[derive(Deserialize)]
struct CallJson {
    id: String,
    function: FunctionJson,
}

#[derive(Deserialize)]
struct FunctionJson {
    name: String,
    #[serde(default)]
    arguments: String,
}

#[derive(Deserialize)]
struct ToolJson {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    function: Option<ToolFunctionJson>,
}

#[derive(Deserialize)]
struct ToolFunctionJson {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct ChosenJson {
    function: ChosenFunctionJson,
}

#[derive(Deserialize)]
struct ChosenFunctionJson {
    name: String,
}

#[derive(Deserialize)]
struct FormatJson {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    json_schema: Option<SchemaJson>,
}

#[derive(Deserialize)]
struct SchemaJson {
    #[serde(default)]
    schema: Option<Box<RawValue>>,
}

/// Takes out what asks for an answer that this endpoint does not give.
fn refuse_unanswerable(fields: &mut Fields<'_>) -> Result<(), BadRequest> {
    for name in IGNORED {
        fields.remove(name);
    }
    let count: Option<u64> = optional(fields, "n", "1")?;
    if let Some(count) = count.filter(|count| *count != 1) {
        return Err(BadRequest::at("n", format!("\"n\" is {count}, only 1 answer is given")));
    }
    let logprobs: Option<bool> = optional(fields, "logprobs", "false")?;
    if logprobs == Some(true) || fields.contains_key("top_logprobs") {
        return Err(BadRequest::at("logprobs", "\"logprobs\" are not given back, leave them out"));
    }
    for (name, instead) in [("functions", "tools"), ("function_call", "tool_choice")] {
        if fields.contains_key(name) {
            let message = format!("\"{name}\" is not taken any more, use \"{instead}\"");
            return Err(BadRequest::at(name, message));
        }
    }
    if let Some(raw) = fields.get("modalities").filter(|raw| raw.get().contains("audio")) {
        let message = format!("\"modalities\" is {}, only text is given back", seen(raw.get()));
        return Err(BadRequest::at("modalities", message));
    }
    Ok(())
}

fn output_tokens_max(fields: &mut Fields<'_>) -> Result<Option<u64>, BadRequest> {
    let mut found = None;
    for name in ["max_tokens", "max_completion_tokens"] {
        let allowed = "a whole number from 1";
        let tokens: Option<u64> = optional(fields, name, allowed)?;
        if tokens == Some(0) {
            return Err(BadRequest::at(name, format!("\"{name}\" is 0, must be {allowed}")));
        }
        found = tokens.or(found);
    }
    Ok(found)
}

fn tools(raw: Raw<'_>) -> Result<Vec<ChatTool>, BadRequest> {
    let tools: Vec<Raw<'_>> = typed(raw, "tools", "a list of tools")?;
    if tools.len() > INBOUND_TOOLS_MAX {
        let message = format!("\"tools\" has {} entries, limit {INBOUND_TOOLS_MAX}", tools.len());
        return Err(BadRequest::at("tools", message));
    }
    tools.into_iter().enumerate().map(|(idx, raw)| tool(raw, &format!("tools[{idx}]"))).collect()
}

fn tool(raw: Raw<'_>, param: &str) -> Result<ChatTool, BadRequest> {
    let tool: ToolJson = typed(raw, param, "{\"type\":\"function\",\"function\":{\"name\":...}}")?;
    if tool.kind.as_deref() != Some("function") {
        let shown = tool.kind.as_deref().map_or("missing".to_owned(), seen);
        let message = format!("type of {param} is {shown}, only \"function\" is taken");
        return Err(BadRequest::at(format!("{param}.type"), message));
    }
    let function = tool.function.ok_or_else(|| {
        BadRequest::at(format!("{param}.function"), format!("{param} has no \"function\""))
    })?;
    if function.name.is_empty() {
        let message = format!("name of {param} is empty");
        return Err(BadRequest::at(format!("{param}.function.name"), message));
    }
    let nothing = || RawValue::from_string("{\"type\":\"object\",\"properties\":{}}".to_owned());
    Ok(ChatTool {
        name: function.name,
        description: function.description.unwrap_or_default(),
        parameters: match function.parameters {
            Some(parameters) => parameters,
            None => nothing().expect("this is JSON"),
        },
    })
}

fn tool_choice(raw: Raw<'_>, tools: &[ChatTool]) -> Result<ToolChoice, BadRequest> {
    let param = "tool_choice";
    let allowed = "none, auto, required or {\"type\":\"function\",\"function\":{\"name\":...}}";
    let refused = |why: String| BadRequest::at(param, format!("\"tool_choice\" {why}"));
    let choice = match raw.get() {
        "\"auto\"" => ToolChoice::Auto,
        "\"none\"" => ToolChoice::None,
        "\"required\"" => ToolChoice::Required,
        _ => {
            let chosen: ChosenJson = typed(raw, param, allowed)?;
            ToolChoice::Tool(chosen.function.name)
        }
    };
    match &choice {
        ToolChoice::Tool(name) if !tools.iter().any(|tool| tool.name == *name) => {
            Err(refused(format!("names {}, which is not in \"tools\"", seen(name))))
        }
        ToolChoice::Required if tools.is_empty() => {
            Err(refused("is \"required\", but there are no \"tools\"".to_owned()))
        }
        _ => Ok(choice),
    }
}

/// What the format says of the answer: outer none where it is passed on as it is.
#[expect(clippy::option_option, reason = "the two are different answers")]
fn output_schema(raw: Raw<'_>) -> Result<Option<Option<Box<RawValue>>>, BadRequest> {
    let param = "response_format";
    let format: FormatJson = typed(raw, param, "an object with a \"type\"")?;
    match (format.kind.as_str(), format.json_schema) {
        ("text", _) => Ok(Some(None)),
        ("json_object", _) => Ok(None),
        ("json_schema", Some(SchemaJson { schema: Some(schema) })) => Ok(Some(Some(schema))),
        ("json_schema", _) => {
            let message = "\"response_format\" is a json_schema without a \"schema\"";
            Err(BadRequest::at("response_format.json_schema.schema", message))
        }
        (other, _) => Err(BadRequest::at(
            "response_format.type",
            format!(
                "type of \"response_format\" is {}, allowed are text, json_object, json_schema",
                seen(other)
            ),
        )),
    }
}

fn calls(raw: Option<Raw<'_>>, param: &str) -> Result<Vec<ToolCall>, BadRequest> {
    let Some(raw) = raw.filter(|raw| raw.get() != "null") else { return Ok(Vec::new()) };
    let param = format!("{param}.tool_calls");
    let calls: Vec<CallJson> = typed(
        raw,
        &param,
        "a list of {\"id\":...,\"type\":\"function\",\"function\":{\"name\":...,\"arguments\":\"...\"}}",
    )?;
    Ok(calls
        .into_iter()
        .map(|call| ToolCall {
            id: call.id,
            name: call.function.name,
            arguments: call.function.arguments,
        })
        .collect())
}

/// The text of a content that may hold nothing else.
fn text(raw: Option<Raw<'_>>, param: &str) -> Result<String, BadRequest> {
    let mut whole = String::new();
    for part in parts(raw, param)? {
        match part {
            Part::Text { text } => whole.push_str(&text),
            Part::Image { .. } => {
                let message = format!("{param} holds an image, only users can show one");
                return Err(BadRequest::at(param, message));
            }
        }
    }
    Ok(whole)
}

fn parts(raw: Option<Raw<'_>>, param: &str) -> Result<Vec<Part>, BadRequest> {
    let Some(raw) = raw else { return Ok(Vec::new()) };
    match raw.get().as_bytes().first() {
        Some(b'"') => {
            let text = typed(raw, param, "text")?;
            Ok(vec![Part::Text { text }])
        }
        Some(b'n') => Ok(Vec::new()),
        _ => {
            let raws: Vec<Raw<'_>> = typed(raw, param, "text or a list of parts")?;
            raws.into_iter()
                .enumerate()
                .map(|(idx, raw)| part(raw, &format!("{param}[{idx}]")))
                .collect()
        }
    }
}

fn part(raw: Raw<'_>, param: &str) -> Result<Part, BadRequest> {
    let part: PartJson<'_> = typed(raw, param, "an object with a \"type\"")?;
    let missing = |what: &str| BadRequest::at(param, format!("{param} has no \"{what}\""));
    match part.kind.as_deref() {
        Some("text" | "input_text" | "output_text") => {
            let text = part.text.ok_or_else(|| missing("text"))?.into_owned();
            Ok(Part::Text { text })
        }
        Some("refusal") => {
            let text = part.refusal.ok_or_else(|| missing("refusal"))?.into_owned();
            Ok(Part::Text { text })
        }
        Some("image_url") => {
            let raw = part.image_url.ok_or_else(|| missing("image_url"))?;
            let url = match raw.get().starts_with('"') {
                true => typed(raw, &format!("{param}.image_url"), "an address")?,
                false => {
                    let allowed = "an object with a \"url\"";
                    let image: ImageJson = typed(raw, &format!("{param}.image_url"), allowed)?;
                    image.url
                }
            };
            Ok(Part::Image { url })
        }
        other => {
            let shown = other.map_or("missing".to_owned(), seen);
            let message = format!("type of {param} is {shown}, allowed are text and image_url");
            Err(BadRequest::at(format!("{param}.type"), message))
        }
    }
}

fn required<T: DeserializeOwned>(
    fields: &mut Fields<'_>,
    name: &str,
    allowed: &str,
) -> Result<T, BadRequest> {
    optional(fields, name, allowed)?
        .ok_or_else(|| BadRequest::at(name, format!("\"{name}\" is missing, it is required")))
}

fn optional<T: DeserializeOwned>(
    fields: &mut Fields<'_>,
    name: &str,
    allowed: &str,
) -> Result<Option<T>, BadRequest> {
    fields.remove(name).map(|raw| typed(raw, name, allowed)).transpose()
}

fn typed<'a, T: Deserialize<'a>>(
    raw: Raw<'a>,
    param: &str,
    allowed: &str,
) -> Result<T, BadRequest> {
    serde_json::from_str(raw.get()).map_err(|_| {
        BadRequest::at(param, format!("\"{param}\" is {}, must be {allowed}", seen(raw.get())))
    })
}

fn seen(text: &str) -> String {
    match text.char_indices().nth(SEEN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None if text.is_empty() => "empty".to_owned(),
        None => text.to_owned(),
    }
}
