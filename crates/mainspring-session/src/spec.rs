//! What an agent is, as data: instructions, tools, models, limits.
//!
//! A session records the hash of its spec, and the spec once, so that a resumed run can tell
//! whether the agent is still the same. A spec never holds a secret.

use std::sync::Arc;

use mainspring_route::{StepClass, Weights};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::compaction::Compaction;
use crate::ids::BlobHash;
use crate::limits::Limits;
use crate::message::Usage;
use crate::routing::RouteSpec;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolMode {
    /// Through the provider's own tool calls.
    #[default]
    Native,
    /// By an answer held to a JSON Schema: for models that print no tool calls.
    JsonSchema,
}

/// How a model is held to an output schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputMode {
    /// The provider constrains the answer (`response_format`).
    #[default]
    Native,
    /// The schema is put into the instructions, and the answer is checked.
    Prompt,
}

/// Which API a model's server speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// OpenAI's Chat Completions, which most servers speak.
    #[default]
    ChatCompletions,
    /// OpenAI's Responses.
    Responses,
    /// Anthropic's Messages.
    Messages,
    /// None: the host calls the model.
    Host,
}

impl Api {
    fn is_default(&self) -> bool {
        *self == Api::default()
    }
}

/// Something that some models can do and others cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ability {
    /// It calls tools.
    Tools,
    /// It calls several tools in one answer.
    ParallelTools,
    /// It sees pictures.
    Images,
    /// Its server holds an answer to a JSON Schema.
    StructuredOutput,
    /// It thinks before it answers.
    Reasoning,
    /// It tells log-probabilities.
    Logprobs,
}

/// Whether a model may or must call tools in the first step of a turn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// As it sees fit.
    #[default]
    Auto,
    /// It must not, in any step.
    None,
    /// It must call one at least before its first answer of a turn.
    Required,
    /// It must call this one before its first answer of a turn.
    Tool(String),
}

impl ToolChoice {
    fn is_auto(&self) -> bool {
        *self == ToolChoice::Auto
    }

    /// Whether a call is forced.
    #[must_use]
    pub fn is_forced(&self) -> bool {
        matches!(self, ToolChoice::Required | ToolChoice::Tool(_))
    }
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
    /// For a million tokens put into the provider's cache; none means the price of reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_usd: Option<f64>,
    /// Tokens read by one call from which on all of its tokens have other prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long: Option<LongPrice>,
}

/// How prices change where a call reads many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongPrice {
    /// The prices change above this many tokens read, cached ones included.
    pub above_tokens: u64,
    /// What the prices of tokens read, from a cache or not, are multiplied by.
    pub input_factor: f64,
    /// What the price of tokens written is multiplied by.
    pub output_factor: f64,
}

impl Price {
    /// What these tokens of one call cost, in US dollars.
    #[must_use]
    pub fn of(self, usage: Usage) -> f64 {
        let long = self.long.filter(|long| usage.input_tokens > long.above_tokens);
        let (input_factor, output_factor) =
            long.map_or((1.0, 1.0), |long| (long.input_factor, long.output_factor));
        let cached = usage.cached_tokens.min(usage.input_tokens);
        let kept = usage.cache_write_tokens.min(usage.input_tokens - cached);
        let fresh = (usage.input_tokens - cached - kept) as f64 * self.input_usd;
        let reused = cached as f64 * self.cached_usd.unwrap_or(self.input_usd);
        let stored = kept as f64 * self.cache_write_usd.unwrap_or(self.input_usd);
        let written = usage.output_tokens as f64 * self.output_usd;
        ((fresh + reused + stored) * input_factor + written * output_factor) / 1e6
    }
}

/// What may be asked of a model, with each key of it. Nothing stands for no limit that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelLimits {
    /// Requests in any minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Tokens, read and written, in any minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Calls under way at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency_max: Option<u32>,
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
    /// Which API its server speaks.
    #[serde(default, skip_serializing_if = "Api::is_default")]
    pub api: Api,
    /// Whether to ask for log-probabilities.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub logprobs: bool,
    /// Tokens it can read and write in one call, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u64>,
    /// Tokens it can write in one call, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens_max: Option<u64>,
    /// What it can do; none: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abilities: Option<Vec<Ability>>,
    /// What may be asked of it with each key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ModelLimits>,
    /// Whether a call whose first token is late is made a second time; none: where the model has
    /// more than one endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<bool>,
}

impl ModelSpec {
    /// Whether it has an ability; none: not known.
    #[must_use]
    pub fn can(&self, ability: Ability) -> Option<bool> {
        self.abilities.as_ref().map(|abilities| abilities.contains(&ability))
    }
}

impl Default for ModelSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            base_url: String::new(),
            tool_mode: ToolMode::default(),
            output_mode: OutputMode::default(),
            stream: false,
            connect_ms_max: default_connect_ms_max(),
            first_token_ms_max: default_first_token_ms_max(),
            total_ms_max: default_total_ms_max(),
            params: None,
            price: None,
            api: Api::default(),
            logprobs: false,
            context_tokens: None,
            output_tokens_max: None,
            abilities: None,
            limits: None,
            hedge: None,
        }
    }
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
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// Whether its models may or must call tools.
    #[serde(default, skip_serializing_if = "ToolChoice::is_auto")]
    pub tool_choice: ToolChoice,
    /// Whether one answer may call several tools; none: as the model's server has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// What a turn may use.
    #[serde(default)]
    pub limits: Limits,
    /// How many of the last `tools` no model is shown: it finds them with `tool_search` and calls them
    /// with `tool_call`, which come before them in `tools`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deferred: u32,
    /// What to do when the conversation outgrows a model.
    #[serde(default, skip_serializing_if = "Compaction::is_default")]
    pub compaction: Compaction,
    /// How its models share its steps; none means the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Box<RouteSpec>>,
    /// What its steps are for, if the user says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_class: Option<StepClass>,
    /// The learnt weights that `route` names, attached where the agent runs or is replayed.
    #[serde(skip)]
    pub weights: Option<Arc<Weights>>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl AgentSpec {
    /// The tool of this name.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&ToolSpec> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// The tools that a model is shown.
    #[must_use]
    pub fn listed_tools(&self) -> &[ToolSpec] {
        &self.tools[..self.tools.len().saturating_sub(self.deferred as usize)]
    }

    /// The tools that a model has to search for.
    #[must_use]
    pub fn deferred_tools(&self) -> &[ToolSpec] {
        &self.tools[self.tools.len().saturating_sub(self.deferred as usize)..]
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
