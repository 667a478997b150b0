//! From facts to events: the whole behaviour of a session.
//!
//! [`decide`] takes one fact and answers with the events that follow from it, up to the point
//! where the outside world must act again. It folds them into the state as it goes, so that each
//! rule sees the truth; the engine makes them durable before it carries out a command.
//!
//! Which fact is allowed in which phase stands in [`TRANSITIONS`]; every other pair is refused.
//! What follows when nothing outside is awaited is in `follow.rs`.

use crate::error::{ErrorCode, Failure};
use crate::event::{
    AnswerRejected, AnswerVerified, Event, FinishReason, InputReceived, ModelCallFailed,
    ModelCallFinished, Origin, Problem, SCHEMA_VERSION, SessionStarted, Timing, ToolCallFailed,
    ToolCallFinished, ToolCallLate,
};
use crate::follow::{self, reject_action};
use crate::ids::{BlobHash, CallIndex, Epoch, SessionId};
use crate::message::{Answer, Part, Usage};
use crate::recover;
use crate::retry::{model_retry_at, tool_retry_at};
use crate::spec::AgentSpec;
use crate::state::{CallStatus, Phase, PhaseKind, State};

/// When a fact became known, and the randomness it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds since the epoch.
    pub at_us: i64,
    /// A fresh random number.
    pub seed: u64,
}

/// Something the engine learnt from outside.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of the events they become")]
pub enum Fact {
    /// A session is to begin.
    Started { session: SessionId, origin: Option<Origin>, fingerprint: BlobHash },
    /// The user said something.
    Input { content: Vec<Part> },
    /// A model answered. `problems` are the findings of the engine's checks.
    ModelAnswered {
        step: u32,
        attempt: u32,
        answer: Answer,
        finish_reason: FinishReason,
        usage: Usage,
        timing: Timing,
        problems: Vec<Problem>,
    },
    /// A model call failed.
    ModelFailed { step: u32, attempt: u32, error: Failure, retry_after_ms: Option<u64> },
    /// The user's function accepted the pending answer, or gave a reason why not.
    Verified { rejection: Option<String> },
    /// A tool returned.
    ToolReturned { call: CallIndex, attempt: u32, text: String, duration_us: u64 },
    /// A tool failed, timed out, or was refused.
    ToolFailed { call: CallIndex, attempt: u32, error: Failure },
    /// A time that was waited for has passed.
    TimerFired,
    /// The user wants the turn to end.
    CancelRequested { reason: String },
    /// The turn has taken as long as it may.
    TurnTimedOut,
    /// A new owner has taken the session over.
    Reopened { epoch: Epoch, fingerprint: BlobHash },
}

/// The kinds of [`Fact`], for tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "documented at Fact")]
pub enum FactKind {
    Started,
    Input,
    ModelAnswered,
    ModelFailed,
    Verified,
    ToolReturned,
    ToolFailed,
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
            Fact::Input { .. } => FactKind::Input,
            Fact::ModelAnswered { .. } => FactKind::ModelAnswered,
            Fact::ModelFailed { .. } => FactKind::ModelFailed,
            Fact::Verified { .. } => FactKind::Verified,
            Fact::ToolReturned { .. } => FactKind::ToolReturned,
            Fact::ToolFailed { .. } => FactKind::ToolFailed,
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
/// through inside one decision; a log can end there only where it was cut, as a fork does.
pub const TRANSITIONS: &[(PhaseKind, FactKind)] = &[
    (PhaseKind::Empty, FactKind::Started),
    (PhaseKind::Ready, FactKind::Input),
    (PhaseKind::Ready, FactKind::Reopened),
    (PhaseKind::Ready, FactKind::ToolReturned),
    (PhaseKind::Ready, FactKind::ToolFailed),
    (PhaseKind::Stepping, FactKind::Reopened),
    (PhaseKind::Stepping, FactKind::CancelRequested),
    (PhaseKind::Calling, FactKind::ModelAnswered),
    (PhaseKind::Calling, FactKind::ModelFailed),
    (PhaseKind::Calling, FactKind::ToolReturned),
    (PhaseKind::Calling, FactKind::ToolFailed),
    (PhaseKind::Calling, FactKind::CancelRequested),
    (PhaseKind::Calling, FactKind::TurnTimedOut),
    (PhaseKind::Calling, FactKind::Reopened),
    (PhaseKind::Backoff, FactKind::TimerFired),
    (PhaseKind::Backoff, FactKind::ToolReturned),
    (PhaseKind::Backoff, FactKind::ToolFailed),
    (PhaseKind::Backoff, FactKind::CancelRequested),
    (PhaseKind::Backoff, FactKind::TurnTimedOut),
    (PhaseKind::Backoff, FactKind::Reopened),
    (PhaseKind::Judging, FactKind::Verified),
    (PhaseKind::Judging, FactKind::ToolReturned),
    (PhaseKind::Judging, FactKind::ToolFailed),
    (PhaseKind::Judging, FactKind::CancelRequested),
    (PhaseKind::Judging, FactKind::TurnTimedOut),
    (PhaseKind::Judging, FactKind::Reopened),
    (PhaseKind::Acting, FactKind::ToolReturned),
    (PhaseKind::Acting, FactKind::ToolFailed),
    (PhaseKind::Acting, FactKind::TimerFired),
    (PhaseKind::Acting, FactKind::CancelRequested),
    (PhaseKind::Acting, FactKind::TurnTimedOut),
    (PhaseKind::Acting, FactKind::Reopened),
    (PhaseKind::Concluding, FactKind::Reopened),
    (PhaseKind::Concluding, FactKind::CancelRequested),
    (PhaseKind::Failing, FactKind::Reopened),
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
    let mut events = respond(state, spec, fact, now);
    for event in &events {
        state.fold(event);
    }
    if events.is_empty() {
        return Ok(events);
    }
    loop {
        let next = follow::follow(state, spec);
        if next.is_empty() {
            return Ok(events);
        }
        for event in &next {
            state.fold(event);
        }
        events.extend(next);
    }
}

fn respond(state: &State, spec: &AgentSpec, fact: Fact, now: Moment) -> Vec<Event> {
    match fact {
        Fact::Started { session, origin, fingerprint } => {
            vec![Event::SessionStarted(SessionStarted {
                schema: SCHEMA_VERSION,
                session,
                agent: spec.name.clone(),
                fingerprint,
                origin,
            })]
        }
        Fact::Input { content } => vec![Event::InputReceived(InputReceived { content })],
        fact @ Fact::ModelAnswered { .. } => model_answered(state, spec, fact),
        Fact::ModelFailed { step, attempt, error, retry_after_ms } => {
            let Some(_) = active(state, step, attempt) else {
                return Vec::new();
            };
            // A crash says nothing of the model, so it uses up none of its attempts.
            let counted = attempt.saturating_sub(state.lost_attempts).max(1);
            let retry_at_us = model_retry_at(&spec.limits, counted, &error, retry_after_ms, now);
            vec![Event::ModelCallFailed(ModelCallFailed { step, attempt, error, retry_at_us })]
        }
        Fact::Verified { rejection } => match &state.phase {
            Phase::Judging(pending) if pending.verify => vec![verified(state, spec, rejection)],
            _ => Vec::new(),
        },
        Fact::ToolReturned { call, attempt, text, duration_us } => {
            let text = cut(text, spec.limits.tool_result_bytes_max);
            if !running(state, call, attempt) {
                let late = ToolCallLate { call, attempt, text: Some(text), error: None };
                return vec![Event::ToolCallLate(late)];
            }
            vec![Event::ToolCallFinished(ToolCallFinished { call, text, duration_us })]
        }
        Fact::ToolFailed { call, attempt, mut error } => {
            error.message = cut(error.message, spec.limits.tool_result_bytes_max);
            error.hint = error.hint.map(|hint| cut(hint, spec.limits.tool_result_bytes_max));
            if !running(state, call, attempt) {
                let late = ToolCallLate { call, attempt, text: None, error: Some(error) };
                return vec![Event::ToolCallLate(late)];
            }
            let tool = state.call(call).and_then(|current| spec.tool(&current.call.name));
            let retry_at_us = tool.and_then(|tool| tool_retry_at(tool, attempt, &error, now));
            vec![Event::ToolCallFailed(ToolCallFailed { call, attempt, error, retry_at_us })]
        }
        Fact::TimerFired => timer_fired(state, spec, now),
        Fact::CancelRequested { reason } => {
            let mut events = vec![Event::CancelRequested { reason: reason.clone() }];
            events.extend(close_calls(state, "the session was cancelled"));
            events.push(Event::SessionCancelled { reason });
            events
        }
        Fact::TurnTimedOut => turn_timed_out(state, spec),
        Fact::Reopened { epoch, fingerprint } => {
            let taken = Event::EpochTaken { epoch, fingerprint };
            std::iter::once(taken).chain(recover::retaken(state, spec, now)).collect()
        }
    }
}

fn active(state: &State, step: u32, attempt: u32) -> Option<u32> {
    match state.phase {
        Phase::Calling(call) if (call.step, call.attempt) == (step, attempt) => Some(call.tier),
        _ => None,
    }
}

fn running(state: &State, call: CallIndex, attempt: u32) -> bool {
    state
        .call(call)
        .is_some_and(|call| call.status == CallStatus::Running && call.attempt == attempt)
}

fn model_answered(state: &State, spec: &AgentSpec, fact: Fact) -> Vec<Event> {
    let Fact::ModelAnswered { step, attempt, answer, finish_reason, usage, timing, mut problems } =
        fact
    else {
        return Vec::new();
    };
    let Some(tier) = active(state, step, attempt) else {
        return Vec::new();
    };
    problems.extend(follow::excess_calls(&answer, spec.limits.tool_calls_per_step_max));
    let price = spec.models.get(tier as usize).and_then(|model| model.price);
    vec![Event::ModelCallFinished(ModelCallFinished {
        step,
        attempt,
        finish_reason,
        usage,
        cost_usd: price.map(|price| price.of(usage)),
        timing,
        verify: spec.verify && problems.is_empty(),
        answer,
        problems,
    })]
}

fn verified(state: &State, spec: &AgentSpec, rejection: Option<String>) -> Event {
    let step = state.steps.saturating_sub(1);
    match rejection {
        None => Event::AnswerVerified(AnswerVerified { step }),
        Some(reason) => {
            let problem = Problem { check: "verify".to_owned(), message: reason, call: None };
            let problems = vec![problem];
            let action = reject_action(state, spec, &problems);
            Event::AnswerRejected(AnswerRejected { step, problems, action })
        }
    }
}

fn timer_fired(state: &State, spec: &AgentSpec, now: Moment) -> Vec<Event> {
    match &state.phase {
        Phase::Backoff(call, at_us) if *at_us <= now.at_us => {
            vec![follow::model_call(state, spec, call.step, call.attempt + 1)]
        }
        Phase::Acting(calls) => calls
            .iter()
            .filter(|call| matches!(call.status, CallStatus::Backoff(at) if at <= now.at_us))
            .map(|call| follow::tool_call(state, call))
            .collect(),
        _ => Vec::new(),
    }
}

fn turn_timed_out(state: &State, spec: &AgentSpec) -> Vec<Event> {
    let allowed = spec.limits.turn_ms_max;
    let mut events =
        vec![Event::LimitReached { limit: "turn_ms_max".to_owned(), value: allowed, allowed }];
    events.extend(close_calls(state, "the turn ran out of time"));
    let seconds = allowed as f64 / 1000.0;
    let error = Failure::new(
        ErrorCode::LIMIT_TIME,
        format!("the turn took longer than its limit of {seconds} s"),
    )
    .with_hint("raise Limits.turn_s_max");
    events.push(Event::SessionFailed { error });
    events
}

/// An outcome for every call that has none, so that no transcript is left open.
fn close_calls<'a>(state: &'a State, why: &'a str) -> impl Iterator<Item = Event> + 'a {
    state.calls().iter().filter(|call| call.outstanding()).map(move |call| {
        Event::ToolCallFailed(ToolCallFailed {
            call: call.index,
            attempt: call.attempt,
            error: Failure::new(
                ErrorCode::CANCELLED,
                format!("tool {:?} was stopped: {why}", call.call.name),
            ),
            retry_at_us: None,
        })
    })
}

/// Cuts the middle out of a text that is too long, on character boundaries, and says so.
fn cut(text: String, bytes_max: u64) -> String {
    let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    if text.len() <= bytes_max {
        return text;
    }
    let head = text.floor_char_boundary(bytes_max / 2);
    let tail = text.ceil_char_boundary(text.len() - bytes_max / 2);
    format!("{}\n[... {} bytes cut ...]\n{}", &text[..head], tail - head, &text[tail..])
}
