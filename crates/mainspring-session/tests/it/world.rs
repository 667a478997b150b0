//! A world around a session: it carries out commands as an engine does, loses its process at any
//! moment, copies, forks, and checks after every fact that no law is broken (`ledger.rs`).

use std::collections::{BTreeMap, BTreeSet};

use mainspring_session::{
    AgentSpec, ApprovalId, Approve, CallIndex, CallStatus, Check, Command, EffectId, EffectOutcome,
    Epoch, Event, Fact, ForkEdit, Message, ModelCallFinished, Moment, Phase, Problem, Record,
    Recorded, SCHEMA_VERSION, Seq, SessionId, State, TRANSITIONS, ToolCallStarted, ToolCallState,
    commands, decide,
};
use serde_json::value::RawValue;

use crate::fact;
use crate::ledger::assert_log;
use crate::support::{self, STORE};

/// Something that was ordered and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    Model(u32, u32),
    Summary(u32),
    Tool(CallIndex, u32),
    Policy(CallIndex),
    Reconcile(CallIndex),
    Verdict,
    Check(u32, Check),
    Timer(i64),
}

/// Who takes a session over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    /// Whether the store was copied, and the copy goes on.
    pub(crate) copy: bool,
    /// Whether it only records what it is told.
    pub(crate) held: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) spec: AgentSpec,
    pub(crate) state: State,
    pub(crate) log: Vec<Event>,
    /// When each event of the log was decided.
    at_us: Vec<i64>,
    /// How long the log was after each decision.
    ends: Vec<usize>,
    /// How much of the log has been written and carried out.
    durable: usize,
    pub(crate) now_us: i64,
    pub(crate) work: BTreeSet<Work>,
    /// Tool calls whose order has ended one way or another.
    pub(crate) ended: Vec<(CallIndex, u32)>,
    /// How often each call was ordered since it was last found out that it was not done.
    orders: BTreeMap<CallIndex, u32>,
    /// Stores and sessions so far; each copy and each fork has a name of its own.
    names: u32,
}

impl World {
    pub(crate) fn new(spec: AgentSpec) -> Self {
        Self {
            spec,
            state: State::default(),
            log: Vec::new(),
            at_us: Vec::new(),
            ends: Vec::new(),
            durable: 0,
            now_us: support::NOW.at_us,
            work: BTreeSet::new(),
            ended: Vec::new(),
            orders: BTreeMap::new(),
            names: 2,
        }
    }

    pub(crate) fn tell(&mut self, fact: Fact) {
        let before = self.state.clone();
        let pair = (self.state.phase.kind(), fact.kind());
        let now = Moment { at_us: self.now_us, seed: self.seed(&fact) };
        let allowed = match &fact {
            Fact::PolicyAnswered { call, needed: false } => Some(*call),
            _ => None,
        };
        match decide(&mut self.state, &self.spec, fact, now) {
            Err(refused) => {
                assert_eq!((refused.phase, refused.fact), pair);
                assert!(!TRANSITIONS.contains(&pair), "{pair:?} was refused");
                assert_eq!(self.state, before, "a refusal changed the state");
            }
            Ok(events) => {
                assert!(TRANSITIONS.contains(&pair), "{pair:?} was taken");
                self.at_us.extend(events.iter().map(|_| now.at_us));
                self.log.extend(events.iter().cloned());
                self.ends.push(self.log.len());
                assert_eq!(State::of(&self.log), self.state, "log and state differ");
                assert_transcript(&self.state);
                assert_log(&self.log, &self.spec);
                self.assert_effect_ids(&before, &events);
                self.assert_policies(&before, &events, allowed);
            }
        }
    }

    fn seed(&self, fact: &Fact) -> u64 {
        let session = match fact {
            Fact::Started { session, .. } | Fact::Forked { session, .. } => Some(session),
            _ => self.state.session.as_ref(),
        };
        session.map_or(0, |session| Moment::seed_of(session, self.state.next_seq))
    }

    /// A call keeps its id, and one that is new, or has got other arguments, has that of what it
    /// does.
    fn assert_effect_ids(&self, before: &State, events: &[Event]) {
        for event in events {
            let Event::ToolCallStarted(ToolCallStarted { call, effect_id, .. }) = event else {
                continue;
            };
            let Some(now) = self.state.call(*call) else { continue };
            let kept = before
                .call(*call)
                .filter(|old| old.call.arguments == now.call.arguments)
                .and_then(|old| old.effect_id.clone());
            let session = self.state.session.as_ref().expect("the session has begun");
            let derived = || EffectId::derive(session, *call, &now.call.name, &now.call.arguments);
            assert_eq!(*effect_id, kept.unwrap_or_else(derived), "{now:?}");
        }
    }

    /// A call whose tool has a policy begins for the first time only when the policy lets it, or
    /// after a person was asked.
    fn assert_policies(&self, before: &State, events: &[Event], allowed: Option<CallIndex>) {
        for event in events {
            let Event::ToolCallStarted(started) = event else { continue };
            let planned = before
                .call(started.call)
                .is_none_or(|call| matches!(call.status, CallStatus::Planned(_)));
            let tool = self.spec.tool(&started.name);
            let has_policy = tool.is_some_and(|tool| tool.approve == Approve::Policy);
            let free = !has_policy || !planned || allowed == Some(started.call);
            assert!(free, "{started:?} without a word of its policy");
        }
    }

    /// Tells something that must lead to nothing.
    pub(crate) fn tell_in_vain(&mut self, fact: Fact) {
        let (length, what) = (self.log.len(), format!("{fact:?}"));
        self.tell(fact);
        assert_eq!(self.log.len(), length, "{what} counts for something");
    }

    /// Makes the log durable and does what it orders, as an engine does for a batch of facts.
    pub(crate) fn carry_out(&mut self) {
        let events = &self.log[self.durable..];
        let orders = commands(&self.state, &self.spec, events);
        for event in events {
            if let Event::EffectResolved(resolved) = event
                && resolved.outcome == EffectOutcome::NotDone
            {
                self.orders.remove(&resolved.call);
            }
        }
        self.durable = self.log.len();
        assert!(!self.state.held || orders.is_empty(), "{orders:?} for nobody to carry out");
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
            Command::Summarise(summary) => {
                assert_eq!(self.state.phase, Phase::Summarising(summary), "no such summary");
                assert!(!self.state.to_summarise(&summary).is_empty(), "nothing to summarise");
                let fresh = self.work.insert(Work::Summary(summary.step));
                assert!(fresh, "{summary:?} was ordered twice");
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
            Command::AskPolicy { call } => {
                let status = self.state.call(call).map(|call| &call.status);
                assert_eq!(status, Some(&CallStatus::Planned(None)));
                assert!(self.work.insert(Work::Policy(call)), "{call:?} was asked about twice");
            }
            Command::Reconcile { call } => {
                let status = self.state.call(call).map(|call| &call.status);
                assert_eq!(status, Some(&CallStatus::Unknown));
                assert!(self.work.insert(Work::Reconcile(call)), "{call:?} was looked for twice");
            }
            Command::Verify => {
                let asked = matches!(&self.state.phase, Phase::Judging(pending) if pending.verify);
                assert!(asked, "no answer waits for a verdict");
                self.work.insert(Work::Verdict);
            }
            Command::Check { step, check } => {
                let awaited = matches!(&self.state.phase, Phase::Judging(pending)
                    if pending.checking == Some(check));
                assert!(awaited, "{check:?} is not awaited");
                let fresh = self.work.insert(Work::Check(step, check));
                assert!(fresh, "{check:?} was ordered twice");
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

    /// Loses everything but the log, and gives it to a new owner. What was decided since the last
    /// order may or may not have reached the disk.
    pub(crate) fn crash(&mut self, keep: bool, owner: Owner) {
        if !keep {
            self.log.truncate(self.durable);
        }
        self.forget();
        if self.state.session.is_none() {
            return;
        }
        let epoch = self.state.epoch.0 + 1;
        let store = match owner.copy {
            true => self.name("store"),
            false => self.state.store.clone(),
        };
        self.tell(match owner.held {
            true => fact::held(epoch, &store),
            false => fact::taken(epoch, &store),
        });
    }

    /// Goes on as a fork of the session as it was after so many events.
    pub(crate) fn fork(&mut self, length: usize, edit: Option<ForkEdit>) {
        *self = self.cut(length);
        let session = SessionId::new(&self.name("s")).expect("the id is valid");
        self.tell(Fact::Forked {
            session,
            origin: None,
            fingerprint: support::fingerprint(),
            store: STORE.to_owned(),
            edit,
            funding: None,
        });
        // There is no fork until its first events are written.
        self.carry_out();
    }

    /// Where a new owner may find the log to end: what one decision led to is written together.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> + use<> {
        self.ends.clone().into_iter()
    }

    /// The world as somebody finds it who has so many events of the log and nothing else.
    pub(crate) fn cut(&self, length: usize) -> Self {
        let mut cut = self.clone();
        cut.log.truncate(length);
        cut.orders.clear();
        cut.forget();
        cut
    }

    /// Every request for an approval so far, oldest first.
    pub(crate) fn requests(&self) -> Vec<(CallIndex, ApprovalId)> {
        let asked = |event: &Event| match event {
            Event::ApprovalRequested(asked) => Some((asked.call, asked.approval.clone())),
            _ => None,
        };
        self.log.iter().filter_map(asked).collect()
    }

    /// All that is left is the log.
    fn forget(&mut self) {
        self.at_us.truncate(self.log.len());
        self.ends.retain(|end| *end <= self.log.len());
        let stored: Vec<_> = self.log.iter().map(encode).collect();
        let read: Vec<Event> = stored.iter().map(|json| decode(json)).collect();
        assert_eq!(read, self.log, "the log reads back as it was written");
        self.state = State::of(&read);
        self.durable = self.log.len();
        self.work.clear();
        self.ended.clear();
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}-{}", self.names)
    }

    /// Whatever waits, something outside is on its way that will bring it on, or a person is asked,
    /// or the owner is one that does not run the session.
    fn assert_not_stuck(&self) {
        if self.state.held {
            return;
        }
        let awaited = |work: Work| assert!(self.work.contains(&work), "nobody works on {work:?}");
        match &self.state.phase {
            Phase::Empty | Phase::Ready => {}
            Phase::Calling(call) => awaited(Work::Model(call.step, call.attempt)),
            Phase::Summarising(summary) => awaited(Work::Summary(summary.step)),
            Phase::Backoff(_, at_us) => awaited(Work::Timer(*at_us)),
            Phase::Judging(pending) => {
                assert!(pending.problems.is_empty(), "{pending:?}");
                match pending.checking {
                    Some(check) => awaited(Work::Check(self.state.steps - 1, check)),
                    None => {
                        assert!(pending.verify, "{pending:?}");
                        awaited(Work::Verdict);
                    }
                }
            }
            Phase::Acting(calls) => {
                assert!(calls.iter().any(|call| call.outstanding()), "all have ended");
                for call in calls {
                    match call.status {
                        CallStatus::Planned(None) if self.has_policy(call) => {
                            awaited(Work::Policy(call.index));
                        }
                        CallStatus::Planned(_) | CallStatus::Approved => {
                            panic!("{call:?} was not begun")
                        }
                        CallStatus::Running => awaited(Work::Tool(call.index, call.attempt)),
                        CallStatus::Backoff(at_us) => awaited(Work::Timer(at_us)),
                        CallStatus::Awaiting(_)
                        | CallStatus::Unknown
                        | CallStatus::Finished(_)
                        | CallStatus::Failed(_) => {}
                    }
                }
            }
            other => panic!("{other:?} waits for nothing"),
        }
        let idle = self.work.is_empty() && self.state.is_open();
        assert!(!idle || self.state.waits_for_people(), "nobody brings {:?} on", self.state.phase);
    }

    fn has_policy(&self, call: &ToolCallState) -> bool {
        self.spec.tool(&call.call.name).is_some_and(|tool| tool.approve == Approve::Policy)
    }

    /// From here on all goes well: the turn must come to its end.
    pub(crate) fn drain(&mut self) {
        self.carry_out();
        if self.state.held {
            self.crash(true, Owner { copy: false, held: false });
            self.carry_out();
        }
        for _ in 0..1000 {
            if !self.state.is_open() {
                return;
            }
            let fact = match self.work.pop_first() {
                Some(Work::Model(step, attempt)) => {
                    fact::answered(step, attempt, fact::text("done"))
                }
                Some(Work::Summary(step)) => fact::summarised(step, "much was said"),
                Some(Work::Tool(call, attempt)) => fact::returned(call.0, attempt, "fine"),
                Some(Work::Policy(call)) => fact::policy(call.0, call.0 % 2 == 0),
                Some(Work::Reconcile(call)) => fact::resolved(call.0, fact::done("it was sent")),
                Some(Work::Verdict) => fact::accepted(),
                Some(Work::Check(step, check)) => fact::found(step, check, 1.0),
                Some(Work::Timer(at_us)) => {
                    self.now_us = self.now_us.max(at_us);
                    Fact::TimerFired
                }
                None => {
                    let mut calls = self.state.calls().iter();
                    let call = calls.find(|call| call.waits_for_people());
                    let call = call.expect("a person is asked");
                    match &call.status {
                        CallStatus::Awaiting(id) => {
                            fact::decided(call.index.0, id, fact::granted())
                        }
                        _ => fact::resolved(call.index.0, EffectOutcome::NotDone),
                    }
                }
            };
            self.tell(fact);
            self.carry_out();
        }
        panic!("the turn does not end: {:?}", self.state.phase);
    }

    /// The log as a store keeps it.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut epoch = Epoch(1);
        let positions = self.log.iter().zip(&self.at_us).zip(0..);
        let record = |((event, at_us), seq): ((&Event, &i64), u64)| {
            match event {
                Event::EpochTaken(taken) => epoch = taken.epoch,
                Event::SessionForked(forked) => epoch = forked.epoch,
                _ => {}
            }
            let json = RawValue::from_string(encode(event)).expect("an event is JSON");
            Record { seq: Seq(seq), at_us: *at_us, epoch, schema: SCHEMA_VERSION, json }
        };
        positions.map(record).collect()
    }
}

/// The agent of a world, and the checks as they were.
impl Recorded for &World {
    fn spec(&mut self, fingerprint: &mainspring_session::BlobHash) -> Option<AgentSpec> {
        (*fingerprint == support::fingerprint()).then(|| self.spec.clone())
    }

    fn problems(&mut self, _: &AgentSpec, finished: &ModelCallFinished) -> Vec<Problem> {
        let problems = finished.problems.iter();
        let own = |problem: &&Problem| matches!(problem.check.as_str(), "tool_count" | "score");
        problems.filter(|problem| !own(problem)).cloned().collect()
    }
}

pub(crate) fn encode(event: &Event) -> String {
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
    let mut open: Vec<(&str, &str)> = Vec::new();
    for message in &state.messages {
        match message {
            Message::Tool { call_id, name, .. } => {
                assert!(!open.is_empty(), "a result without a call");
                assert_eq!((call_id.as_str(), name.as_str()), open.remove(0));
            }
            Message::User { .. } => assert!(open.is_empty(), "the user interrupts {open:?}"),
            Message::Assistant { tool_calls, .. } => {
                assert!(open.is_empty(), "the model interrupts {open:?}");
                open = tool_calls.iter().map(|call| (&*call.id, &*call.name)).collect();
            }
        }
    }
    let running: Vec<_> =
        state.calls().iter().map(|call| (&*call.call.id, &*call.call.name)).collect();
    assert_eq!(open, running, "the calls without results are those of this step");
}
