//! A world around a session: it carries out commands as an engine does, loses its process at any
//! moment, and checks after every fact that no law is broken.

use std::collections::{BTreeMap, BTreeSet};

use mainspring_session::{
    AgentSpec, BlobHash, CallIndex, CallStatus, Command, Epoch, Event, Fact, Message, Moment,
    Phase, RejectAction, State, TRANSITIONS, ToolCall, commands, decide,
};

use crate::{event, fact, support};

/// Something that was ordered and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    Model(u32, u32),
    Tool(CallIndex, u32),
    Verdict,
    Timer(i64),
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) spec: AgentSpec,
    pub(crate) state: State,
    pub(crate) log: Vec<Event>,
    /// How much of the log has been written and carried out.
    durable: usize,
    pub(crate) now_us: i64,
    pub(crate) work: BTreeSet<Work>,
    /// Tool calls whose order has ended one way or another.
    pub(crate) ended: Vec<(CallIndex, u32)>,
    orders: BTreeMap<CallIndex, u32>,
}

impl World {
    pub(crate) fn new(spec: AgentSpec) -> Self {
        Self {
            spec,
            state: State::default(),
            log: Vec::new(),
            durable: 0,
            now_us: support::NOW.at_us,
            work: BTreeSet::new(),
            ended: Vec::new(),
            orders: BTreeMap::new(),
        }
    }

    /// A world that knows nothing but a log, as after a crash or a fork.
    pub(crate) fn reopened(spec: AgentSpec, log: &[Event]) -> Self {
        let mut world = Self::new(spec);
        world.log = log.to_vec();
        world.crash(true);
        world.carry_out();
        world
    }

    pub(crate) fn tell(&mut self, fact: Fact, seed: u64) {
        let before = self.state.clone();
        let pair = (self.state.phase.kind(), fact.kind());
        let now = Moment { at_us: self.now_us, seed };
        match decide(&mut self.state, &self.spec, fact, now) {
            Err(refused) => {
                assert_eq!((refused.phase, refused.fact), pair);
                assert!(!TRANSITIONS.contains(&pair), "{pair:?} was refused");
                assert_eq!(self.state, before, "a refusal changed the state");
            }
            Ok(events) => {
                assert!(TRANSITIONS.contains(&pair), "{pair:?} was taken");
                self.log.extend(events);
                assert_eq!(State::of(&self.log), self.state, "log and state differ");
                assert_transcript(&self.state);
                assert_log(&self.log, &self.spec);
            }
        }
    }

    /// Makes the log durable and does what it orders, as an engine does for a batch of facts.
    pub(crate) fn carry_out(&mut self) {
        let orders = commands(&self.state, &self.log[self.durable..]);
        self.durable = self.log.len();
        for order in orders {
            self.obey(order);
        }
        self.assert_not_stuck();
    }

    pub(crate) fn is_carried_out(&self) -> bool {
        self.durable == self.log.len()
    }

    fn obey(&mut self, order: Command) {
        match order {
            Command::CallModel(call) => {
                assert_eq!(self.state.phase, Phase::Calling(call), "no such model call");
                let fresh = self.work.insert(Work::Model(call.step, call.attempt));
                assert!(fresh, "{call:?} was ordered twice");
            }
            Command::CallTool { call, attempt } => {
                let current = self.state.call(call).expect("the call is of this step");
                assert_eq!(current.status, CallStatus::Running, "{call:?} does not run");
                assert_eq!(current.attempt, attempt);
                let fresh = self.work.insert(Work::Tool(call, attempt));
                assert!(fresh, "{call:?} was ordered twice");
                let count = self.orders.entry(call).or_default();
                *count += 1;
                let safe = repeatable(&self.spec, &current.call.name);
                assert!(safe || *count == 1, "unsafe {call:?} was ordered again");
            }
            Command::Verify => {
                let asked = matches!(&self.state.phase, Phase::Judging(pending) if pending.verify);
                assert!(asked, "no answer waits for a verdict");
                self.work.insert(Work::Verdict);
            }
            Command::Wait { until_us } => {
                self.work.insert(Work::Timer(until_us));
            }
            Command::CancelOutstanding => {
                for work in std::mem::take(&mut self.work) {
                    if let Work::Tool(call, attempt) = work {
                        self.ended.push((call, attempt));
                    }
                }
            }
            Command::Finish => assert!(self.state.outcome.is_some() || self.state.is_open()),
        }
    }

    /// Loses everything but the log. What was decided since the last order may or may not have
    /// reached the disk.
    pub(crate) fn crash(&mut self, keep: bool) {
        if !keep {
            self.log.truncate(self.durable);
        }
        let stored: Vec<_> = self.log.iter().map(encode).collect();
        let read: Vec<Event> = stored.iter().map(|json| decode(json)).collect();
        assert_eq!(read, self.log, "the log reads back as it was written");
        self.state = State::of(&read);
        self.durable = self.log.len();
        self.work.clear();
        self.ended.clear();
        if self.state.session.is_some() {
            let fact = Fact::Reopened {
                epoch: Epoch(self.state.epoch.0 + 1),
                fingerprint: BlobHash::of(b"the agent"),
            };
            self.tell(fact, 0);
        }
    }

    /// Whatever waits, something outside is on its way that will bring it on.
    fn assert_not_stuck(&self) {
        let awaited = |work: Work| assert!(self.work.contains(&work), "nobody works on {work:?}");
        match &self.state.phase {
            Phase::Empty | Phase::Ready => {}
            Phase::Calling(call) => awaited(Work::Model(call.step, call.attempt)),
            Phase::Backoff(_, at_us) => awaited(Work::Timer(*at_us)),
            Phase::Judging(pending) => {
                assert!(pending.verify && pending.problems.is_empty(), "{pending:?}");
                awaited(Work::Verdict);
            }
            Phase::Acting(calls) => {
                assert!(calls.iter().any(|call| call.outstanding()), "all have ended");
                for call in calls {
                    match call.status {
                        CallStatus::Planned(_) => panic!("{call:?} was not begun"),
                        CallStatus::Running => awaited(Work::Tool(call.index, call.attempt)),
                        CallStatus::Backoff(at_us) => awaited(Work::Timer(at_us)),
                        CallStatus::Finished(_) | CallStatus::Failed(_) => {}
                    }
                }
            }
            other => panic!("{other:?} waits for nothing"),
        }
    }

    /// From here on all goes well: the turn must come to its end.
    pub(crate) fn drain(&mut self) {
        self.carry_out();
        for _ in 0..1000 {
            if !self.state.is_open() {
                return;
            }
            let work = self.work.pop_first().expect("an open turn has work");
            let fact = match work {
                Work::Model(step, attempt) => fact::answered(step, attempt, fact::text("done")),
                Work::Tool(call, attempt) => fact::returned(call.0, attempt, "fine"),
                Work::Verdict => fact::accepted(),
                Work::Timer(at_us) => {
                    self.now_us = self.now_us.max(at_us);
                    Fact::TimerFired
                }
            };
            self.tell(fact, 0);
            self.carry_out();
        }
        panic!("the turn does not end: {:?}", self.state.phase);
    }
}

fn encode(event: &Event) -> String {
    let mut json = Vec::new();
    event.write_json(&mut json);
    String::from_utf8(json).expect("JSON is UTF-8")
}

fn decode(json: &str) -> Event {
    assert!(!json.contains('\n'), "an event is one line");
    serde_json::from_str(json).expect("a stored event reads back")
}

fn repeatable(spec: &AgentSpec, tool: &str) -> bool {
    spec.tool(tool).is_some_and(|tool| tool.effect.repeatable())
}

/// Each tool call has one result, in call order, before anybody else speaks; only the calls of
/// the step under way wait for theirs.
fn assert_transcript(state: &State) {
    let mut open: Vec<&ToolCall> = Vec::new();
    for message in &state.messages {
        match message {
            Message::Tool { call_id, name, .. } => {
                assert!(!open.is_empty(), "a result without a call");
                let call = open.remove(0);
                assert_eq!((call_id, name), (&call.id, &call.name));
            }
            Message::User { .. } => assert!(open.is_empty(), "the user interrupts {open:?}"),
            Message::Assistant { tool_calls, .. } => {
                assert!(open.is_empty(), "the model interrupts {open:?}");
                open = tool_calls.iter().collect();
            }
        }
    }
    let running: Vec<_> = state.calls().iter().map(|call| &call.call).collect();
    assert_eq!(open, running, "the calls without results are those of this step");
}

/// What holds of every log, read from the front.
fn assert_log(log: &[Event], spec: &AgentSpec) {
    let mut attempts: BTreeMap<CallIndex, u32> = BTreeMap::new();
    let (mut open, mut first_step, mut next_step, mut repairs) = (false, 0, 0, 0);
    let mut lost_attempts = 0;
    for entry in log {
        match entry {
            Event::InputReceived(_) => {
                assert!(!open, "a turn inside a turn");
                (open, first_step, repairs) = (true, next_step, 0);
            }
            Event::ModelCallStarted(call) => {
                assert!(open && call.step - first_step < spec.limits.steps_max, "{call:?}");
                let same_step = call.step + 1 == next_step && call.attempt > 1;
                let new_step = call.step == next_step && call.attempt == 1;
                assert!(same_step || new_step, "{call:?} after {next_step} steps");
                next_step = call.step + 1;
                lost_attempts = if call.attempt == 1 { 0 } else { lost_attempts };
            }
            Event::ModelCallFailed(failed) if failed.retry_at_us.is_some() => {
                let lost = failed.error.code.as_str() == "process_lost";
                let counted = failed.attempt - lost_attempts;
                assert!(lost || counted < spec.limits.model_attempts_max);
                lost_attempts += u32::from(lost);
            }
            Event::AnswerRejected(rejected) if rejected.action == RejectAction::Repair => {
                repairs += 1;
                assert!(repairs <= spec.limits.repairs_max, "{repairs} repairs");
            }
            Event::ToolCallStarted(call) => {
                let last = attempts.insert(call.call, call.attempt).unwrap_or(0);
                assert_eq!(call.attempt, last + 1, "attempts go up by one");
                let safe = repeatable(spec, &call.name);
                assert!(safe || call.attempt == 1, "unsafe {call:?} started again");
                let expected = event::tool_started(call.call.0, call.attempt, &call.name);
                assert_eq!(*entry, expected, "the effect id is the same for every attempt");
            }
            event if event.is_terminal() => {
                assert!(open, "a turn ended twice");
                open = false;
            }
            _ => {}
        }
    }
}
