//! What facts about tool calls lead to: outcomes, and what people or the user's functions say.
//!
//! Invariant: a fact counts once. One about an attempt that no longer counts is recorded as late;
//! an answer to a question that no longer stands, or never stood, leads to nothing.

use crate::asking::{ApprovalDecided, ApprovalDecision, EffectOutcome, EffectResolved};
use crate::decide::Moment;
use crate::error::{ErrorCode, Failure};
use crate::event::{Event, ForkEdit, ToolCallFailed, ToolCallFinished, ToolCallLate};
use crate::follow;
use crate::ids::CallIndex;
use crate::retry::tool_retry_at;
use crate::spec::{AgentSpec, Approve};
use crate::state::{CallStatus, State};

pub(crate) fn returned(
    state: &State,
    spec: &AgentSpec,
    (call, attempt): (CallIndex, u32),
    text: String,
    duration_us: u64,
) -> Event {
    let text = cut(text, spec);
    if running(state, call, attempt) {
        Event::ToolCallFinished(ToolCallFinished { call, text, duration_us })
    } else {
        Event::ToolCallLate(ToolCallLate { call, attempt, text: Some(text), error: None })
    }
}

pub(crate) fn failed(
    state: &State,
    spec: &AgentSpec,
    (call, attempt): (CallIndex, u32),
    mut error: Failure,
    now: Moment,
) -> Event {
    error.message = cut(error.message, spec);
    error.hint = error.hint.map(|hint| cut(hint, spec));
    if !running(state, call, attempt) {
        return Event::ToolCallLate(ToolCallLate { call, attempt, text: None, error: Some(error) });
    }
    let tool = state.call(call).and_then(|current| spec.tool(&current.call.name));
    let retry_at_us = tool.and_then(|tool| tool_retry_at(tool, attempt, &error, now));
    Event::ToolCallFailed(ToolCallFailed { call, attempt, error, retry_at_us })
}

/// An owner that does not run the session begins nothing, and a policy has no say where the agent
/// asks a person anyway.
pub(crate) fn policy_answered(
    state: &State,
    spec: &AgentSpec,
    call: CallIndex,
    needed: bool,
) -> Option<Event> {
    let current = state.call(call)?;
    let asked = current.status == CallStatus::Planned(None)
        && follow::approve(spec, current) == Approve::Policy;
    if state.held || !asked {
        return None;
    }
    Some(match needed {
        true => follow::approval_request(state, call),
        false => follow::tool_call(state, current),
    })
}

pub(crate) fn approval_decided(
    state: &State,
    spec: &AgentSpec,
    decided: ApprovalDecided,
) -> Option<Event> {
    let current = state.call(decided.call)?;
    if current.status != CallStatus::Awaiting(decided.approval.clone()) {
        return None;
    }
    let decision = match decided.decision {
        ApprovalDecision::Denied { message } => {
            ApprovalDecision::Denied { message: cut(message, spec) }
        }
        granted @ ApprovalDecision::Granted { .. } => granted,
    };
    Some(Event::ApprovalDecided(ApprovalDecided { decision, ..decided }))
}

pub(crate) fn effect_resolved(
    state: &State,
    spec: &AgentSpec,
    resolved: EffectResolved,
) -> Option<Event> {
    if state.call(resolved.call)?.status != CallStatus::Unknown {
        return None;
    }
    let outcome = match resolved.outcome {
        EffectOutcome::Done { text } => EffectOutcome::Done { text: cut(text, spec) },
        EffectOutcome::NotDone => EffectOutcome::NotDone,
        EffectOutcome::Undecided { message } => {
            EffectOutcome::Undecided { message: cut(message, spec) }
        }
        EffectOutcome::Failed { message } => EffectOutcome::Failed { message: cut(message, spec) },
    };
    Some(Event::EffectResolved(EffectResolved { outcome, ..resolved }))
}

/// An edit of a fork, with the result that it gives a call within its limit.
pub(crate) fn cut_edit(edit: ForkEdit, spec: &AgentSpec) -> ForkEdit {
    match edit {
        ForkEdit::Call { call, text } => ForkEdit::Call { call, text: cut(text, spec) },
        other => other,
    }
}

/// An outcome for every call that has none, so that no transcript is left open.
pub(crate) fn close<'a>(
    state: &'a State,
    spec: &'a AgentSpec,
    why: &'a str,
) -> impl Iterator<Item = Event> + 'a {
    state.calls().iter().filter(|call| call.outstanding()).map(move |call| {
        let name = &call.call.name;
        let repeatable = || spec.tool(name).is_some_and(|tool| tool.effect.repeatable());
        let error = match call.status {
            // The model must not take "stopped" for "not done".
            CallStatus::Unknown => outcome_unknown(name),
            // What an owner that runs nothing finds running was lost with an earlier one.
            CallStatus::Running if state.held && !repeatable() => outcome_unknown(name),
            _ => Failure::new(ErrorCode::CANCELLED, format!("tool {name:?} was stopped: {why}")),
        };
        let (call, attempt) = (call.index, call.attempt);
        Event::ToolCallFailed(ToolCallFailed { call, attempt, error, retry_at_us: None })
    })
}

fn outcome_unknown(tool: &str) -> Failure {
    let message = format!(
        "tool {tool:?} was running when the process ended; whether it took effect is not known, \
         and it was not run again"
    );
    Failure::new(ErrorCode::TOOL_OUTCOME_UNKNOWN, message)
        .with_hint("find out whether it took effect before you call it again")
}

fn running(state: &State, call: CallIndex, attempt: u32) -> bool {
    state
        .call(call)
        .is_some_and(|call| call.status == CallStatus::Running && call.attempt == attempt)
}

/// Cuts the middle out of a text that a model would find too long, on character boundaries, and
/// says so.
fn cut(text: String, spec: &AgentSpec) -> String {
    let bytes_max = usize::try_from(spec.limits.tool_result_bytes_max).unwrap_or(usize::MAX);
    if text.len() <= bytes_max {
        return text;
    }
    let head = text.floor_char_boundary(bytes_max / 2);
    let tail = text.ceil_char_boundary(text.len() - bytes_max / 2);
    format!("{}\n[... {} bytes cut ...]\n{}", &text[..head], tail - head, &text[tail..])
}
