//! An agent made ready to run: its spec with everything compiled that does not change.

use std::collections::HashMap;
use std::sync::Arc;

use mainspring_mcp::StdioConfig;
use mainspring_models::Endpoint;
use mainspring_session::{AgentSpec, BlobHash, ErrorCode, Failure, ModelSpec, ToolSpec};
use mainspring_wire::ChatCodec;

use crate::check::Schema;

/// How a model's server is reached: what a spec must not hold.
#[derive(Clone, Default)]
pub struct ModelAccess {
    /// The key, if the server wants one.
    pub api_key: Option<String>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
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
}

/// What makes an agent.
pub struct AgentConfig {
    /// What it is.
    pub spec: AgentSpec,
    /// How each of its models is reached, in their order.
    pub access: Vec<ModelAccess>,
    /// Where each of its tools runs, in their order.
    pub bindings: Vec<Binding>,
    /// The function that checks its answers, by the number the host gave it.
    pub verifier: Option<u32>,
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
}

/// One of an agent's models, with its codec and address.
pub(crate) struct Tier {
    pub(crate) codec: Arc<ChatCodec>,
    pub(crate) endpoint: Arc<Endpoint>,
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
        let AgentConfig { mut spec, access, bindings, verifier } = config;
        spec.verify = verifier.is_some();
        if spec.models.is_empty() {
            return Err(invalid(&spec, "has no model, at least 1 is needed"));
        }
        if spec.models.len() != access.len() || spec.tools.len() != bindings.len() {
            return Err(invalid(&spec, "has models or tools without a counterpart"));
        }
        let tiers = spec
            .models
            .iter()
            .zip(&access)
            .map(|(model, access)| {
                let codec = ChatCodec::new(&spec, model, model.stream)?;
                let key = access.api_key.as_deref();
                let endpoint = Endpoint::new(&model.base_url, key, &access.headers)?;
                Ok(Tier { codec: Arc::new(codec), endpoint: Arc::new(endpoint) })
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        let mut tools = HashMap::with_capacity(bindings.len());
        for (tool, binding) in spec.tools.iter().zip(bindings) {
            let bound = BoundTool::new(tool, binding)?;
            if tools.insert(tool.name.clone(), bound).is_some() {
                return Err(invalid(&spec, &format!("has two tools named {:?}", tool.name)));
            }
        }
        let output = compile_output(&spec)?;
        let spec_json: Arc<[u8]> = spec.to_json().into();
        let fingerprint = BlobHash::of(&spec_json);
        Ok(Self { spec, spec_json, fingerprint, tiers, tools, output, verifier })
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
        let tier_of = |model: &ModelSpec| {
            let same = |own: &&ModelSpec| own.name == model.name && own.base_url == model.base_url;
            let tiers = self.spec.models.iter().zip(&self.tiers);
            let found = tiers.into_iter().find(|(own, _)| same(own));
            let (_, tier) = found.ok_or_else(|| gone("model", &model.name))?;
            let codec = ChatCodec::new(&spec, model, model.stream)?;
            Ok(Tier { codec: Arc::new(codec), endpoint: Arc::clone(&tier.endpoint) })
        };
        let tiers = spec.models.iter().map(tier_of).collect::<Result<Vec<_>, Failure>>()?;
        let mut tools = HashMap::with_capacity(spec.tools.len());
        for tool in &spec.tools {
            let own = self.tools.get(&tool.name).ok_or_else(|| gone("tool", &tool.name))?;
            tools.insert(tool.name.clone(), BoundTool::new(tool, own.binding.clone())?);
        }
        if spec.verify && self.verifier.is_none() {
            return Err(gone("verify function of", "route"));
        }
        let output = compile_output(&spec)?;
        let spec_json: Arc<[u8]> = spec.to_json().into();
        let fingerprint = BlobHash::of(&spec_json);
        let verifier = self.verifier.filter(|_| spec.verify);
        Ok(Self { spec, spec_json, fingerprint, tiers, tools, output, verifier })
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

fn compile_output(spec: &AgentSpec) -> Result<Option<Schema>, Failure> {
    let schema = spec.output_schema.as_ref();
    schema.map(|schema| Schema::compile(schema, "the output type")).transpose()
}

fn invalid(spec: &AgentSpec, what: &str) -> Failure {
    Failure::new(ErrorCode::AGENT_INVALID, format!("agent {:?} {what}", spec.name))
}
