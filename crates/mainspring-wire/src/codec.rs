//! The codec of one agent and one of its models, for each of the APIs.
//!
//! Everything about a request that does not change is encoded in [`Codec::new`]; a body is prefix,
//! history and suffix, copied into one allocation. The order (system message, history, then tools)
//! keeps the bytes before the newest message the same from call to call, so provider prompt caches
//! hit. A tool call that is forced is another suffix.

use std::sync::Arc;

use mainspring_session::{AgentSpec, Api, Failure, Message, ModelSpec, ToolMode};

use crate::answer::{CallIds, Decoded};
use crate::limits::WireLimits;
use crate::parts;
use crate::stream::StreamDecoder;
use crate::{chat, messages, responses};

/// Encodes requests to one model for one agent, and decodes its answers.
///
/// Made once per agent and model, then shared; it holds no state of a conversation.
#[derive(Debug)]
pub struct Codec {
    shared: Arc<Shared>,
    request: Request,
    stream: bool,
}

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

/// What encoding a message and decoding an answer need to know of the agent and the model.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    /// The model's name, for messages.
    pub(crate) model: String,
    /// The model and its server, as reasoning names who thought it.
    pub(crate) origin: String,
    /// What the server speaks.
    pub(crate) api: Api,
    /// How answers are spelled.
    pub(crate) form: Form,
    /// Whether a final answer is a JSON value.
    pub(crate) typed: bool,
    /// Whether log-probabilities are asked for.
    pub(crate) logprobs: bool,
    /// The names of the tools.
    pub(crate) tools: Vec<String>,
    /// What an answer may hold.
    pub(crate) limits: WireLimits,
}

/// The parts of a request body around the history.
#[derive(Debug)]
pub(crate) struct Request {
    /// From the beginning to the first message.
    pub(crate) prefix: Vec<u8>,
    /// From the last message to the end.
    pub(crate) suffix: Vec<u8>,
    /// The suffix while a tool call is forced.
    pub(crate) opening: Option<Vec<u8>>,
    /// Whether the prefix ends inside an array that has an element already.
    pub(crate) continues: bool,
}

impl Codec {
    /// Encodes the parts of the request that never change. `model` is one of the agent's models;
    /// `stream` asks for the answer as a stream.
    ///
    /// A model of [`Api::Host`] is spoken to as in Chat Completions.
    ///
    /// # Errors
    /// `agent_invalid` if `model.params` is not a JSON object or sets a field that is the codec's
    /// own, if a forced tool is not to be had, or if the API has no `json_schema` tool mode;
    /// `tool_schema_invalid` if a tool's parameters are not an object schema.
    pub fn new(agent: &AgentSpec, model: &ModelSpec, stream: bool) -> Result<Self, Failure> {
        parts::check(agent, model)?;
        let typed = agent.output_schema.is_some();
        let constrained =
            model.tool_mode == ToolMode::JsonSchema && (typed || !agent.tools.is_empty());
        let request = match model.api {
            Api::ChatCompletions | Api::Host => chat::request(agent, model, constrained, stream)?,
            Api::Responses => responses::request(agent, model, stream)?,
            Api::Messages => messages::request(agent, model, stream)?,
        };
        let shared = Shared {
            model: model.name.clone(),
            origin: format!("{}@{}", model.name, host_of(&model.base_url)),
            api: model.api,
            form: if constrained { Form::Envelope { typed } } else { Form::Native },
            typed,
            logprobs: model.logprobs,
            tools: agent.tools.iter().map(|tool| tool.name.clone()).collect(),
            limits: WireLimits::default(),
        };
        Ok(Self { shared: Arc::new(shared), request, stream })
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

    /// What the model's server speaks.
    #[must_use]
    pub fn api(&self) -> Api {
        self.shared.api
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
        match (self.shared.form, self.shared.api) {
            (Form::Envelope { typed: false }, _) => 2,
            (Form::Envelope { typed: true }, _) => 3,
            // Reasoning goes back to its own model alone.
            (Form::Native, Api::ChatCompletions | Api::Host) => key_of(b"chat", &self.shared),
            (Form::Native, Api::Responses) => key_of(b"responses", &self.shared),
            (Form::Native, Api::Messages) => key_of(b"messages", &self.shared),
        }
    }

    /// Appends `,{...}`, the message, to an encoded history.
    ///
    /// Where an API takes the results of one answer's calls in one message, a tool result right
    /// after another one joins it: `out` then grows by the result alone, with the closing bytes
    /// moved behind it.
    pub fn encode_message(&self, message: &Message, out: &mut Vec<u8>) {
        match self.shared.api {
            Api::ChatCompletions | Api::Host => chat::message(&self.shared, message, out),
            Api::Responses => responses::message(&self.shared, message, out),
            Api::Messages => messages::message(&self.shared, message, out),
        }
    }

    /// The request body for an encoded history: one allocation, nothing encoded again.
    #[must_use]
    pub fn body(&self, history: &[u8]) -> Vec<u8> {
        self.splice(history, &self.request.suffix)
    }

    /// The request body while the turn has called no tool yet: where the agent forces a call, the
    /// one that does so; otherwise that of [`Codec::body`].
    #[must_use]
    pub fn opening_body(&self, history: &[u8]) -> Vec<u8> {
        self.splice(history, self.request.opening.as_ref().unwrap_or(&self.request.suffix))
    }

    fn splice(&self, history: &[u8], suffix: &[u8]) -> Vec<u8> {
        let Request { prefix, continues, .. } = &self.request;
        // Each message brings the comma before it; the first of an array has none.
        let history = if *continues { history } else { history.get(1..).unwrap_or(&[]) };
        let mut body = Vec::with_capacity(prefix.len() + history.len() + suffix.len());
        body.extend_from_slice(prefix);
        body.extend_from_slice(history);
        body.extend_from_slice(suffix);
        body
    }

    /// Decodes a whole answer, the body of a response of status 200.
    ///
    /// # Errors
    /// `model_bad_response` if it is no answer of the API or breaks a limit; the error it holds, if
    /// it holds one.
    pub fn decode(&self, body: &[u8], ids: CallIds) -> Result<Decoded, Failure> {
        let shared = &*self.shared;
        if body.len() > shared.limits.answer_bytes_max {
            return Err(crate::answer::too_long(shared, shared.limits.answer_bytes_max));
        }
        let draft = match shared.api {
            Api::ChatCompletions | Api::Host => chat::decode(shared, body)?,
            Api::Responses => responses::decode(shared, body)?,
            Api::Messages => messages::decode(shared, body)?,
        };
        Ok(crate::answer::finish(shared, draft, ids))
    }

    /// A decoder for an answer that comes as a stream.
    #[must_use]
    pub fn stream(&self, ids: CallIds) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.shared), ids)
    }
}

/// The host and port of an address, without a user name.
fn host_of(base_url: &str) -> &str {
    let rest = base_url.split_once("://").map_or(base_url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    authority.rsplit('@').next().unwrap_or("")
}

/// FNV-1a over the API and who answers.
fn key_of(api: &[u8], shared: &Shared) -> u64 {
    let bytes = api.iter().chain(shared.origin.as_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
