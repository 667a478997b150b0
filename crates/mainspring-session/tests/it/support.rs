//! A session under test: an agent, the state, and the log that led to it.

use mainspring_session::{
    AgentSpec, Approve, BlobHash, CallStatus, Command, Effect, Event, Fact, Limits, Message,
    ModelSpec, Moment, RouteSpec, SessionId, State, ToolSpec, commands, decide,
};
use serde_json::value::RawValue;

use crate::fact;

/// The moment of every fact that does not say otherwise. Seed 0 gives the shortest backoff.
pub(crate) const NOW: Moment = Moment { at_us: 1_000_000, seed: 0 };

/// The store that sessions are in which do not say otherwise.
pub(crate) const STORE: &str = "store-1";

pub(crate) fn session_id() -> SessionId {
    SessionId::new("s-1").unwrap()
}

pub(crate) fn fingerprint() -> BlobHash {
    BlobHash::of(b"the agent")
}

fn tool(name: &str, effect: Effect, attempts_max: u32) -> ToolSpec {
    ToolSpec {
        name: name.to_owned(),
        description: String::new(),
        parameters: RawValue::from_string(r#"{"type":"object"}"#.to_owned()).unwrap(),
        effect,
        timeout_ms: 30_000,
        attempts_max,
        approve: Approve::Never,
        reconcile: false,
    }
}

pub(crate) fn model(name: &str) -> ModelSpec {
    ModelSpec {
        name: name.to_owned(),
        base_url: "http://127.0.0.1:1/v1".to_owned(),
        connect_ms_max: 1000,
        first_token_ms_max: 1000,
        total_ms_max: 1000,
        ..ModelSpec::default()
    }
}

/// An agent with these models and one tool of each effect: `look` (read, one attempt), `fetch`
/// (idempotent), `book` (keyed) and `send` (unsafe), each of three attempts.
pub(crate) fn agent(models: &[&str]) -> AgentSpec {
    AgentSpec {
        name: "clerk".to_owned(),
        tools: vec![
            tool("look", Effect::Read, 1),
            tool("fetch", Effect::Idempotent, 3),
            tool("book", Effect::Keyed, 3),
            tool("send", Effect::Unsafe, 3),
        ],
        models: models.iter().map(|name| model(name)).collect(),
        ..AgentSpec::default()
    }
}

/// The same agent with tools that people have a say in: `pay` (unsafe, a person is asked, and a
/// function can find out), `order` (keyed, a person is asked), `move` (idempotent, a function says
/// whether a person is asked) and `wire` (unsafe, the same).
pub(crate) fn asking(models: &[&str]) -> AgentSpec {
    let asks = |name, effect, approve| ToolSpec { approve, ..tool(name, effect, 3) };
    let mut spec = agent(models);
    let pay = asks("pay", Effect::Unsafe, Approve::Always);
    spec.tools.extend([
        ToolSpec { reconcile: true, ..pay },
        asks("order", Effect::Keyed, Approve::Always),
        asks("move", Effect::Idempotent, Approve::Policy),
        asks("wire", Effect::Unsafe, Approve::Policy),
    ]);
    spec
}

/// An agent whose answers are checked by a function of the user.
pub(crate) fn verifying(models: &[&str]) -> AgentSpec {
    AgentSpec { verify: true, ..agent(models) }
}

/// An agent whose smaller models are held against two further answers and a judge.
pub(crate) fn judged(models: &[&str]) -> AgentSpec {
    let route = RouteSpec { judge: Some(model("judge")), agreement: 2, ..RouteSpec::default() };
    AgentSpec { route: Some(Box::new(route)), ..agent(models) }
}

/// An agent with these limits and one model.
pub(crate) fn limited(limits: Limits) -> AgentSpec {
    AgentSpec { limits, ..agent(&["small"]) }
}

#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) spec: AgentSpec,
    pub(crate) state: State,
    pub(crate) log: Vec<Event>,
}

impl Session {
    /// A session without events.
    pub(crate) fn empty(spec: AgentSpec) -> Self {
        Self { spec, state: State::default(), log: Vec::new() }
    }

    /// A session between turns.
    pub(crate) fn started(spec: AgentSpec) -> Self {
        Self::empty(spec).after(fact::started())
    }

    /// A session whose first model call is under way.
    pub(crate) fn asked(spec: AgentSpec) -> Self {
        Self::started(spec).after(fact::input("hi"))
    }

    /// A session whose first answer asked for these tools.
    pub(crate) fn acting(spec: AgentSpec, tools: &[&str]) -> Self {
        Self::asked(spec).after(fact::answered(0, 1, fact::calls(0, tools)))
    }

    /// The session after one more fact.
    pub(crate) fn after(mut self, fact: Fact) -> Self {
        self.tell(fact);
        self
    }

    /// Tells a fact that must be taken; returns the events that follow, plain (see `event.rs`).
    pub(crate) fn tell(&mut self, fact: Fact) -> Vec<Event> {
        self.tell_at(fact, NOW)
    }

    pub(crate) fn tell_at(&mut self, fact: Fact, now: Moment) -> Vec<Event> {
        let events = decide(&mut self.state, &self.spec, fact, now).unwrap();
        self.log.extend(events.iter().cloned());
        assert_eq!(State::of(&self.log), self.state, "the log folds to the state");
        events.into_iter().map(crate::event::plain).collect()
    }

    /// What the engine must do about these events, the last of the log.
    pub(crate) fn orders(&self, events: &[Event]) -> Vec<Command> {
        commands(&self.state, &self.spec, events)
    }

    /// Where the calls of the step stand, in their order.
    pub(crate) fn statuses(&self) -> Vec<CallStatus> {
        self.state.calls().iter().map(|call| call.status.clone()).collect()
    }

    /// The session as its log was just after the last event of this kind.
    pub(crate) fn cut_after(mut self, kind: &str) -> Self {
        let last = self.log.iter().rposition(|event| event.kind() == kind);
        let last = last.unwrap_or_else(|| panic!("the log has a {kind} event"));
        self.log.truncate(last + 1);
        self.state = State::of(&self.log);
        self
    }

    /// The session as a new owner finds it: nothing is left but the log.
    pub(crate) fn reopened(mut self) -> (Self, Vec<Event>) {
        self.state = State::of(&self.log);
        let events = self.tell(fact::reopened());
        (self, events)
    }

    /// The last messages of the conversation.
    pub(crate) fn last_messages(&self, count: usize) -> &[Message] {
        &self.state.messages[self.state.messages.len() - count..]
    }
}

pub(crate) fn result(id: &str, name: &str, text: &str) -> Message {
    Message::Tool {
        call_id: id.to_owned(),
        name: name.to_owned(),
        text: text.to_owned(),
        is_error: false,
    }
}

pub(crate) fn error_result(id: &str, name: &str, text: &str) -> Message {
    Message::Tool {
        call_id: id.to_owned(),
        name: name.to_owned(),
        text: text.to_owned(),
        is_error: true,
    }
}

pub(crate) fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(Event::kind).collect()
}
