//! A route made ready: its models with their addresses, and how a request is laid over them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use mainspring_route::{Policy, Weights};
use mainspring_session::{
    AgentSpec, Api, Effect, ErrorCode, Failure, ModelSpec, ToolChoice, ToolSpec,
};
use serde_json::value::RawValue;

use super::choose::Conversations;
use super::request::{CompletionRequest, Streaming};
use super::variants::Variants;
use crate::agent::{Agent, AgentConfig, ModelAccess};
use crate::completion::Completion;

/// Somebody who checks answers, beside the checks that need nobody.
pub trait Verify: Send + Sync {
    /// Nothing where the answer is good, else the reason why it is not. `draft` is the completion
    /// as it would be given back.
    fn verify<'a>(&'a self, draft: &'a Completion) -> LocalBoxFuture<'a, Option<String>>;
}

/// What makes a route.
pub struct RouteConfig {
    /// What it is called, in messages and records.
    pub name: String,
    /// Its models, the one to try first at the front.
    pub models: Vec<ModelSpec>,
    /// How each of them is reached, in their order.
    pub access: Vec<ModelAccess>,
    /// Who checks answers.
    pub verify: Option<Arc<dyn Verify>>,
    /// What decides where a request begins and which answers count.
    pub policy: Policy,
    /// What was learnt, if anything.
    pub weights: Option<Arc<Weights>>,
}

/// Models to ask, made ready. Shared by all requests.
pub struct ModelRoute {
    base: Agent,
    variants: Variants,
    pub(crate) conversations: Conversations,
    pub(crate) policy: Policy,
    pub(crate) weights: Option<Arc<Weights>>,
    pub(crate) verify: Option<Arc<dyn Verify>>,
}

impl ModelRoute {
    /// Makes a route ready.
    ///
    /// # Errors
    /// `agent_invalid` if there is no model, one cannot be used, or the policy is out of bounds.
    pub fn new(config: RouteConfig) -> Result<Self, Failure> {
        let RouteConfig { name, models, access, verify, policy, weights } = config;
        policy.check().map_err(|found| Failure::new(ErrorCode::AGENT_INVALID, found))?;
        let spec = AgentSpec { name, models, ..AgentSpec::default() };
        let base = Agent::new(AgentConfig { spec, access, ..AgentConfig::default() })?;
        let (variants, conversations) = (Variants::default(), Conversations::default());
        Ok(Self { base, variants, conversations, policy, weights, verify })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.base.spec.name
    }

    /// Its models, the one to try first at the front.
    #[must_use]
    pub fn models(&self) -> &[ModelSpec] {
        &self.base.spec.models
    }

    /// The route with what a request says besides its messages.
    pub(crate) fn variant(&self, request: &CompletionRequest) -> Result<Arc<Agent>, Failure> {
        if request.messages.is_empty() {
            return Err(Failure::new(
                ErrorCode::AGENT_INVALID,
                "the request has no message, at least 1 is needed",
            ));
        }
        self.variants.get(key(request), || self.base.variant(self.spec(request)?))
    }

    fn spec(&self, request: &CompletionRequest) -> Result<AgentSpec, Failure> {
        let params = request.params.as_deref().map(fields).transpose()?.unwrap_or_default();
        let models = self.models().iter().map(|model| {
            let mut model = model.clone();
            model.stream = request.streaming != Streaming::Off;
            model.params = merged(&model, &params, request.output_tokens_max)?;
            Ok(model)
        });
        Ok(AgentSpec {
            name: self.name().to_owned(),
            instructions: request.instructions.clone(),
            tools: request.tools.iter().map(tool).collect(),
            models: models.collect::<Result<_, Failure>>()?,
            output_schema: request.output_schema.clone(),
            tool_choice: request.tool_choice.clone(),
            parallel_tool_calls: request.parallel_tool_calls,
            ..AgentSpec::default()
        })
    }
}

/// Tools are not run here, so what only matters to running them is as harmless as can be.
fn tool(tool: &super::request::ToolDef) -> ToolSpec {
    ToolSpec {
        name: tool.name.clone(),
        description: tool.description.clone(),
        parameters: tool.parameters.clone(),
        effect: Effect::Unsafe,
        timeout_ms: 1,
        attempts_max: 1,
        approve: mainspring_session::Approve::Never,
        reconcile: false,
    }
}

type Fields<'a> = BTreeMap<String, &'a RawValue>;

fn fields(raw: &RawValue) -> Result<Fields<'_>, Failure> {
    serde_json::from_str(raw.get()).map_err(|_| {
        let shown: String = raw.get().chars().take(100).collect();
        Failure::new(
            ErrorCode::AGENT_INVALID,
            format!("params of the request are {shown}, not a JSON object"),
        )
    })
}

/// Fields of a Chat Completions request that the other two APIs know under the same name.
const SHARED_PARAMS: [&str; 2] = ["temperature", "top_p"];
/// Fields that Responses knows besides.
const RESPONSES_PARAMS: [&str; 5] =
    ["metadata", "prompt_cache_key", "safety_identifier", "service_tier", "user"];
/// Where Chat Completions has a name of its own for the limit of an answer.
const OPENAI_HOST: &str = "api.openai.com";

/// The model's own parameters with those of the request over them. A server of another API gets
/// those that it knows; one of the same gets all.
fn merged(
    model: &ModelSpec,
    params: &Fields<'_>,
    output_tokens_max: Option<u64>,
) -> Result<Option<Box<RawValue>>, Failure> {
    if params.is_empty() && output_tokens_max.is_none() {
        return Ok(model.params.clone());
    }
    let mut all = model.params.as_deref().map(fields).transpose()?.unwrap_or_default();
    let limit = output_tokens_max
        .map(|tokens| serde_json::value::to_raw_value(&tokens).expect("a number always encodes"));
    if let Some(limit) = &limit {
        all.insert(limit_name(model, &all).to_owned(), limit);
    }
    let known = |name: &str| match model.api {
        Api::ChatCompletions | Api::Host => true,
        Api::Responses => SHARED_PARAMS.contains(&name) || RESPONSES_PARAMS.contains(&name),
        Api::Messages => SHARED_PARAMS.contains(&name),
    };
    let passed = params.iter().filter(|(name, _)| known(name));
    all.extend(passed.map(|(name, value)| (name.clone(), *value)));
    let raw = serde_json::value::to_raw_value(&all).expect("string keys and JSON values encode");
    Ok(Some(raw))
}

/// What a model's server calls the limit of an answer: as the model's own parameters have it, else
/// as its API does.
fn limit_name(model: &ModelSpec, own: &Fields<'_>) -> &'static str {
    let names = ["max_completion_tokens", "max_output_tokens", "max_tokens"];
    let usual = match model.api {
        Api::Responses => "max_output_tokens",
        Api::ChatCompletions if model.base_url.contains(OPENAI_HOST) => "max_completion_tokens",
        _ => "max_tokens",
    };
    names.into_iter().find(|name| own.contains_key(*name)).unwrap_or(usual)
}

/// All that makes a compiled form differ. Each part comes with its length, so that no two requests
/// have one key.
fn key(request: &CompletionRequest) -> Vec<u8> {
    let mut key = Vec::with_capacity(64 + request.instructions.len());
    let mut part = |bytes: &[u8]| {
        key.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        key.extend_from_slice(bytes);
    };
    part(request.instructions.as_bytes());
    part(&request.tools.len().to_le_bytes());
    for tool in &request.tools {
        part(tool.name.as_bytes());
        part(tool.description.as_bytes());
        part(tool.parameters.get().as_bytes());
    }
    part(&[
        u8::from(request.streaming != Streaming::Off),
        request.parallel_tool_calls.map_or(2, u8::from),
    ]);
    let (choice, name) = match &request.tool_choice {
        ToolChoice::Auto => (0, ""),
        ToolChoice::None => (1, ""),
        ToolChoice::Required => (2, ""),
        ToolChoice::Tool(name) => (3, name.as_str()),
    };
    part(&[choice]);
    part(name.as_bytes());
    part(request.output_schema.as_ref().map_or("", |schema| schema.get()).as_bytes());
    part(request.params.as_ref().map_or("", |params| params.get()).as_bytes());
    part(&request.output_tokens_max.unwrap_or(0).to_le_bytes());
    key
}
