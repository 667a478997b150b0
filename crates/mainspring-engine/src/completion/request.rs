//! What goes into one model call without a session, and what comes out: plain data.

use std::sync::Arc;
use std::time::Duration;

use mainspring_route::Decision;
use mainspring_session::{Answer, Failure, FinishReason, Message, Problem, ToolChoice, Usage};
use mainspring_wire::{ChatRequest, Delta};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A tool that the model may call. Nothing here runs it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolDef {
    /// The name the model calls it by.
    pub name: String,
    /// What it does, for the model.
    #[serde(default)]
    pub description: String,
    /// JSON Schema of its arguments, an object schema.
    pub parameters: Box<RawValue>,
}

/// Which pieces of the answer the caller wants while it is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Streaming {
    /// None: only the whole answer.
    #[default]
    Off,
    /// Pieces of an answer that counts. What a smaller model says is kept back until it has passed
    /// its checks, and comes in one piece then; the last model of a route streams through.
    Accepted,
    /// Pieces of whatever model answers, at once. Its checks are noted and change nothing.
    Immediate,
}

/// One question to a route.
#[derive(Debug, Clone, Default)]
pub struct CompletionRequest {
    /// The system prompt; empty for none.
    pub instructions: String,
    /// The conversation, oldest first, with at least one message.
    pub messages: Vec<Message>,
    /// The tools the model may call, in the order it sees them.
    pub tools: Vec<ToolDef>,
    /// Whether the model may or must call tools.
    pub tool_choice: ToolChoice,
    /// Whether one answer may call several tools; none: as the model's server has it.
    pub parallel_tool_calls: Option<bool>,
    /// JSON Schema of the answer; none means text.
    pub output_schema: Option<Box<RawValue>>,
    /// Most tokens of the answer; none for the models' own limits. An answer that ends there is what
    /// was asked for and counts.
    pub output_tokens_max: Option<u64>,
    /// Further fields of the request body, over those of the models; a JSON object.
    pub params: Option<Box<RawValue>>,
    /// Which pieces the caller wants.
    pub streaming: Streaming,
    /// Whether the caller can be told that what it has of a stream does not count.
    pub may_restart: bool,
    /// Whose call it is; empty for the default tenant.
    pub tenant: Arc<str>,
    /// How long all of it may take.
    pub timeout: Option<Duration>,
}

impl CompletionRequest {
    /// What a Chat Completions request asks, without the model that it names and with the
    /// streaming, the tenant and the time left to be set.
    #[must_use]
    pub fn of_chat(chat: ChatRequest) -> Self {
        let tools = chat.tools.into_iter().map(|tool| ToolDef {
            name: tool.name,
            description: tool.description,
            parameters: tool.parameters,
        });
        Self {
            instructions: chat.instructions,
            messages: chat.messages,
            tools: tools.collect(),
            tool_choice: chat.tool_choice,
            parallel_tool_calls: chat.parallel_tool_calls,
            output_schema: chat.output_schema,
            output_tokens_max: chat.output_tokens_max,
            params: chat.params,
            ..Self::default()
        }
    }
}

/// A piece of an answer that is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A model begins an answer of which pieces follow.
    Begin {
        /// Its position in the route.
        tier: usize,
        /// Its name.
        model: &'a str,
    },
    /// The next piece.
    Delta(Delta<'a>),
    /// The answer begins anew: what came so far does not count. Only where the request allows it.
    Restart,
}

/// One call of a model that a completion made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attempt {
    /// Position of the model in the route.
    pub tier: usize,
    /// The model's name.
    pub model: String,
    /// How long it took, in microseconds.
    pub total_us: u64,
    /// Until the first token, in microseconds; only of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_us: Option<u64>,
    /// Its tokens; zeros where it failed.
    pub usage: Usage,
    /// Its price in US dollars, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Why there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What the checks found wrong with the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// What a route answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// What the model said.
    pub answer: Answer,
    /// Why it stopped.
    pub finish_reason: FinishReason,
    /// Position in the route of the model that said it.
    pub tier: usize,
    /// That model's name.
    pub model: String,
    /// Tokens of all calls.
    pub usage: Usage,
    /// Price of all calls in US dollars; none where no model has a price.
    pub cost_usd: Option<f64>,
    /// Every call that was made, in order.
    pub attempts: Vec<Attempt>,
    /// What is wrong with an answer that was given back all the same: the checks that no model of
    /// the route passed, except that of the output schema, which is a failure.
    pub problems: Vec<Problem>,
    /// Which model was asked first, and why.
    pub decision: Decision,
}

/// Why a route gave no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{failure}")]
pub struct CompletionError {
    /// The failure of the last call, or of what came before any.
    pub failure: Failure,
    /// How long to wait before another try, in milliseconds, if anybody said.
    pub retry_after_ms: Option<u64>,
    /// Every call that was made, in order.
    pub attempts: Vec<Attempt>,
}

impl From<Failure> for CompletionError {
    fn from(failure: Failure) -> Self {
        Self { failure, retry_after_ms: None, attempts: Vec::new() }
    }
}
