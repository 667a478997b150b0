//! From facts to events: the whole behaviour of a session.
//!
//! [`decide`] takes one fact and answers with the events that follow from it, up to the point
//! where the outside world must act again. It folds them into the state as it goes, so that each
//! rule sees the truth; the engine makes them durable before it carries out a command.
//!
//! Which fact is allowed in which phase stands in [`TRANSITIONS`]; every other pair is refused.
//! What facts about tool calls lead to is in `calls.rs`, what a new owner does in `recover.rs`, and
//! what follows when nothing outside is awaited in `follow.rs`.

use mainspring_route::StepClass;

use crate::asking::{ApprovalDecided, ApprovalDecision, EffectOutcome, EffectResolved};
use crate::budget::Funding;
use crate::calls;
use crate::checks::{self, Check, CheckFinding};
use crate::deferred;
use crate::error::{ErrorCode, Failure};
use crate::event::{
    AnswerRestarted, AnswerVerified, EpochTaken, Event, FinishReason, ForkEdit, InputReceived,
    ModelCallFailed, ModelCallFinished, Origin, Problem, SCHEMA_VERSION, SessionForked,
    SessionStarted, Timing,
};
use crate::follow;
use crate::ids::{ApprovalId, BlobHash, CallIndex, Epoch, Seq, SessionId};
use crate::message::{Answer, Part, Usage};
use crate::notes::CallNotes;
use crate::recover::{self, Approvals};
use crate::retry::{Asked, model_retry_at};
use crate::spec::{AgentSpec, Price};
use crate::spending;
use crate::state::{CallStatus, Phase, PhaseKind, State};
use crate::summary::{self, Summary};

/// When a fact became known, and the randomness it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds since the epoch.
    pub at_us: i64,
    /// What spreads retries over time; [`Moment::seed_of`] gives it.
    pub seed: u64,
}

impl Moment {
    /// The seed for a decision of a session at a position: differs between sessions and positions,
    /// and is the same when the decision is replayed.
    #[must_use]
    pub fn seed_of(session: &SessionId, at: Seq) -> u64 {
        // FNV-1a, then the finaliser of MurmurHash3 to spread neighbouring positions.
        let bytes = session.as_str().bytes().chain(at.0.to_be_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        (hash ^ (hash >> 33)) >> 11
    }
}

/// Something the engine learnt from outside.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of the events they become")]
pub enum Fact {
    /// A session is to begin; `held` if somebody else will run it.
    Started {
        session: SessionId,
        origin: Option<Origin>,
        fingerprint: BlobHash,
        store: String,
        held: bool,
    },
    /// A session is to begin with what another has done so far.
    Forked {
        session: SessionId,
        origin: Option<Origin>,
        fingerprint: BlobHash,
        store: String,
        edit: Option<ForkEdit>,
        /// Who pays for it from here on; none: as before.
        funding: Option<Funding>,
    },
    /// Somebody pays for the session from here on.
    Funded { funding: Funding },
    /// The user said something.
    Input { content: Vec<Part>, step_class: Option<StepClass> },
    /// A model answered. `problems` are the findings of the engine's checks.
    ModelAnswered {
        step: u32,
        attempt: u32,
        answer: Answer,
        finish_reason: FinishReason,
        usage: Usage,
        timing: Timing,
        notes: CallNotes,
        problems: Vec<Problem>,
    },
    /// A model call failed.
    ModelFailed {
        step: u32,
        attempt: u32,
        error: Failure,
        retry_after_ms: Option<u64>,
        streamed_chars: u64,
    },
    /// A model gave a summary of the oldest messages, or none was to be had.
    SummaryEnded { step: u32, outcome: Result<Summary, Failure> },
    /// The user's function accepted the pending answer, or gave a reason why not.
    Verified { rejection: Option<String> },
    /// A check of the pending answer by a model ended.
    Checked { step: u32, check: Check, finding: CheckFinding },
    /// A tool returned.
    ToolReturned { call: CallIndex, attempt: u32, text: String, duration_us: u64 },
    /// A tool failed, timed out, or was refused.
    ToolFailed { call: CallIndex, attempt: u32, error: Failure },
    /// The user's function said whether a person must be asked before a tool runs.
    PolicyAnswered { call: CallIndex, needed: bool },
    /// A person decided about a tool call that waits for approval.
    ApprovalDecided {
        call: CallIndex,
        approval: ApprovalId,
        decision: ApprovalDecision,
        by: Option<String>,
    },
    /// It was found out what became of a call whose process ended.
    EffectResolved { call: CallIndex, outcome: EffectOutcome, by: Option<String> },
    /// A time that was waited for has passed.
    TimerFired,
    /// The user wants the turn to end.
    CancelRequested { reason: String },
    /// The turn has taken as long as it may.
    TurnTimedOut,
    /// A new owner has taken the session over; `held` if only to record a decision.
    Reopened { epoch: Epoch, fingerprint: BlobHash, store: String, held: bool },
}

/// The kinds of [`Fact`], for tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "documented at Fact")]
pub enum FactKind {
    Started,
    Forked,
    Funded,
    Input,
    ModelAnswered,
    ModelFailed,
    SummaryEnded,
    Verified,
    Checked,
    ToolReturned,
    ToolFailed,
    PolicyAnswered,
    ApprovalDecided,
    EffectResolved,
    TimerFired,
    CancelRequested,
    TurnTimedOut,
    Reopened,
}

impl Fact {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> FactKind {
        match self {
            Fact::Started { .. } => FactKind::Started,
            Fact::Forked { .. } => FactKind::Forked,
            Fact::Funded { .. } => FactKind::Funded,
            Fact::Input { .. } => FactKind::Input,
            Fact::ModelAnswered { .. } => FactKind::ModelAnswered,
            Fact::ModelFailed { .. } => FactKind::ModelFailed,
            Fact::SummaryEnded { .. } => FactKind::SummaryEnded,
            Fact::Verified { .. } => FactKind::Verified,
            Fact::Checked { .. } => FactKind::Checked,
            Fact::ToolReturned { .. } => FactKind::ToolReturned,
            Fact::ToolFailed { .. } => FactKind::ToolFailed,
            Fact::PolicyAnswered { .. } => FactKind::PolicyAnswered,
            Fact::ApprovalDecided { .. } => FactKind::ApprovalDecided,
            Fact::EffectResolved { .. } => FactKind::EffectResolved,
            Fact::TimerFired => FactKind::TimerFired,
            Fact::CancelRequested { .. } => FactKind::CancelRequested,
            Fact::TurnTimedOut => FactKind::TurnTimedOut,
            Fact::Reopened { .. } => FactKind::Reopened,
        }
    }
}

/// A fact that does not fit what the session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a session that is {phase:?} takes no {fact:?}")]
pub struct Refused {
    /// What the session is doing.
    pub phase: PhaseKind,
    /// What was refused.
    pub fact: FactKind,
}

/// Every pair of phase and fact that may meet. `Stepping`, `Concluding` and `Failing` are passed
/// through inside one decision; a log can end there only where it was cut, as a fork does, or
/// where an owner left it that does not run the session.
pub const TRANSITIONS: &[(PhaseKind, FactKind)] = &[
    (PhaseKind::Empty, FactKind::Started),
    (PhaseKind::Ready, FactKind::Input),
    (PhaseKind::Ready, FactKind::Reopened),
    (PhaseKind::Ready, FactKind::Forked),
    (PhaseKind::Ready, FactKind::Funded),
    (PhaseKind::Ready, FactKind::ToolReturned),
    (PhaseKind::Ready, FactKind::ToolFailed),
    (PhaseKind::Stepping, FactKind::Reopened),
    (PhaseKind::Stepping, FactKind::Forked),
    (PhaseKind::Stepping, FactKind::CancelRequested),
    (PhaseKind::Summarising, FactKind::SummaryEnded),
    (PhaseKind::Summarising, FactKind::ToolReturned),
    (PhaseKind::Summarising, FactKind::ToolFailed),
    (PhaseKind::Summarising, FactKind::CancelRequested),
    (PhaseKind::Summarising, FactKind::TurnTimedOut),
    (PhaseKind::Summarising, FactKind::Reopened),
    (PhaseKind::Summarising, FactKind::Forked),
    (PhaseKind::Calling, FactKind::ModelAnswered),
    (PhaseKind::Calling, FactKind::ModelFailed),
    (PhaseKind::Calling, FactKind::ToolReturned),
    (PhaseKind::Calling, FactKind::ToolFailed),
    (PhaseKind::Calling, FactKind::CancelRequested),
    (PhaseKind::Calling, FactKind::TurnTimedOut),
    (PhaseKind::Calling, FactKind::Reopened),
    (PhaseKind::Calling, FactKind::Forked),
    (PhaseKind::Backoff, FactKind::TimerFired),
    (PhaseKind::Backoff, FactKind::ToolReturned),
    (PhaseKind::Backoff, FactKind::ToolFailed),
    (PhaseKind::Backoff, FactKind::CancelRequested),
    (PhaseKind::Backoff, FactKind::TurnTimedOut),
    (PhaseKind::Backoff, FactKind::Reopened),
    (PhaseKind::Backoff, FactKind::Forked),
    (PhaseKind::Judging, FactKind::Verified),
    (PhaseKind::Judging, FactKind::Checked),
    (PhaseKind::Judging, FactKind::ToolReturned),
    (PhaseKind::Judging, FactKind::ToolFailed),
    (PhaseKind::Judging, FactKind::CancelRequested),
    (PhaseKind::Judging, FactKind::TurnTimedOut),
    (PhaseKind::Judging, FactKind::Reopened),
    (PhaseKind::Judging, FactKind::Forked),
    (PhaseKind::Acting, FactKind::ToolReturned),
    (PhaseKind::Acting, FactKind::ToolFailed),
    (PhaseKind::Acting, FactKind::PolicyAnswered),
    (PhaseKind::Acting, FactKind::ApprovalDecided),
    (PhaseKind::Acting, FactKind::EffectResolved),
    (PhaseKind::Acting, FactKind::TimerFired),
    (PhaseKind::Acting, FactKind::CancelRequested),
    (PhaseKind::Acting, FactKind::TurnTimedOut),
    (PhaseKind::Acting, FactKind::Reopened),
    (PhaseKind::Acting, FactKind::Forked),
    (PhaseKind::Concluding, FactKind::Reopened),
    (PhaseKind::Concluding, FactKind::Forked),
    (PhaseKind::Concluding, FactKind::CancelRequested),
    (PhaseKind::Failing, FactKind::Reopened),
    (PhaseKind::Failing, FactKind::Forked),
    (PhaseKind::Failing, FactKind::CancelRequested),
];

/// Decides what follows from a fact, and folds it into `state`.
///
/// Returns the events in order; none when the fact is stale (an attempt that no longer counts).
///
/// # Errors
/// [`Refused`] if the pair is not in [`TRANSITIONS`]; the state is then unchanged.
pub fn decide(
    state: &mut State,
    spec: &AgentSpec,
    fact: Fact,
    now: Moment,
) -> Result<Vec<Event>, Refused> {
    let pair = (state.phase.kind(), fact.kind());
    if !TRANSITIONS.contains(&pair) {
        return Err(Refused { phase: pair.0, fact: pair.1 });
    }
    let mut events = Vec::new();
    let mut next = respond(state, spec, fact, now);
    if next.is_empty() {
        return Ok(next);
    }
    while !next.is_empty() {
        for event in next {
            let stopped = spending::clock_before(state, &event, now);
            for event in stopped.into_iter().chain([event]) {
                state.fold(&event);
                events.push(event);
            }
        }
        next = follow::follow(state, spec, now);
    }
    if let Some(clock) = spending::clock_after(state, now) {
        state.fold(&clock);
        events.push(clock);
    }
    Ok(events)
}

fn respond(state: &State, spec: &AgentSpec, fact: Fact, now: Moment) -> Vec<Event> {
    match fact {
        Fact::Input { content, step_class } => {
            vec![Event::InputReceived(InputReceived { content, step_class })]
        }
        Fact::Funded { funding } => {
            let changes = state.spending.funding != funding;
            changes.then_some(Event::BudgetSet(funding)).into_iter().collect()
        }
        Fact::TimerFired => timer_fired(state, spec, now),
        Fact::CancelRequested { reason } => {
            let mut events = vec![Event::CancelRequested { reason: reason.clone() }];
            events.extend(calls::close(state, spec, "the session was cancelled"));
            events.push(Event::SessionCancelled { reason });
            events
        }
        // A turn that waits for a person may wait for a week.
        Fact::TurnTimedOut if state.waits_for_people() => Vec::new(),
        Fact::TurnTimedOut => turn_timed_out(state, spec, now),
        fact @ (Fact::Started { .. } | Fact::Forked { .. } | Fact::Reopened { .. }) => {
            owner_changed(state, spec, fact, now)
        }
        fact @ (Fact::ModelAnswered { .. }
        | Fact::ModelFailed { .. }
        | Fact::Verified { .. }
        | Fact::Checked { .. }) => answer_fact(state, spec, fact, now),
        Fact::SummaryEnded { step, outcome } => {
            summary::ended(state, spec, step, outcome).into_iter().collect()
        }
        fact => call_fact(state, spec, fact, now).into_iter().collect(),
    }
}

/// What the first fact of a session, of a fork or of a new owner leads to.
fn owner_changed(state: &State, spec: &AgentSpec, fact: Fact, now: Moment) -> Vec<Event> {
    match fact {
        Fact::Started { session, origin, fingerprint, store, held } => {
            let schema = SCHEMA_VERSION;
            let agent = spec.name.clone();
            vec![Event::SessionStarted(SessionStarted {
                schema,
                session,
                agent,
                fingerprint,
                origin,
                store,
                held,
            })]
        }
        Fact::Forked { session, origin, fingerprint, store, edit, funding } => {
            let forked = Event::SessionForked(SessionForked {
                session,
                parent: state.session.clone().expect("a session that has begun has an id"),
                epoch: Epoch(state.epoch.0 + 1),
                agent: spec.name.clone(),
                fingerprint,
                origin,
                store,
                edit: edit.map(|edit| calls::cut_edit(edit, spec)),
            });
            let then = |state: &State| {
                let set = funding.map(Event::BudgetSet);
                set.into_iter().chain(recover::forked(state, spec)).collect()
            };
            recover::begun_anew(state, forked, then)
        }
        Fact::Reopened { epoch, fingerprint, store, held } => {
            let approvals = match state.store == store {
                true => Approvals::Kept,
                false => Approvals::Void,
            };
            let taken = Event::EpochTaken(EpochTaken { epoch, fingerprint, store, held });
            recover::begun_anew(state, taken, |state| recover::retaken(state, spec, now, approvals))
        }
        _ => Vec::new(),
    }
}

/// What a fact about a model's answer leads to; nothing if it is about another one.
fn answer_fact(state: &State, spec: &AgentSpec, fact: Fact, now: Moment) -> Vec<Event> {
    match fact {
        fact @ Fact::ModelFailed { .. } => model_failed(state, spec, fact, now),
        Fact::Verified { rejection } => match &state.phase {
            Phase::Judging(pending) if pending.verify => vec![verified(state, spec, rejection)],
            _ => Vec::new(),
        },
        Fact::Checked { step, check, finding } => {
            checks::finished(state, spec, (step, check), finding).into_iter().collect()
        }
        fact => model_answered(state, spec, fact).into_iter().collect(),
    }
}

/// What the failure of a model call leads to. Where watchers have seen a part of its answer and
/// another call follows, they are told that it begins anew.
fn model_failed(state: &State, spec: &AgentSpec, fact: Fact, now: Moment) -> Vec<Event> {
    let Fact::ModelFailed { step, attempt, error, retry_after_ms, streamed_chars } = fact else {
        return Vec::new();
    };
    if active(state, step, attempt).is_none() {
        return Vec::new();
    }
    // A crash, or a call that was not made, says nothing of the model and uses up no attempt.
    let counted = attempt.saturating_sub(state.lost_attempts).max(1);
    let has_next = follow::falls_back(state, spec, &error);
    let asked = Asked { attempt: counted, retry_after_ms, has_next, unmade: state.lost_attempts };
    let retry_at_us = model_retry_at(&spec.limits, &error, asked, now);
    let goes_on = retry_at_us.is_some() || has_next;
    let charged = spending::failed_call(state, spec, &error.code);
    let failed = ModelCallFailed {
        step,
        attempt,
        error,
        retry_at_us,
        retry_after_ms,
        streamed_chars,
        charged,
    };
    let mut events = vec![Event::ModelCallFailed(failed)];
    if goes_on && streamed_chars > 0 {
        let restarted = AnswerRestarted { step, attempt, characters: streamed_chars };
        events.push(Event::AnswerRestarted(restarted));
    }
    events
}

/// What a fact about a tool call leads to; nothing if it no longer counts.
fn call_fact(state: &State, spec: &AgentSpec, fact: Fact, now: Moment) -> Option<Event> {
    match fact {
        Fact::ToolReturned { call, attempt, text, duration_us } => {
            Some(calls::returned(state, spec, (call, attempt), text, duration_us))
        }
        Fact::ToolFailed { call, attempt, error } => {
            Some(calls::failed(state, spec, (call, attempt), error, now))
        }
        Fact::PolicyAnswered { call, needed } => calls::policy_answered(state, spec, call, needed),
        Fact::ApprovalDecided { call, approval, decision, by } => {
            let decided = ApprovalDecided { call, approval, decision, by };
            calls::approval_decided(state, spec, decided)
        }
        Fact::EffectResolved { call, outcome, by } => {
            calls::effect_resolved(state, spec, EffectResolved { call, outcome, by })
        }
        _ => None,
    }
}

fn active(state: &State, step: u32, attempt: u32) -> Option<u32> {
    match state.phase {
        Phase::Calling(call) if (call.step, call.attempt) == (step, attempt) => Some(call.tier),
        _ => None,
    }
}

fn model_answered(state: &State, spec: &AgentSpec, fact: Fact) -> Option<Event> {
    let Fact::ModelAnswered {
        step,
        attempt,
        answer,
        finish_reason,
        usage,
        timing,
        mut notes,
        mut problems,
    } = fact
    else {
        return None;
    };
    let tier = active(state, step, attempt)?;
    problems.extend(follow::excess_calls(&answer, spec.limits.tool_calls_per_step_max));
    notes.deferring = deferred::is_deferring(spec, &answer);
    let price = spec.models.get(tier as usize).and_then(|model| model.price);
    let score = if problems.is_empty() {
        checks::score(state, spec, (&answer, finish_reason, &notes), &mut problems)
    } else {
        None
    };
    let checks = if problems.is_empty() { checks::planned(state, spec, &answer) } else { vec![] };
    Some(Event::ModelCallFinished(ModelCallFinished {
        step,
        attempt,
        finish_reason,
        usage,
        cost_usd: cost(price, usage, &notes),
        timing,
        notes,
        verify: spec.verify && problems.is_empty(),
        answer,
        problems,
        score,
        checks,
    }))
}

/// What an answer cost, with the call that was cancelled in its favour.
fn cost(price: Option<Price>, usage: Usage, notes: &CallNotes) -> Option<f64> {
    let other = notes.hedge.and_then(|hedge| hedge.cost_usd_estimate).unwrap_or(0.0);
    price.map(|price| price.of(usage) + other)
}

fn verified(state: &State, spec: &AgentSpec, rejection: Option<String>) -> Event {
    let step = state.steps.saturating_sub(1);
    match rejection {
        None => Event::AnswerVerified(AnswerVerified { step }),
        Some(reason) => {
            let problem = Problem { check: "verify".to_owned(), message: reason, call: None };
            follow::rejection(state, spec, vec![problem])
        }
    }
}

fn timer_fired(state: &State, spec: &AgentSpec, now: Moment) -> Vec<Event> {
    match &state.phase {
        _ if state.held => Vec::new(),
        Phase::Backoff(call, at_us) if *at_us <= now.at_us => {
            vec![follow::model_call(state, spec, (call.step, call.attempt + 1), now)]
        }
        Phase::Acting(calls) => calls
            .iter()
            .filter(|call| matches!(call.status, CallStatus::Backoff(at) if at <= now.at_us))
            .map(|call| follow::tool_call(state, call))
            .collect(),
        _ => Vec::new(),
    }
}

fn turn_timed_out(state: &State, spec: &AgentSpec, now: Moment) -> Vec<Event> {
    if let Some(out_of_time) = budget_time_out(state, spec, now) {
        return out_of_time;
    }
    let allowed = spec.limits.turn_ms_max;
    let mut events =
        vec![Event::LimitReached { limit: "turn_ms_max".to_owned(), value: allowed, allowed }];
    events.extend(calls::close(state, spec, "the turn ran out of time"));
    let seconds = allowed as f64 / 1000.0;
    let error = Failure::new(
        ErrorCode::LIMIT_TIME,
        format!("the turn took longer than its limit of {seconds} s"),
    )
    .with_hint("raise Limits.turn_s_max");
    events.push(Event::SessionFailed { error });
    events
}

/// The end of a turn that has used up the time of its session's budget.
fn budget_time_out(state: &State, spec: &AgentSpec, now: Moment) -> Option<Vec<Event>> {
    let allowed = state.budget()?.ms?;
    let left = state.spending.ms_left(now.at_us)?;
    // Whichever bound came first when the clock was started.
    if left.saturating_add(state.spending.running_ms(now.at_us)) >= spec.limits.turn_ms_max {
        return None;
    }
    let limit = "budget_ms".to_owned();
    let mut events = vec![Event::LimitReached { limit, value: allowed - left, allowed }];
    events.extend(calls::close(state, spec, "the session ran out of time"));
    let seconds = allowed as f64 / 1000.0;
    let message = format!("the turns of the session took its budget of {seconds} s");
    let error = Failure::new(ErrorCode::BUDGET_EXHAUSTED, message)
        .with_hint("give the session a budget with more seconds");
    events.push(Event::SessionFailed { error });
    Some(events)
}
