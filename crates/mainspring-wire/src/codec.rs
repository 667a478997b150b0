//! The codec of one agent and one of its models: OpenAI Chat Completions.
//!
//! Everything about a request that does not change is encoded in [`ChatCodec::new`]; a body is
//! prefix, history and suffix, copied into one allocation. The order (system message, history,
//! then tools) keeps the bytes before the newest message the same from call to call, so provider
//! prompt caches hit.

use std::collections::BTreeMap;
use std::sync::Arc;

use mainspring_session::{AgentSpec, ErrorCode, Failure, Message, ModelSpec, OutputMode, ToolMode};
use serde_json::value::RawValue;

use crate::answer::{CallIds, Decoded};
use crate::encode::{self, Form};
use crate::limits::WireLimits;
use crate::node::Node;
use crate::prompt::{self, CompactTool};
use crate::response;
use crate::schema;
use crate::stream::StreamDecoder;

/// Tool calls that one constrained answer may hold. A small model that has begun to repeat itself
/// stops here, and eight suffice for a step.
const CONSTRAINED_CALLS_MAX: u32 = 8;
/// Fields of a request body that are the codec's own.
const OWN_FIELDS: [&str; 4] = ["messages", "model", "tools", "stream"];

/// Encodes requests to one model for one agent, and decodes its answers.
///
/// Made once per agent and model, then shared; it holds no state of a conversation.
#[derive(Debug)]
pub struct ChatCodec {
    shared: Arc<Shared>,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    has_system: bool,
    stream: bool,
}

/// What decoding needs to know of the request.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    /// The model's name, for messages.
    pub(crate) model: String,
    /// How answers are spelled.
    pub(crate) form: Form,
    /// Whether a final answer is a JSON value.
    pub(crate) typed: bool,
    /// The names of the tools.
    pub(crate) tools: Vec<String>,
    /// What an answer may hold.
    pub(crate) limits: WireLimits,
}

impl ChatCodec {
    /// Encodes the parts of the request that never change. `model` is one of the agent's models;
    /// `stream` asks for the answer as a stream.
    ///
    /// # Errors
    /// `agent_invalid` if `model.params` is not a JSON object or sets a field that is the codec's
    /// own; `tool_schema_invalid` if a tool's parameters are not an object schema.
    pub fn new(agent: &AgentSpec, model: &ModelSpec, stream: bool) -> Result<Self, Failure> {
        let typed = agent.output_schema.is_some();
        let constrained =
            model.tool_mode == ToolMode::JsonSchema && (typed || !agent.tools.is_empty());
        let form = if constrained { Form::Envelope { typed } } else { Form::Native };
        let parts = if constrained {
            Parts::envelope(agent)?
        } else {
            Parts::native(agent, model.output_mode)?
        };
        let mut prefix = b"{\"model\":".to_vec();
        encode::string(&mut prefix, &model.name);
        prefix.extend_from_slice(b",\"messages\":[");
        if !parts.system.is_empty() {
            prefix.extend_from_slice(b"{\"role\":\"system\",\"content\":");
            encode::string(&mut prefix, &parts.system);
            prefix.push(b'}');
        }
        let shared = Shared {
            model: model.name.clone(),
            form,
            typed,
            tools: agent.tools.iter().map(|tool| tool.name.clone()).collect(),
            limits: WireLimits::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            prefix,
            suffix: suffix(model, &parts, stream)?,
            has_system: !parts.system.is_empty(),
            stream,
        })
    }

    /// The same codec with other bounds on answers.
    #[must_use]
    pub fn with_limits(mut self, limits: WireLimits) -> Self {
        self.shared = Arc::new(Shared { limits, ..Shared::clone(&self.shared) });
        self
    }

    /// The model's name on its server.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.shared.model
    }

    /// Whether requests ask for a stream.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.stream
    }

    /// Codecs with equal keys encode messages identically, so a history encoded by one can be sent
    /// by the other.
    #[must_use]
    pub fn history_key(&self) -> u64 {
        match self.shared.form {
            Form::Native => 1,
            Form::Envelope { typed: false } => 2,
            Form::Envelope { typed: true } => 3,
        }
    }

    /// Appends `,{...}`, the message, to an encoded history.
    ///
    /// In `json_schema` tool mode a tool result right after another one joins that one's message:
    /// `out` then grows by the result alone, with the closing bytes moved behind it.
    pub fn encode_message(&self, message: &Message, out: &mut Vec<u8>) {
        encode::message(self.shared.form, message, out);
    }

    /// The request body for an encoded history: one allocation, nothing encoded again.
    #[must_use]
    pub fn body(&self, history: &[u8]) -> Vec<u8> {
        // Each message brings the comma before it; the first of an array has none.
        let history = if self.has_system { history } else { history.get(1..).unwrap_or(&[]) };
        let mut body = Vec::with_capacity(self.prefix.len() + history.len() + self.suffix.len());
        body.extend_from_slice(&self.prefix);
        body.extend_from_slice(history);
        body.extend_from_slice(&self.suffix);
        body
    }

    /// Decodes a whole answer, the body of a response of status 200.
    ///
    /// # Errors
    /// `model_bad_response` if it is no chat completion or breaks a limit; the error it holds, if
    /// it holds one.
    pub fn decode(&self, body: &[u8], ids: CallIds) -> Result<Decoded, Failure> {
        response::decode(&self.shared, body, ids)
    }

    /// A decoder for an answer that comes as a stream.
    #[must_use]
    pub fn stream(&self, ids: CallIds) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.shared), ids)
    }
}

/// The parts of a request that depend on how the model is driven.
struct Parts {
    system: String,
    /// The JSON of `tools`; empty for none.
    tools: Vec<u8>,
    /// The JSON of `response_format`; empty for none.
    response_format: Vec<u8>,
}

impl Parts {
    fn native(agent: &AgentSpec, output_mode: OutputMode) -> Result<Self, Failure> {
        let mut parts = Parts {
            system: agent.instructions.clone(),
            tools: Vec::new(),
            response_format: Vec::new(),
        };
        for (idx, tool) in agent.tools.iter().enumerate() {
            let out = &mut parts.tools;
            out.push(if idx == 0 { b'[' } else { b',' });
            out.extend_from_slice(b"{\"type\":\"function\",\"function\":{\"name\":");
            encode::string(out, &tool.name);
            if !tool.description.is_empty() {
                out.extend_from_slice(b",\"description\":");
                encode::string(out, &tool.description);
            }
            out.extend_from_slice(b",\"parameters\":");
            out.extend_from_slice(tool.parameters.get().as_bytes());
            out.extend_from_slice(b"}}");
        }
        if !agent.tools.is_empty() {
            parts.tools.push(b']');
        }
        if let Some(output) = &agent.output_schema {
            match output_mode {
                OutputMode::Prompt => {
                    append(&mut parts.system, &prompt::output_prompt(output.get()));
                }
                OutputMode::Native => {
                    let strict = schema::qualifies_as_strict(&parse_schema(output, "output")?);
                    parts.response_format = response_format(output.get(), strict);
                }
            }
        }
        Ok(parts)
    }

    fn envelope(agent: &AgentSpec) -> Result<Self, Failure> {
        let mut tools = Vec::with_capacity(agent.tools.len());
        for tool in &agent.tools {
            let what = format!("tool \"{}\"", tool.name);
            let arguments = schema::clean(&parse_schema(&tool.parameters, &what)?);
            tools.push((tool.name.as_str(), arguments));
        }
        let output = match &agent.output_schema {
            Some(raw) => Some(schema::clean(&parse_schema(raw, "output")?)),
            None => None,
        };
        let compact: Vec<CompactTool<'_>> = agent
            .tools
            .iter()
            .zip(&tools)
            .map(|(tool, (name, arguments))| CompactTool {
                name,
                description: &tool.description,
                arguments,
            })
            .collect();
        let mut system = agent.instructions.clone();
        append(&mut system, &prompt::envelope_prompt(&compact, output.as_ref()));
        let calls_max = agent.limits.tool_calls_per_step_max.clamp(1, CONSTRAINED_CALLS_MAX);
        let answer = output.unwrap_or_else(|| Node::object([("type", Node::text("string"))]));
        let envelope = schema::envelope(&tools, calls_max, answer);
        let response_format = response_format(&envelope.to_json(), true);
        Ok(Parts { system, tools: Vec::new(), response_format })
    }
}

fn append(system: &mut String, text: &str) {
    if !system.is_empty() {
        system.push_str("\n\n");
    }
    system.push_str(text);
}

fn parse_schema(raw: &RawValue, what: &str) -> Result<Node, Failure> {
    let node: Option<Node> = serde_json::from_str(raw.get()).ok();
    node.filter(|node| node.fields().is_some()).ok_or_else(|| {
        let shown: String = raw.get().chars().take(100).collect();
        Failure::new(
            ErrorCode::TOOL_SCHEMA_INVALID,
            format!("schema of {what} is {shown}, not a JSON object"),
        )
    })
}

fn response_format(schema: &str, strict: bool) -> Vec<u8> {
    format!(
        "{{\"type\":\"json_schema\",\"json_schema\":{{\"name\":\"answer\",\"schema\":{schema},\
         \"strict\":{strict}}}}}"
    )
    .into_bytes()
}

/// Everything behind the messages.
fn suffix(model: &ModelSpec, parts: &Parts, stream: bool) -> Result<Vec<u8>, Failure> {
    let mut params = params(model, !parts.response_format.is_empty())?;
    let mut out = b"]".to_vec();
    let mut field = |name: &str, json: &[u8]| {
        out.push(b',');
        encode::string(&mut out, name);
        out.push(b':');
        out.extend_from_slice(json);
    };
    if !parts.tools.is_empty() {
        field("tools", &parts.tools);
    }
    if !parts.response_format.is_empty() {
        field("response_format", &parts.response_format);
    }
    if stream {
        field("stream", b"true");
        // A server that refuses the option is helped by a parameter of null, which removes it.
        match params.remove("stream_options").map(RawValue::get) {
            None => field("stream_options", b"{\"include_usage\":true}"),
            Some("null") => {}
            Some(options) => field("stream_options", options.as_bytes()),
        }
    }
    for (name, value) in params {
        field(name, value.get().as_bytes());
    }
    out.push(b'}');
    Ok(out)
}

fn params(model: &ModelSpec, constrained: bool) -> Result<BTreeMap<&str, &RawValue>, Failure> {
    let Some(raw) = &model.params else {
        return Ok(BTreeMap::new());
    };
    let refused = |message: String| Failure::new(ErrorCode::AGENT_INVALID, message);
    let params: BTreeMap<&str, &RawValue> = serde_json::from_str(raw.get()).map_err(|_| {
        let shown: String = raw.get().chars().take(100).collect();
        refused(format!("params of model \"{}\" are {shown}, not a JSON object", model.name))
            .with_hint("write them as an object, such as {\"temperature\":0}")
    })?;
    let own = OWN_FIELDS.iter().find(|name| params.contains_key(**name));
    if let Some(name) = own {
        return Err(refused(format!(
            "params of model \"{}\" set \"{name}\", which the engine sets itself",
            model.name
        ))
        .with_hint(format!("remove \"{name}\" from params")));
    }
    if constrained && params.contains_key("response_format") {
        return Err(refused(format!(
            "params of model \"{}\" set \"response_format\", which holds the answer's schema",
            model.name
        ))
        .with_hint("remove it, or use the output mode that puts the schema into the prompt"));
    }
    Ok(params)
}
