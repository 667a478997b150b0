//! The agents of a run: every effect, with and without people and functions to ask, one model or
//! two, with and without a function that checks answers.

use std::sync::Arc;

use mainspring_engine::{Agent, AgentConfig, Binding, ModelAccess};
use mainspring_session::{
    AgentSpec, Approve, Effect, Limits, ModelSpec, OutputMode, ToolMode, ToolSpec,
};
use serde_json::value::RawValue;

/// What a tool of a run is.
pub(crate) struct SimTool {
    pub(crate) name: &'static str,
    pub(crate) effect: Effect,
    pub(crate) approve: Approve,
    reconcile: bool,
}

const fn tool(name: &'static str, effect: Effect, approve: Approve, reconcile: bool) -> SimTool {
    SimTool { name, effect, approve, reconcile }
}

/// The tools, by the number that the host knows them by.
pub(crate) const TOOLS: [SimTool; 8] = [
    tool("look", Effect::Read, Approve::Never, false),
    tool("put", Effect::Idempotent, Approve::Never, false),
    tool("pay", Effect::Keyed, Approve::Never, false),
    tool("send", Effect::Unsafe, Approve::Never, false),
    tool("wire", Effect::Unsafe, Approve::Always, true),
    tool("book", Effect::Keyed, Approve::Policy, false),
    tool("drop", Effect::Unsafe, Approve::Policy, true),
    tool("sign", Effect::Unsafe, Approve::Always, false),
];

/// The tool of this name.
pub(crate) fn tool_named(name: &str) -> Option<&'static SimTool> {
    TOOLS.iter().find(|tool| tool.name == name)
}

/// How long a tool or a question about one may take, in milliseconds.
pub(crate) const TOOL_MS_MAX: u64 = 2_000;

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("the text is JSON")
}

fn tool_spec(tool: &SimTool) -> ToolSpec {
    ToolSpec {
        name: tool.name.to_owned(),
        description: String::new(),
        parameters: raw(
            r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}"#,
        ),
        effect: tool.effect,
        timeout_ms: TOOL_MS_MAX,
        attempts_max: 2,
        approve: tool.approve,
        reconcile: tool.reconcile,
    }
}

fn model_spec(name: &str) -> ModelSpec {
    ModelSpec {
        name: name.to_owned(),
        base_url: "http://127.0.0.1:9/v1".to_owned(),
        tool_mode: ToolMode::Native,
        output_mode: OutputMode::Native,
        stream: false,
        connect_ms_max: 1_000,
        first_token_ms_max: 1_000,
        total_ms_max: 1_000,
        params: None,
        price: None,
    }
}

fn agent(name: &str, models: &[&str], verifier: Option<u32>, turn_ms_max: u64) -> Arc<Agent> {
    let limits = Limits {
        steps_max: 6,
        tool_calls_per_step_max: 3,
        model_attempts_max: 3,
        repairs_max: 1,
        turn_ms_max,
        ..Limits::default()
    };
    let spec = AgentSpec {
        name: name.to_owned(),
        instructions: String::new(),
        tools: TOOLS.iter().map(tool_spec).collect(),
        models: models.iter().map(|name| model_spec(name)).collect(),
        verify: verifier.is_some(),
        output_schema: None,
        limits,
    };
    let access = models.iter().map(|_| ModelAccess::default()).collect();
    let bindings = (0..).zip(&TOOLS).map(|(number, _)| Binding::Host(number)).collect();
    let made = Agent::new(AgentConfig { spec, access, bindings, verifier });
    Arc::new(made.unwrap_or_else(|error| panic!("an agent of the simulation: {error}")))
}

/// All agents.
pub(crate) fn all() -> Vec<Arc<Agent>> {
    vec![
        agent("plain", &["one"], None, 600_000),
        agent("strict", &["small", "large"], Some(0), 20_000),
    ]
}
