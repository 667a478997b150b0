//! Looks at every append that the store takes, with a model of its own of what may follow what.
//!
//! It knows events and the core's fold, and nothing of how the core decides.

use std::collections::{BTreeMap, BTreeSet};

use mainspring_journal::{Append, AppendMode, SessionStatus};
use mainspring_session::{
    ApprovalDecision, Approve, CallIndex, Effect, EffectOutcome, Epoch, Event, Message, Phase,
    Record, Seq, SessionId, State, ToolCallStarted,
};

use crate::agents::tool_named;
use crate::host::result_text;
use crate::world::{World, lock};

/// What the witness knows of one call.
#[derive(Clone, Default)]
struct Call {
    attempt: u32,
    effect_id: String,
    running: bool,
    /// The request that is open.
    open: Option<String>,
    /// Granted in this session.
    granted: bool,
    /// Times that it was found not to have been done, in this log.
    not_done: u32,
    starts: u32,
    ended: bool,
}

/// What the witness knows of one session.
#[derive(Clone, Default)]
struct Seen {
    state: State,
    epoch: Epoch,
    held: bool,
    calls: BTreeMap<CallIndex, Call>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Witness {
    seen: BTreeMap<SessionId, Seen>,
    /// Requests that were answered, in any session.
    answered: BTreeSet<String>,
}

impl Witness {
    /// All sessions and their states.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&SessionId, &State)> {
        self.seen.iter().map(|(session, seen)| (session, &seen.state))
    }

    /// Whether a request for approval has been answered.
    pub(crate) fn is_answered(&self, approval: &str) -> bool {
        self.answered.contains(approval)
    }
}

/// An append has been stored.
pub(crate) fn appended(world: &World, by: &str, append: &Append) {
    let records = {
        let truth = lock(&world.truth);
        let log = truth.logs.get(&append.session).expect("the append has just been stored");
        log.records(Seq(0), None)
    };
    let (before, new) = records.split_at(usize::try_from(append.expected_seq.0).unwrap_or(0));
    let mut counts = lock(&world.counts);
    counts.appends += 1;
    counts.events += new.len() as u64;
    counts.takeovers += u64::from(append.mode == AppendMode::TakeOver);
    drop(counts);
    let mut witness = lock(&world.witness);
    let mut look = Look {
        world,
        session: append.session.clone(),
        seen: witness.seen.remove(&append.session).unwrap_or_default(),
        answered: &mut witness.answered,
    };
    if matches!(append.mode, AppendMode::Fork { .. }) {
        before.iter().for_each(|record| look.inherit(record));
    }
    look.owner(append, new);
    for record in new {
        let kind = record.event().map_or("?", |event| event.kind());
        let name = &append.session;
        world.note(format!("{by}: {name} {} e{} {kind}", record.seq.0, record.epoch.0));
        look.event(record);
    }
    look.whole(append);
    let seen = look.seen;
    check_snapshot(world, append, &seen.state);
    witness.seen.insert(append.session.clone(), seen);
}

struct Look<'a> {
    world: &'a World,
    session: SessionId,
    seen: Seen,
    answered: &'a mut BTreeSet<String>,
}

impl Look<'_> {
    fn violated(&self, invariant: &str, what: &str) {
        let (session, seq) = (&self.session, self.seen.state.next_seq.0);
        self.world.violated(invariant, &format!("{session} at {seq}: {what}"));
    }

    fn require(&self, holds: bool, invariant: &str, what: &str) {
        if !holds {
            self.violated(invariant, what);
        }
    }

    /// Takes in an event that a fork shares: what was granted there does not count here.
    fn inherit(&mut self, record: &Record) {
        let Ok(event) = record.event() else { return };
        self.seen.epoch = record.epoch;
        self.note_call(&event);
        self.seen.state.fold(&event);
    }

    /// Who appended, and whether the first event says so.
    fn owner(&mut self, append: &Append, new: &[Record]) {
        let (epoch, first) = (append.epoch, new.first().and_then(|record| record.event().ok()));
        let dense = self.seen.state.next_seq == append.expected_seq;
        self.require(dense, "positions without a gap", &format!("{}", append.expected_seq.0));
        let right = match (&append.mode, &first) {
            (AppendMode::Create { .. }, Some(Event::SessionStarted(_))) => epoch == Epoch(1),
            (AppendMode::Fork { .. }, Some(Event::SessionForked(forked))) => {
                epoch == forked.epoch && epoch.0 == self.seen.epoch.0 + 1
            }
            (AppendMode::TakeOver, Some(Event::EpochTaken(taken))) => {
                epoch == taken.epoch && epoch.0 == self.seen.epoch.0 + 1
            }
            (AppendMode::Continue, Some(first)) => {
                epoch == self.seen.epoch
                    && !matches!(
                        first,
                        Event::EpochTaken(_) | Event::SessionStarted(_) | Event::SessionForked(_)
                    )
            }
            _ => false,
        };
        let what = format!("{:?} with epoch {} after {}", append.mode, epoch.0, self.seen.epoch.0);
        self.require(right, "an owner's first append takes the session over", &what);
        self.seen.epoch = epoch;
        if matches!(append.mode, AppendMode::Fork { .. }) {
            for call in self.seen.calls.values_mut() {
                call.granted &= call.starts > 0;
                call.open = None;
            }
        }
    }

    fn event(&mut self, record: &Record) {
        let event = match record.event() {
            Ok(event) => event,
            Err(error) => return self.violated("events can be read", &error.to_string()),
        };
        let began = matches!(event, Event::ModelCallStarted(_) | Event::ToolCallStarted(_));
        self.require(!(began && self.seen.held), "a held session begins nothing", event.kind());
        match &event {
            Event::SessionStarted(started) => self.seen.held = started.held,
            Event::SessionForked(_) => self.seen.held = false,
            Event::EpochTaken(taken) => self.seen.held = taken.held,
            Event::ToolCallStarted(started) => self.may_start(started),
            Event::ToolCallFinished(finished) => {
                let call = self.seen.calls.get(&finished.call).cloned().unwrap_or_default();
                let expected = result_text(&call.effect_id, call.attempt);
                let current = call.running && finished.text == expected;
                let what = format!("{} for {expected}", finished.text);
                self.require(current, "a result counts for the attempt under way", &what);
            }
            Event::ContextCompacted(_) => lock(&self.world.counts).compactions += 1,
            Event::SummaryFinished(_) => lock(&self.world.counts).summaries += 1,
            Event::ToolCallLate(late) => {
                let call = self.seen.calls.get(&late.call).cloned().unwrap_or_default();
                let late = !(call.running && call.attempt == late.attempt);
                self.require(late, "only what comes late is late", "a current result");
            }
            Event::ApprovalDecided(decided) => {
                let id = decided.approval.as_str().to_owned();
                let call = self.seen.calls.get(&decided.call).cloned().unwrap_or_default();
                let open = call.open.as_ref() == Some(&id);
                self.require(open, "an answer is to the open request", &id);
                let first = self.answered.insert(id.clone());
                self.require(first, "a request is answered once", &id);
                lock(&self.world.counts).decisions += 1;
            }
            _ => {}
        }
        if event.is_terminal() {
            let open = self.seen.calls.values().filter(|call| call.attempt > 0 && !call.ended);
            let open = open.count();
            self.require(open == 0, "a turn leaves no call open", &format!("{open} open"));
        }
        self.note_call(&event);
        self.seen.state.fold(&event);
    }

    /// Whether a call may begin an attempt.
    fn may_start(&mut self, started: &ToolCallStarted) {
        let call = self.seen.calls.get(&started.call).cloned().unwrap_or_default();
        let Some(tool) = tool_named(&started.name) else {
            return self.violated("only tools that exist are called", &started.name);
        };
        let what = format!("call {} attempt {}", started.call.0, started.attempt);
        self.require(!call.ended, "what has ended is not begun again", &what);
        self.require(call.open.is_none(), "what awaits approval does not run", &what);
        self.require(started.attempt == call.attempt + 1, "attempts are counted", &what);
        let same = call.effect_id.is_empty() || call.effect_id == started.effect_id.as_str();
        self.require(same, "one key for all attempts", &what);
        let waived =
            || lock(&self.world.ledger).waived.contains(&(self.session.clone(), started.call));
        let allowed = match tool.approve {
            Approve::Never => true,
            Approve::Always => call.granted,
            Approve::Policy => call.granted || call.starts > 0 || waived(),
        };
        self.require(allowed, "nothing that needs approval runs without a grant", &what);
        let most = match tool.effect {
            Effect::Unsafe => 1 + call.not_done,
            _ => u32::MAX,
        };
        self.require(call.starts < most, "unsafe is begun once", &what);
    }

    fn note_call(&mut self, event: &Event) {
        let calls = &mut self.seen.calls;
        match event {
            Event::ToolCallStarted(started) => {
                let call = calls.entry(started.call).or_default();
                call.attempt = started.attempt;
                started.effect_id.as_str().clone_into(&mut call.effect_id);
                call.running = true;
                call.starts += 1;
            }
            Event::ToolCallFinished(finished) => end(calls, finished.call),
            Event::ToolCallFailed(failed) => match failed.retry_at_us {
                None => end(calls, failed.call),
                Some(_) => calls.entry(failed.call).or_default().running = false,
            },
            Event::ApprovalRequested(asked) => {
                let call = calls.entry(asked.call).or_default();
                call.open = Some(asked.approval.as_str().to_owned());
                call.granted = false;
            }
            Event::ApprovalDecided(decided) => {
                let call = calls.entry(decided.call).or_default();
                call.open = None;
                match decided.decision {
                    ApprovalDecision::Granted { ref arguments } => {
                        call.granted = true;
                        if arguments.is_some() {
                            // Other arguments are another effect.
                            call.effect_id.clear();
                        }
                    }
                    ApprovalDecision::Denied { .. } => end(calls, decided.call),
                }
            }
            Event::EffectUnknown(unknown) => {
                calls.entry(unknown.call).or_default().running = false;
            }
            Event::EffectResolved(resolved) => {
                let call = calls.entry(resolved.call).or_default();
                match resolved.outcome {
                    EffectOutcome::NotDone => {
                        call.not_done += 1;
                        let mut ledger = lock(&self.world.ledger);
                        *ledger.not_done.entry(call.effect_id.clone()).or_default() += 1;
                        ledger.overtaken.insert((call.effect_id.clone(), call.attempt));
                    }
                    EffectOutcome::Undecided { .. } => {}
                    _ => end(calls, resolved.call),
                }
            }
            Event::SessionForked(forked) => {
                if let Some(mainspring_session::ForkEdit::Call { call, .. }) = &forked.edit {
                    end(calls, *call);
                }
            }
            _ => {}
        }
    }

    /// What must hold after the append as a whole.
    fn whole(&self, append: &Append) {
        let state = &self.seen.state;
        let acting = matches!(state.phase, Phase::Acting(_));
        let said = state.messages.len() - usize::from(acting);
        let closed = transcript_is_closed(&state.messages[..said]);
        self.require(closed, "every tool call has its result", "the conversation");
        let sent: Vec<_> = state.sent().into_iter().map(|it| it.into_owned()).collect();
        let closed = acting || transcript_is_closed(&sent);
        self.require(closed, "every tool call that is sent has its result", "what is sent");
        let settled = state.held
            || !matches!(state.phase, Phase::Stepping | Phase::Concluding | Phase::Failing(_));
        self.require(settled, "a decision goes on to the next question", "the phase");
        let ended = !state.is_open();
        let status = match append.status {
            SessionStatus::Open => !ended,
            SessionStatus::Waiting => state.waits_for_people(),
            _ => ended,
        };
        self.require(status, "the status says what the log says", &format!("{:?}", append.status));
        let turn_over = append.status != SessionStatus::Open;
        let attempted = self.seen.calls.values().filter(|call| call.running).count();
        let idle = !turn_over || attempted == 0;
        self.require(idle, "a session at rest has nothing under way", &format!("{attempted}"));
    }
}

fn end(calls: &mut BTreeMap<CallIndex, Call>, call: CallIndex) {
    let call = calls.entry(call).or_default();
    call.running = false;
    call.open = None;
    call.ended = true;
}

/// Whether each tool call of a conversation is followed by its results, in order.
fn transcript_is_closed(messages: &[Message]) -> bool {
    let mut due: Vec<&str> = Vec::new();
    for message in messages {
        match message {
            Message::Tool { call_id, .. } => {
                if due.first() != Some(&call_id.as_str()) {
                    return false;
                }
                due.remove(0);
            }
            _ if !due.is_empty() => return false,
            Message::Assistant { tool_calls, .. } => {
                due = tool_calls.iter().map(|call| call.id.as_str()).collect();
            }
            Message::User { .. } => {}
        }
    }
    due.is_empty()
}

/// A state restored from its snapshots must be the folded one.
fn check_snapshot(world: &World, append: &Append, folded: &State) {
    if append.snapshot.is_none() {
        return;
    }
    let truth = lock(&world.truth);
    let Some(log) = truth.logs.get(&append.session) else { return };
    let restored = State::restore(log.snapshots.iter().map(|snapshot| snapshot.body.as_slice()));
    if restored.as_ref() != Some(folded) {
        let what = format!("{} at {}", append.session, folded.next_seq.0);
        world.violated("snapshots add up to the folded state", &what);
    }
}
