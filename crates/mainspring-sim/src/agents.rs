//! The agents of a run: every effect, with and without people and functions to ask, one model or
//! two, with and without a function that checks answers.

use std::sync::Arc;

use mainspring_engine::{Agent, AgentConfig, Binding, ModelAccess, Payment};
use mainspring_session::{
    AgentSpec, Approve, Budget, Effect, Limits, ModelSpec, Policy, RouteSpec, SessionId, ToolSpec,
};
use serde_json::value::RawValue;

use crate::models::WINDOW_TOKENS;

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
        connect_ms_max: 1_000,
        first_token_ms_max: 1_000,
        total_ms_max: 1_000,
        // The others' windows are found by running into them.
        context_tokens: (name == "small").then_some(WINDOW_TOKENS),
        ..ModelSpec::default()
    }
}

fn agent(
    name: &str,
    models: &[&str],
    route: Option<RouteSpec>,
    (verifier, turn_ms_max): (Option<u32>, u64),
) -> Arc<Agent> {
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
        tools: TOOLS.iter().map(tool_spec).collect(),
        models: models.iter().map(|name| model_spec(name)).collect(),
        verify: verifier.is_some(),
        limits,
        route: route.map(Box::new),
        ..AgentSpec::default()
    };
    let access = models.iter().map(|_| ModelAccess::default()).collect();
    let bindings = (0..).zip(&TOOLS).map(|(number, _)| Binding::Host(number)).collect();
    let (judge, weights) = (ModelAccess::default(), None);
    let made = Agent::new(AgentConfig { spec, access, bindings, verifier, judge, weights });
    Arc::new(made.unwrap_or_else(|error| panic!("an agent of the simulation: {error}")))
}

/// The tenant that pays for some sessions.
pub(crate) const TENANT: &str = "acme";
/// Model calls that it pays for: few enough that most runs come to the end of it.
const TENANT_CALLS: u64 = 60;
/// Model calls that a session of it has a budget for.
const SESSION_CALLS: u64 = 25;

/// What tenants may spend.
pub(crate) fn budgets() -> Vec<(String, Budget)> {
    let budget = Budget { calls: Some(TENANT_CALLS), soft: Some(0.8), ..Budget::default() };
    vec![(TENANT.to_owned(), budget)]
}

/// Who pays for a session: for every third the tenant, and for every second of the others the
/// tenant with a budget of the session's own.
pub(crate) fn payment(session: &SessionId) -> Payment {
    let number = session.as_str().bytes().last().map_or(0, usize::from);
    let tenant = Some(TENANT.to_owned());
    match number % 3 {
        0 => Payment { tenant, ..Payment::default() },
        1 => {
            let budget =
                Budget { calls: Some(SESSION_CALLS), ms: Some(90_000), ..Budget::default() };
            Payment { tenant, budget: Some(budget), within: None }
        }
        _ => Payment::default(),
    }
}

/// A judge, further answers, much trying of other models, and drafts that are shown.
fn judged() -> RouteSpec {
    let policy = Policy { explore: 0.3, ..Policy::default() };
    let judge = Some(model_spec("judge"));
    RouteSpec { policy, judge, agreement: 2, show_draft: true, ..RouteSpec::default() }
}

/// All agents.
pub(crate) fn all() -> Vec<Arc<Agent>> {
    vec![
        agent("plain", &["one"], None, (None, 600_000)),
        agent("strict", &["small", "large"], None, (Some(0), 20_000)),
        agent("judged", &["small", "middle", "large"], Some(judged()), (None, 60_000)),
    ]
}
