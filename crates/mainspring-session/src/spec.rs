//! What an agent is, as data: instructions, tools, models, limits.
//!
//! A session records the hash of its spec, and the spec once, so that a resumed run can tell
//! whether the agent is still the same. A spec never holds a secret.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ids::BlobHash;
use crate::limits::Limits;
use crate::message::Usage;

/// What doing a tool call twice would do. Decides what happens to it after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Changes nothing: runs again.
    Read,
    /// A second run leaves the same state as the first: runs again.
    Idempotent,
    /// The other side recognises the effect id: runs again with the same id.
    Keyed,
    /// A second run would do harm: never runs again by itself.
    Unsafe,
}

impl Effect {
    /// Whether the engine may run the call again without asking.
    #[must_use]
    pub fn repeatable(self) -> bool {
        self != Effect::Unsafe
    }
}

/// Whether a person is asked before a tool runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approve {
    /// Nobody is asked.
    #[default]
    Never,
    /// A person is asked before every call.
    Always,
    /// The user's function says for each call whether a person is asked.
    Policy,
}

impl Approve {
    fn is_never(&self) -> bool {
        *self == Approve::Never
    }
}

/// A tool as the model and the engine see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolSpec {
    /// The name the model calls it by.
    pub name: String,
    /// What it does, for the model.
    #[serde(default)]
    pub description: String,
    /// JSON Schema of its arguments, an object schema.
    pub parameters: Box<RawValue>,
    /// What a repetition would do.
    pub effect: Effect,
    /// How long one attempt may take, in milliseconds.
    pub timeout_ms: u64,
    /// Attempts at one call, the first included, before its error goes to the model.
    pub attempts_max: u32,
    /// Whether a person is asked before it runs.
    #[serde(default, skip_serializing_if = "Approve::is_never")]
    pub approve: Approve,
    /// Whether the user has a function that finds out what became of a call whose process ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reconcile: bool,
}

/// How a model is told to call tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolMode {
    /// Through the provider's own tool calls.
    Native,
    /// By an answer held to a JSON Schema: for models that print no tool calls.
    JsonSchema,
}

/// How a model is held to an output schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputMode {
    /// The provider constrains the answer (`response_format`).
    Native,
    /// The schema is put into the instructions, and the answer is checked.
    Prompt,
}

/// US dollars per million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// For a million tokens read.
    pub input_usd: f64,
    /// For a million tokens written.
    pub output_usd: f64,
    /// For a million tokens read from the provider's cache; none means the price of reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_usd: Option<f64>,
}

impl Price {
    /// What these tokens cost, in US dollars.
    #[must_use]
    pub fn of(self, usage: Usage) -> f64 {
        let cached = usage.cached_tokens.min(usage.input_tokens);
        let fresh = (usage.input_tokens - cached) as f64 * self.input_usd;
        let reused = cached as f64 * self.cached_usd.unwrap_or(self.input_usd);
        (fresh + reused + usage.output_tokens as f64 * self.output_usd) / 1e6
    }
}

/// A model and where it is served. The key is not part of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// The model's name on its server.
    pub name: String,
    /// Where the server's API begins, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// How it calls tools.
    pub tool_mode: ToolMode,
    /// How it is held to an output schema.
    pub output_mode: OutputMode,
    /// Whether to ask for the answer as a stream.
    #[serde(default)]
    pub stream: bool,
    /// Milliseconds to connect. Default 10 s.
    #[serde(default = "default_connect_ms_max")]
    pub connect_ms_max: u64,
    /// Milliseconds from the request to the first token (streams) or byte. Default 120 s.
    #[serde(default = "default_first_token_ms_max")]
    pub first_token_ms_max: u64,
    /// Milliseconds from the request to the end of the answer. Default 600 s.
    #[serde(default = "default_total_ms_max")]
    pub total_ms_max: u64,
    /// Further fields of the request body, such as `{"temperature":0}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Box<RawValue>>,
    /// What it costs, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

fn default_connect_ms_max() -> u64 {
    10_000
}

fn default_first_token_ms_max() -> u64 {
    120_000
}

fn default_total_ms_max() -> u64 {
    600_000
}

/// An agent, complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSpec {
    /// The agent's name.
    pub name: String,
    /// The system prompt.
    #[serde(default)]
    pub instructions: String,
    /// Its tools, in the order the model sees them.
    #[serde(default)]
    pub tools: Vec<ToolSpec>,
    /// Its models, the one to try first at the front. Never empty.
    pub models: Vec<ModelSpec>,
    /// Whether a function of the user checks every answer.
    #[serde(default)]
    pub verify: bool,
    /// JSON Schema of the final answer; none means text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Box<RawValue>>,
    /// What a turn may use.
    #[serde(default)]
    pub limits: Limits,
}

impl AgentSpec {
    /// The tool of this name.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&ToolSpec> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// The spec as canonical JSON, the form that is stored and hashed.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a spec has string keys only, so it always encodes")
    }

    /// The hash of [`AgentSpec::to_json`]: equal for equal agents.
    #[must_use]
    pub fn fingerprint(&self) -> BlobHash {
        BlobHash::of(&self.to_json())
    }
}
