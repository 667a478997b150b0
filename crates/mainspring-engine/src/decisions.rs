//! Decisions about tool calls that wait for one: approvals, and what became of calls whose process
//! ended.
//!
//! Invariant: a decision counts once. For a session that is alive here it is one more fact; for any
//! other it is appended by a takeover that does not run the session (`held`), so that of many who
//! decide at once, in whatever processes, the journal lets one through and the others are told.

use std::sync::{Arc, Mutex, PoisonError};

use mainspring_journal::{AckSink, Acked, Append, AppendMode, Journal, SessionStatus};
use mainspring_session::{
    ApprovalDecision, ApprovalId, CallIndex, CallStatus, Epoch, ErrorCode, Event, Fact, Failure,
    Moment, Outcome, Seq, SessionId, State, decide,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::budgets::Budgets;
use crate::check;
use crate::live::Letter;
use crate::mail::{DecideRequest, Decision, Mail, OnChange, Reply, ResumeRequest};
use crate::requests::not_running;
use crate::shard::{Shard, encode};
use crate::{loader, replay};

/// How often a decision is tried again when another writer was faster.
const TRIES_MAX: u32 = 10;

/// Why a decision about a session that is not alive here was not recorded.
pub(crate) enum Aside {
    /// Another writer was faster: what it wrote decides whether there is anything left to decide.
    /// With what the journal said, and how often this has been so.
    Overtaken(Failure, u32),
    /// It cannot be recorded.
    Refused(Failure),
}

impl From<Failure> for Aside {
    fn from(failure: Failure) -> Self {
        Aside::Refused(failure)
    }
}

impl Shard {
    pub(crate) fn decide(&mut self, request: DecideRequest, reply: Reply<()>) {
        let id = request.session.clone();
        if self.loading.contains(&id) {
            self.deferred.entry(id).or_default().push((request, reply));
            return;
        }
        if let Some(key) = self.keys.get(&id).copied() {
            let Some(live) = self.lives.get(&key) else { return };
            if let Err(error) = check_decision(&live.state, &request) {
                return reply(Err(error));
            }
            if let Err(error) = check_arguments(&live.state, &request, Some(&live.agent)) {
                return reply(Err(error));
            }
            let fact = request.fact(open_request(&live.state, request.call).as_ref());
            let letter = Letter { reply: Some(reply), ..Letter::from(fact) };
            return self.tell(key, letter);
        }
        self.loading.insert(id);
        self.decide_aside(request, reply, 1);
    }

    /// Decides about a session that is not alive here, from what is stored of it.
    fn decide_aside(&self, request: DecideRequest, reply: Reply<()>, tries: u32) {
        let post = self.config.post.clone();
        let at_us = self.now_us();
        let budgets = self.config.budgets.clone();
        self.config.loader.run(move |journal| match prepare(journal, &budgets, &request, at_us) {
            Ok((append, told)) => {
                let waiting = Mutex::new(Some(Asked { request, reply, told, tries }));
                journal.append(Append { sink: Arc::new(Told { post, waiting }), ..append });
            }
            Err(error) => {
                let _ = post.send(Mail::Decided(request, reply, Err(error.into())));
            }
        });
    }

    /// A decision about a session that is not alive here has been recorded, or not.
    pub(crate) fn decided(
        &mut self,
        request: DecideRequest,
        reply: Reply<()>,
        result: Result<(), Aside>,
    ) {
        let result = match result {
            Err(Aside::Overtaken(_, tries)) if tries < TRIES_MAX => {
                return self.decide_aside(request, reply, tries + 1);
            }
            Err(Aside::Overtaken(error, _)) => Err(error),
            Err(Aside::Refused(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        let id = request.session;
        self.loading.remove(&id);
        let goes_on = result.is_ok();
        reply(result);
        if let (true, Some(agent), None) = (goes_on, request.agent, &self.draining) {
            let resume =
                ResumeRequest { session: id.clone(), agent, on_change: OnChange::Continue };
            // Somebody else may be quicker, and may go on with it as well.
            self.resume(resume, Box::new(|_| {}));
        }
        self.decide_deferred(&id);
        self.look_up_unfollowed(&id);
    }

    /// Takes up what came while a session was being read.
    pub(crate) fn decide_deferred(&mut self, id: &SessionId) {
        if self.loading.contains(id) {
            return;
        }
        for (request, reply) in self.deferred.remove(id).unwrap_or_default() {
            self.decide(request, reply);
        }
    }
}

/// The error for a decision that came to nothing.
pub(crate) fn used(session: &SessionId) -> Failure {
    let message = format!("session \"{session}\" waits for no such decision, or no longer");
    Failure::new(ErrorCode::APPROVAL_USED, message)
        .with_hint("each request is answered once; `mainspring effects` lists the open ones")
}

fn open_request(state: &State, call: CallIndex) -> Option<ApprovalId> {
    match &state.call(call)?.status {
        CallStatus::Awaiting(approval) => Some(approval.clone()),
        _ => None,
    }
}

/// Refuses a decision that the state does not wait for.
fn check_decision(state: &State, request: &DecideRequest) -> Result<(), Failure> {
    let status = state.call(request.call).map(|call| &call.status);
    let waits = match (&request.decision, status) {
        (Decision::Approval(given, _), Some(CallStatus::Awaiting(open))) => {
            given.as_ref().is_none_or(|given| given == open)
        }
        (Decision::Effect(_), Some(CallStatus::Unknown)) => true,
        (Decision::Cancel(_), _) if !state.is_open() => {
            return Err(not_running(&request.session));
        }
        (Decision::Cancel(_), _) => true,
        _ => false,
    };
    if waits { Ok(()) } else { Err(used(&request.session)) }
}

/// Refuses edited arguments that do not fit the tool.
fn check_arguments(
    state: &State,
    request: &DecideRequest,
    agent: Option<&crate::agent::Agent>,
) -> Result<(), Failure> {
    let Decision::Approval(_, ApprovalDecision::Granted { arguments: Some(arguments) }) =
        &request.decision
    else {
        return Ok(());
    };
    let call = state.call(request.call);
    let tool = call.and_then(|call| agent?.tools.get(&call.call.name));
    match tool.and_then(|tool| check::arguments(tool, arguments)) {
        None => Ok(()),
        Some(found) => {
            let message = format!("the edited arguments do not fit: {found}");
            Err(Failure::new(ErrorCode::TOOL_ARGUMENTS_INVALID, message))
        }
    }
}

/// What is to be appended for a decision about a session that is not alive here, and what the one
/// who decided is told once it is stored.
fn prepare(
    journal: &dyn Journal,
    budgets: &Budgets,
    request: &DecideRequest,
    at_us: i64,
) -> Result<(Append, Result<(), Failure>), Failure> {
    let session = &request.session;
    let found = loader::find_state(journal, session)?;
    let mut state = found.ok_or_else(|| loader::not_found(session))?.state;
    check_decision(&state, request)?;
    let spec = loader::spec_of(journal, &state)?;
    check_arguments(&state, request, replay::unbound(&spec).as_ref())?;
    // Of the state before: what a person has answered is what that store had asked.
    let decision = request.fact(open_request(&state, request.call).as_ref());
    let reopened = Fact::Reopened {
        epoch: Epoch(state.epoch.0 + 1),
        fingerprint: state.fingerprint.clone().expect("its spec has just been read"),
        store: journal.identity().to_owned(),
        held: true,
    };
    let first = state.next_seq;
    let charged = state.spending.charged;
    let mut events = Vec::new();
    let mut counted = false;
    for fact in [reopened, decision] {
        let now = Moment { at_us, seed: Moment::seed_of(session, state.next_seq) };
        let made = decide(&mut state, &spec, fact, now).map_err(|refused| {
            Failure::new(ErrorCode::APPROVAL_USED, format!("session \"{session}\": {refused}"))
        })?;
        counted = !made.is_empty();
        events.extend(made);
    }
    let result = if counted { Ok(()) } else { Err(asked_anew(session)) };
    let spending = &state.spending;
    let charges = budgets.charges_aside(&spending.funding, spending.charged.minus(charged), at_us);
    let append = takeover(session, &state, first, &events, at_us);
    Ok((Append { charges, ..append }, result))
}

fn asked_anew(session: &SessionId) -> Failure {
    let message = format!(
        "the approval of session \"{session}\" was asked for in another store, this one is a copy"
    );
    Failure::new(ErrorCode::APPROVAL_USED, message)
        .with_hint("it has been asked for anew here: look at it, then decide about it here")
}

/// The append of a takeover that does not run the session.
fn takeover(
    session: &SessionId,
    state: &State,
    first: Seq,
    events: &[Event],
    at_us: i64,
) -> Append {
    let (lines, count) = encode(events);
    let status = match &state.outcome {
        Some(Outcome::Cancelled(_)) => SessionStatus::Cancelled,
        _ if state.waits_for_people() => SessionStatus::Waiting,
        _ => SessionStatus::Open,
    };
    Append {
        session: session.clone(),
        epoch: state.epoch,
        expected_seq: first,
        events: lines,
        count,
        at_us,
        mode: AppendMode::TakeOver,
        status,
        blobs: Vec::new(),
        snapshot: None,
        charges: Vec::new(),
        release: true,
        token: 0,
        sink: Arc::new(Nobody),
    }
}

struct Nobody;

impl AckSink for Nobody {
    fn acked(&self, _acks: Vec<Acked>) {}
}

/// Tells the shard what became of the append for a decision.
struct Told {
    post: UnboundedSender<Mail>,
    waiting: Mutex<Option<Asked>>,
}

struct Asked {
    request: DecideRequest,
    reply: Reply<()>,
    /// What the one who decided is told if it is stored.
    told: Result<(), Failure>,
    tries: u32,
}

impl AckSink for Told {
    fn acked(&self, acks: Vec<Acked>) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(Asked { request, reply, told, tries }), Some(ack)) =
            (waiting, acks.into_iter().next())
        else {
            return;
        };
        let result = match ack.result {
            Ok(()) => told.map_err(Aside::Refused),
            Err(error) if *error.code() == ErrorCode::JOURNAL_CONFLICT => {
                Err(Aside::Overtaken(error.failure(), tries))
            }
            Err(error) => Err(Aside::Refused(error.failure())),
        };
        let _ = self.post.send(Mail::Decided(request, reply, result));
    }
}
