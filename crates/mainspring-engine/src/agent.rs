//! An agent made ready to run: its spec with everything compiled that does not change.

use std::collections::HashMap;
use std::sync::Arc;

use mainspring_mcp::StdioConfig;
use mainspring_models::{CallPolicy, Endpoint, EndpointSet, Weighted};
use mainspring_session::{AgentSpec, BlobHash, ErrorCode, Failure, ModelSpec, ToolIndex, ToolSpec};
use mainspring_wire::Codec;
use serde::Deserialize;

use crate::cache;
use crate::check::Schema;
use crate::deferred;
use crate::route::{self, StoredOnce};

/// How a model's server is reached: what a spec must not hold.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelAccess {
    /// The key, if the server wants one.
    pub api_key: Option<String>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// The function of the host that stands in the place of a server, by its number.
    pub adapter: Option<u32>,
    /// The endpoints that share the model's calls; none: the spec's own address with the key above.
    pub endpoints: Vec<EndpointAccess>,
}

/// One of several endpoints of a model.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointAccess {
    /// Where its API begins; none: where the spec says.
    pub base_url: Option<String>,
    /// The key, if the server wants one.
    pub api_key: Option<String>,
    /// Its share of the sessions, relative to the others'.
    pub weight: f64,
}

/// Where a tool runs.
#[derive(Debug, Clone)]
pub enum Binding {
    /// In the host, by the number the host gave it.
    Host(u32),
    /// On an MCP server, under this name.
    Mcp {
        /// The server.
        server: Arc<StdioConfig>,
        /// The tool's name there.
        tool: String,
    },
    /// Here: it finds deferred tools.
    Search,
    /// Nowhere: a call of it stands for a call of the tool that it names.
    StandIn,
}

/// What makes an agent.
#[derive(Default)]
pub struct AgentConfig {
    /// What it is.
    pub spec: AgentSpec,
    /// How each of its models is reached, in their order.
    pub access: Vec<ModelAccess>,
    /// Where each of its tools runs, in their order.
    pub bindings: Vec<Binding>,
    /// The function that checks its answers, by the number the host gave it.
    pub verifier: Option<u32>,
    /// How its judge is reached, if it has one.
    pub judge: ModelAccess,
    /// What was learnt about its models: the file that the training wrote.
    pub weights: Option<Arc<[u8]>>,
}

/// An agent, ready to run. Shared by all its sessions.
pub struct Agent {
    pub(crate) spec: AgentSpec,
    pub(crate) spec_json: Arc<[u8]>,
    pub(crate) fingerprint: BlobHash,
    pub(crate) tiers: Vec<Tier>,
    pub(crate) tools: HashMap<String, BoundTool>,
    pub(crate) output: Option<Schema>,
    pub(crate) verifier: Option<u32>,
    /// Finds the deferred tools.
    pub(crate) index: ToolIndex,
    pub(crate) judge: Option<Tier>,
    pub(crate) weights: StoredOnce,
}

/// One of an agent's models, with its codec and address.
pub(crate) struct Tier {
    pub(crate) codec: Arc<Codec>,
    pub(crate) endpoints: Arc<EndpointSet>,
    /// Hash of what a request body has beside the messages.
    pub(crate) head: u64,
    /// Whether the provider wants to be told which requests share a beginning.
    pub(crate) cache_key: bool,
}

impl Tier {
    pub(crate) fn new(
        spec: &AgentSpec,
        model: &ModelSpec,
        endpoints: Arc<EndpointSet>,
    ) -> Result<Self, Failure> {
        let codec = Codec::new(spec, model, model.stream)?;
        let head = cache::hash(0, &codec.body(&[]));
        let cache_key = cache::takes_key(model);
        Ok(Self { codec: Arc::new(codec), endpoints, head, cache_key })
    }
}

/// A tool with its compiled schema.
pub(crate) struct BoundTool {
    pub(crate) schema: Schema,
    pub(crate) binding: Binding,
    pub(crate) timeout_ms: u64,
}

impl Agent {
    /// Compiles an agent.
    ///
    /// # Errors
    /// `agent_invalid` if it has no model, if tools and bindings do not pair up, if a tool's name
    /// is used twice; `tool_schema_invalid`; the codec's and the endpoint's own errors.
    pub fn new(config: AgentConfig) -> Result<Self, Failure> {
        let AgentConfig { mut spec, access, mut bindings, verifier, judge, weights } = config;
        spec.verify = verifier.is_some();
        deferred::complete(&mut spec, &mut bindings)?;
        route::attach(&mut spec, weights.as_deref())?;
        if spec.models.is_empty() {
            return Err(invalid(&spec, "has no model, at least 1 is needed"));
        }
        if spec.models.len() != access.len() || spec.tools.len() != bindings.len() {
            return Err(invalid(&spec, "has models or tools without a counterpart"));
        }
        let shown = deferred::shown(&spec);
        let tiers = spec
            .models
            .iter()
            .zip(&access)
            .map(|(model, access)| Tier::new(&shown, model, Arc::new(endpoints(model, access)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        let mut tools = HashMap::with_capacity(bindings.len());
        for (tool, binding) in spec.tools.iter().zip(bindings) {
            let bound = BoundTool::new(tool, binding)?;
            if tools.insert(tool.name.clone(), bound).is_some() {
                return Err(invalid(&spec, &format!("has two tools named {:?}", tool.name)));
            }
        }
        let output = compile_output(&spec)?;
        let judge = route::judge(&spec, |model| endpoints(model, &judge).map(Arc::new))?;
        let spec_json: Arc<[u8]> = spec.to_json().into();
        let fingerprint = BlobHash::of(&spec_json);
        let index = ToolIndex::new(spec.deferred_tools());
        drop(shown);
        let weights = StoredOnce::new(weights);
        Ok(Self {
            spec,
            spec_json,
            fingerprint,
            tiers,
            tools,
            output,
            verifier,
            index,
            judge,
            weights,
        })
    }

    /// What the agent is.
    #[must_use]
    pub fn spec(&self) -> &AgentSpec {
        &self.spec
    }

    /// The agent as an older spec has it, with the functions and keys of this one.
    ///
    /// # Errors
    /// `agent_changed` if a tool or a model of the older spec is not to be had in this agent.
    pub(crate) fn pinned(&self, spec: AgentSpec) -> Result<Self, Failure> {
        let gone = |what: &str, name: &str| {
            let message = format!("agent {:?} has no {what} {name:?} any more", self.spec.name);
            Failure::new(ErrorCode::AGENT_CHANGED, message)
                .with_hint("keep what running sessions use, or resume with on_change=\"continue\"")
        };
        let shown = deferred::shown(&spec);
        let tier_of = |model: &ModelSpec| {
            let same = |own: &&ModelSpec| own.name == model.name && own.base_url == model.base_url;
            let tiers = self.spec.models.iter().zip(&self.tiers);
            let found = tiers.into_iter().find(|(own, _)| same(own));
            let (own, tier) = found.ok_or_else(|| gone("model", &model.name))?;
            // The address is that of this agent's API, so it is this API that is spoken.
            let model = ModelSpec { api: own.api, ..model.clone() };
            Tier::new(&shown, &model, Arc::clone(&tier.endpoints))
        };
        let tiers = spec.models.iter().map(tier_of).collect::<Result<Vec<_>, Failure>>()?;
        let mut tools = HashMap::with_capacity(spec.tools.len());
        for tool in &spec.tools {
            let own = self.tools.get(&tool.name).map(|own| own.binding.clone());
            let binding = deferred::binding(&spec, tool).or(own);
            let binding = binding.ok_or_else(|| gone("tool", &tool.name))?;
            tools.insert(tool.name.clone(), BoundTool::new(tool, binding)?);
        }
        if spec.verify && self.verifier.is_none() {
            return Err(gone("verify function of", "route"));
        }
        let output = compile_output(&spec)?;
        let judge = route::judge(&spec, |model| {
            let endpoints = self.judge.as_ref().map(|judge| Arc::clone(&judge.endpoints));
            let same = self.spec.route.as_ref().and_then(|route| route.judge.as_ref());
            let same = same.filter(|own| own.base_url == model.base_url && own.name == model.name);
            endpoints.filter(|_| same.is_some()).ok_or_else(|| gone("judge", &model.name))
        })?;
        let spec_json: Arc<[u8]> = spec.to_json().into();
        let fingerprint = BlobHash::of(&spec_json);
        let verifier = self.verifier.filter(|_| spec.verify);
        let index = ToolIndex::new(spec.deferred_tools());
        drop(shown);
        // The session that the spec comes from has stored its weights.
        let weights = StoredOnce::default();
        Ok(Self {
            spec,
            spec_json,
            fingerprint,
            tiers,
            tools,
            output,
            verifier,
            index,
            judge,
            weights,
        })
    }

    /// The same models, reached the same way, under another spec that names them in the same order
    /// and whose tools run nowhere: for calls without a session.
    ///
    /// # Errors
    /// `agent_invalid` if a tool's name is used twice; `tool_schema_invalid`; the codec's errors.
    pub(crate) fn variant(&self, spec: AgentSpec) -> Result<Self, Failure> {
        let tier =
            |(model, own): (&ModelSpec, &Tier)| Tier::new(&spec, model, Arc::clone(&own.endpoints));
        let tiers = spec.models.iter().zip(&self.tiers).map(tier);
        let tiers = tiers.collect::<Result<Vec<_>, Failure>>()?;
        let mut tools = HashMap::with_capacity(spec.tools.len());
        for tool in &spec.tools {
            let bound = BoundTool::new(tool, Binding::Host(0))?;
            if tools.insert(tool.name.clone(), bound).is_some() {
                return Err(invalid(&spec, &format!("has two tools named {:?}", tool.name)));
            }
        }
        let output = compile_output(&spec)?;
        let (spec_json, fingerprint) = (Arc::from([]), self.fingerprint.clone());
        let index = ToolIndex::new(&[]);
        let weights = StoredOnce::default();
        Ok(Self {
            spec,
            spec_json,
            fingerprint,
            tiers,
            tools,
            output,
            verifier: None,
            index,
            judge: None,
            weights,
        })
    }

    /// The hash of its spec.
    #[must_use]
    pub fn fingerprint(&self) -> &BlobHash {
        &self.fingerprint
    }
}

impl BoundTool {
    fn new(tool: &ToolSpec, binding: Binding) -> Result<Self, Failure> {
        let schema = Schema::compile(&tool.parameters, &format!("tool {:?}", tool.name))?;
        Ok(Self { schema, binding, timeout_ms: tool.timeout_ms })
    }
}

fn endpoints(model: &ModelSpec, access: &ModelAccess) -> Result<EndpointSet, Failure> {
    if let Some(number) = access.adapter {
        return EndpointSet::single(model, Endpoint::adapter(number));
    }
    let make = |base_url: &str, api_key: Option<&str>, weight: f64| {
        let endpoint = Endpoint::new(model.api, base_url, api_key, &access.headers)?;
        Ok(Weighted { endpoint: Arc::new(endpoint), weight })
    };
    let made = match access.endpoints.is_empty() {
        true => vec![make(&model.base_url, access.api_key.as_deref(), 1.0)?],
        false => access
            .endpoints
            .iter()
            .map(|each| {
                let base_url = each.base_url.as_ref().unwrap_or(&model.base_url);
                make(base_url, each.api_key.as_deref(), each.weight)
            })
            .collect::<Result<Vec<_>, Failure>>()?,
    };
    EndpointSet::new(&model.name, made, CallPolicy::of(model))
}

fn compile_output(spec: &AgentSpec) -> Result<Option<Schema>, Failure> {
    let schema = spec.output_schema.as_ref();
    schema.map(|schema| Schema::compile(schema, "the output type")).transpose()
}

fn invalid(spec: &AgentSpec, what: &str) -> Failure {
    Failure::new(ErrorCode::AGENT_INVALID, format!("agent {:?} {what}", spec.name))
}
