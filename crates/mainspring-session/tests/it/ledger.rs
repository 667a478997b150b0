//! What holds of every log, read from its front: an account of what may begin, kept apart from the
//! code under test.
//!
//! A call may begin once for each leave it gets: it needs no approval, a person granted it, an
//! earlier attempt failed or was lost and may be repeated, or somebody found that nothing was done.

use std::collections::{BTreeMap, BTreeSet};

use mainspring_session::{
    AgentSpec, ApprovalDecided, ApprovalDecision, Approve, CallIndex, EffectId, EffectOutcome,
    Event, ForkEdit, Message, ModelCallStarted, RejectAction, State, ToolCallStarted,
};

/// Why a call may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    No,
    /// A person or a finding lets it begin, here and in no copy.
    Given,
    /// An attempt that does no harm twice failed or was lost.
    Again,
}

#[derive(Debug, Clone)]
struct Entry {
    leave: Leave,
    /// The request that a person must answer.
    asked: Option<String>,
    running: bool,
    unknown: bool,
    closed: bool,
    attempt: u32,
    effect_id: Option<EffectId>,
}

/// Reads a log once, from its first event to its last.
pub(crate) struct Ledger<'a> {
    spec: &'a AgentSpec,
    state: State,
    calls: BTreeMap<CallIndex, Entry>,
    requests: BTreeSet<String>,
    open: bool,
    calling: bool,
    first_step: u32,
    next_step: u32,
    repairs: u32,
    lost_attempts: u32,
    /// The last attempt was refused as too long; one more at its step is no retry.
    overflowed: bool,
}

/// Panics if a log breaks a law.
pub(crate) fn assert_log(log: &[Event], spec: &AgentSpec) {
    let mut ledger = Ledger {
        spec,
        state: State::default(),
        calls: BTreeMap::new(),
        requests: BTreeSet::new(),
        open: false,
        calling: false,
        first_step: 0,
        next_step: 0,
        repairs: 0,
        lost_attempts: 0,
        overflowed: false,
    };
    for event in log {
        ledger.enter_turn_event(event);
        ledger.enter_call_event(event);
        ledger.state.fold(event);
    }
}

impl Ledger<'_> {
    fn enter_turn_event(&mut self, event: &Event) {
        let limits = &self.spec.limits;
        match event {
            Event::InputReceived(_) => {
                assert!(!self.open, "a turn inside a turn");
                (self.open, self.first_step, self.repairs) = (true, self.next_step, 0);
            }
            Event::RouteDecided(_) => self.assert_run("a route"),
            Event::ModelCallStarted(call) => {
                self.assert_run("a model call");
                assert!(self.open && call.step - self.first_step < limits.steps_max, "{call:?}");
                let same_step = call.step + 1 == self.next_step && call.attempt > 1;
                let new_step = call.step == self.next_step && call.attempt == 1;
                assert!(same_step || new_step, "{call:?} after {} steps", self.next_step);
                (self.next_step, self.calling) = (call.step + 1, true);
                self.lost_attempts = if call.attempt == 1 { 0 } else { self.lost_attempts };
                self.lost_attempts += u32::from(same_step && self.overflowed);
                self.overflowed = false;
                self.assert_view(call);
            }
            Event::ModelCallFinished(_) => self.calling = false,
            Event::ModelCallFailed(failed) => {
                let lost =
                    ["process_lost", "model_unavailable"].contains(&failed.error.code.as_str());
                let counted = failed.attempt - self.lost_attempts;
                self.calling = failed.retry_at_us.is_some();
                assert!(!self.calling || lost || counted < limits.model_attempts_max);
                self.lost_attempts += u32::from(lost);
                self.overflowed = failed.error.code.as_str() == "model_context_overflow";
            }
            Event::SummaryStarted(_) => self.assert_run("a summary"),
            Event::ContextCompacted(_) => self.assert_run("a compaction"),
            Event::AnswerRejected(rejected)
                if rejected.action == RejectAction::Repair && !rejected.larger_left =>
            {
                self.repairs += 1;
                assert!(self.repairs <= limits.repairs_max, "{} repairs", self.repairs);
            }
            Event::SessionForked(_) => {
                self.next_step -= u32::from(self.calling);
                (self.calling, self.lost_attempts, self.overflowed) = (false, 0, false);
            }
            event if event.is_terminal() => {
                assert!(self.open, "a turn ended twice");
                let left: Vec<_> = self.calls.values().filter(|call| !call.closed).collect();
                assert!(left.is_empty(), "a turn ended without an outcome of {left:?}");
                (self.open, self.calling) = (false, false);
            }
            _ => {}
        }
    }

    fn enter_call_event(&mut self, event: &Event) {
        match event {
            Event::ToolCallStarted(started) => self.start(started),
            Event::ToolCallFinished(finished) => self.close(finished.call),
            Event::ToolCallFailed(failed) if failed.retry_at_us.is_none() => {
                self.close(failed.call);
            }
            Event::ToolCallFailed(failed) => {
                assert!(self.repeatable(failed.call), "{failed:?} is tried again");
                let entry = self.entry(failed.call);
                (entry.running, entry.leave) = (false, Leave::Again);
            }
            Event::ApprovalRequested(asked) => {
                let id = asked.approval.as_str().to_owned();
                assert!(self.requests.insert(id.clone()), "{asked:?} was asked before");
                let entry = self.entry(asked.call);
                assert!(!entry.running && !entry.closed, "{asked:?} is too late");
                (entry.asked, entry.leave) = (Some(id), Leave::No);
            }
            Event::ApprovalDecided(decided) => self.decide(decided),
            Event::EffectUnknown(unknown) => {
                assert!(!self.repeatable(unknown.call), "{unknown:?} may be repeated");
                self.assert_run("a finding");
                let entry = self.entry(unknown.call);
                assert!(entry.running && entry.attempt == unknown.attempt, "{unknown:?}");
                (entry.running, entry.unknown) = (false, true);
            }
            Event::EffectResolved(resolved) => {
                let entry = self.entry(resolved.call);
                assert!(entry.unknown, "{resolved:?} was not asked");
                entry.unknown = false;
                match resolved.outcome {
                    EffectOutcome::NotDone => entry.leave = Leave::Given,
                    EffectOutcome::Undecided { .. } => entry.unknown = true,
                    EffectOutcome::Done { .. } | EffectOutcome::Failed { .. } => {
                        entry.closed = true;
                    }
                }
            }
            Event::EpochTaken(taken) => {
                self.change_owner(taken.store != self.state.store, taken.held);
            }
            Event::SessionForked(forked) => {
                if let Some(ForkEdit::Call { call, .. }) = &forked.edit {
                    self.entry(*call).closed = true;
                }
                self.change_owner(true, false);
            }
            _ => {}
        }
    }

    fn decide(&mut self, decided: &ApprovalDecided) {
        let current = self.state.call(decided.call);
        let before = current.map(|current| current.call.arguments.clone());
        let entry = self.entry(decided.call);
        let asked = entry.asked.take();
        assert_eq!(asked.as_deref(), Some(decided.approval.as_str()), "another request");
        match &decided.decision {
            ApprovalDecision::Granted { arguments } => {
                entry.leave = Leave::Given;
                if arguments.is_some() && *arguments != before {
                    entry.effect_id = None;
                }
            }
            ApprovalDecision::Denied { .. } => entry.closed = true,
        }
    }

    /// What a call sends is in order and inside the conversation, and every tool call in it has its
    /// result.
    fn assert_view(&self, call: &ModelCallStarted) {
        let count = u32::try_from(self.state.messages.len()).expect("a test is short");
        assert_eq!(call.messages.last().map(|range| range.1), Some(count), "the newest is sent");
        let flat: Vec<u32> = call.messages.iter().flat_map(|range| [range.0, range.1]).collect();
        assert!(flat.is_sorted(), "{call:?}");
        assert_eq!(call.messages, self.state.sent_ranges());
        let mut open: Vec<String> = Vec::new();
        for message in self.state.sent() {
            match message.as_ref() {
                Message::Tool { call_id, .. } => assert_eq!(*call_id, open.remove(0)),
                Message::Assistant { tool_calls, .. } => {
                    assert!(open.is_empty(), "{open:?} have no result");
                    open = tool_calls.iter().map(|call| call.id.clone()).collect();
                }
                Message::User { .. } => assert!(open.is_empty(), "{open:?} have no result"),
            }
        }
        assert!(open.is_empty(), "{open:?} have no result");
    }

    fn assert_run(&self, what: &str) {
        assert!(!self.state.held, "{what} by an owner that does not run the session");
    }

    fn start(&mut self, started: &ToolCallStarted) {
        self.assert_run("a tool call");
        let current = self.state.call(started.call).expect("the call is of this step");
        let session = self.state.session.clone().expect("a session has an id");
        let call = current.call.clone();
        let entry = self.entry(started.call);
        assert_ne!(entry.leave, Leave::No, "{started:?} without leave");
        assert!(!entry.closed && !entry.unknown && entry.asked.is_none(), "{started:?}");
        assert_eq!(started.attempt, entry.attempt + 1, "attempts go up by one");
        let derived = || EffectId::derive(&session, started.call, &call.name, &call.arguments);
        let effect_id = entry.effect_id.get_or_insert_with(derived);
        assert_eq!(started.effect_id, *effect_id, "a call keeps its effect id");
        (entry.leave, entry.running, entry.attempt) = (Leave::No, true, started.attempt);
    }

    fn close(&mut self, call: CallIndex) {
        let entry = self.entry(call);
        assert!(!entry.closed, "{call:?} ended twice");
        entry.closed = true;
    }

    /// A copy asks for every approval anew; what was lost and may be repeated is begun once more.
    fn change_owner(&mut self, is_copy: bool, held: bool) {
        let running: Vec<_> =
            self.calls.keys().map(|call| (*call, self.repeatable(*call))).collect();
        for (call, repeatable) in running {
            let entry = self.entry(call);
            if is_copy && (entry.leave == Leave::Given || entry.asked.is_some()) {
                (entry.leave, entry.asked) = (Leave::No, None);
            }
            if entry.running && repeatable && !held {
                entry.leave = Leave::Again;
            }
        }
    }

    fn repeatable(&self, call: CallIndex) -> bool {
        let name = self.state.call(call).map(|current| current.call.name.as_str());
        name.and_then(|name| self.spec.tool(name)).is_some_and(|tool| tool.effect.repeatable())
    }

    /// The call's entry; of a call that was not heard of, one that may begin if nobody has to be
    /// asked. What a policy said is not in the log: the world knows.
    fn entry(&mut self, call: CallIndex) -> &mut Entry {
        let name = self.state.call(call).map(|current| current.call.name.as_str());
        let tool = name.and_then(|name| self.spec.tool(name));
        let asks = tool.is_some_and(|tool| tool.approve == Approve::Always);
        self.calls.entry(call).or_insert(Entry {
            leave: if asks { Leave::No } else { Leave::Again },
            asked: None,
            running: false,
            unknown: false,
            closed: false,
            attempt: 0,
            effect_id: None,
        })
    }
}
