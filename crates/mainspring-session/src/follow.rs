//! What a session does next of its own accord, while nothing outside is awaited.
//!
//! [`follow`] is asked again and again until it has nothing to add; each answer is folded before
//! the next question. It begins steps and tool calls, judges answers, and ends turns.

use crate::asking::ApprovalRequested;
use crate::error::{ErrorCode, Failure};
use crate::event::{
    AnswerRejected, AnswerVerified, Event, ModelCallStarted, Problem, RejectAction, RouteDecided,
    SessionFinished, ToolCallFailed, ToolCallStarted,
};
use crate::ids::CallIndex;
use crate::message::Answer;
use crate::spec::{AgentSpec, Approve};
use crate::state::{CallStatus, PendingAnswer, Phase, State, ToolCallState};

/// The events that must come next; none when the outside world has to act.
pub(crate) fn follow(state: &State, spec: &AgentSpec) -> Vec<Event> {
    match &state.phase {
        _ if state.held => Vec::new(),
        Phase::Stepping => next_step(state, spec),
        Phase::Judging(pending) if !pending.problems.is_empty() => {
            vec![judge(state, spec, pending)]
        }
        // The agent may have been changed since to one without such a function.
        Phase::Judging(pending) if pending.verify && !spec.verify => {
            let step = state.steps.saturating_sub(1);
            vec![Event::AnswerVerified(AnswerVerified { step })]
        }
        Phase::Acting(calls) => calls.iter().filter_map(|call| begin(state, spec, call)).collect(),
        Phase::Concluding => {
            let step = state.steps.saturating_sub(1);
            vec![Event::SessionFinished(SessionFinished { step })]
        }
        Phase::Failing(error) => vec![fail_or_fall_back(state, spec, error)],
        _ => Vec::new(),
    }
}

/// The start of a model call with the whole conversation.
pub(crate) fn model_call(state: &State, spec: &AgentSpec, step: u32, attempt: u32) -> Event {
    // An agent that was changed while its session was down may have fewer models than before.
    let last = u32::try_from(spec.models.len()).unwrap_or(u32::MAX).saturating_sub(1);
    let count = u32::try_from(state.messages.len()).unwrap_or(u32::MAX);
    Event::ModelCallStarted(ModelCallStarted {
        step,
        attempt,
        tier: state.tier.min(last),
        messages: vec![(0, count)],
    })
}

/// The start of the next attempt at a tool call.
pub(crate) fn tool_call(state: &State, call: &ToolCallState) -> Event {
    Event::ToolCallStarted(ToolCallStarted {
        call: call.index,
        attempt: call.attempt + 1,
        name: call.call.name.clone(),
        effect_id: state.effect_id(call),
    })
}

/// The request for a person's approval of a tool call.
pub(crate) fn approval_request(state: &State, call: CallIndex) -> Event {
    let approval = state.approval_id(call);
    Event::ApprovalRequested(ApprovalRequested { call, approval })
}

/// Problems for the calls of an answer past the limit.
pub(crate) fn excess_calls(answer: &Answer, allowed: u32) -> impl Iterator<Item = Problem> {
    let count = u32::try_from(answer.tool_calls.len()).unwrap_or(u32::MAX);
    (allowed..count).map(move |position| Problem {
        check: "tool_count".to_owned(),
        message: format!("{count} tool calls in one answer, limit {allowed}"),
        call: Some(position),
    })
}

/// What follows a rejection: the next model if there is one, else what can be saved, else repair.
pub(crate) fn reject_action(state: &State, spec: &AgentSpec, problems: &[Problem]) -> RejectAction {
    let only_calls = problems.iter().all(|problem| problem.call.is_some());
    let too_many = problems.iter().all(|problem| problem.check == "tool_count");
    // An answer that the user's function has to accept must not be run in parts without it.
    let may_continue = only_calls && !spec.verify;
    if has_next_tier(state, spec) && !(too_many && may_continue) {
        RejectAction::Escalate
    } else if may_continue {
        RejectAction::Continue
    } else if state.repairs < spec.limits.repairs_max {
        RejectAction::Repair
    } else {
        RejectAction::Fail
    }
}

fn has_next_tier(state: &State, spec: &AgentSpec) -> bool {
    state.tier as usize + 1 < spec.models.len()
}

fn judge(state: &State, spec: &AgentSpec, pending: &PendingAnswer) -> Event {
    let problems = pending.problems.clone();
    let action = reject_action(state, spec, &problems);
    let step = state.steps.saturating_sub(1);
    Event::AnswerRejected(AnswerRejected { step, problems, action })
}

fn next_step(state: &State, spec: &AgentSpec) -> Vec<Event> {
    if let Some(events) = limit_reached(state, spec) {
        return events;
    }
    if !state.routed {
        let reason = match spec.models.len() {
            1 => "the only model".to_owned(),
            _ => "the first model of the route goes first".to_owned(),
        };
        return vec![route(state, spec, 0, reason)];
    }
    if let Some(reason) = escalation(state, spec) {
        return vec![route(state, spec, state.tier + 1, reason)];
    }
    vec![model_call(state, spec, state.steps, 1)]
}

/// Why the next model is due: the last answer was rejected and not taken into the conversation.
fn escalation(state: &State, spec: &AgentSpec) -> Option<String> {
    let reason = state.escalate.as_ref()?;
    has_next_tier(state, spec).then(|| reason.clone())
}

fn route(state: &State, spec: &AgentSpec, tier: u32, reason: String) -> Event {
    let model = spec.models.get(tier as usize).map(|model| model.name.clone()).unwrap_or_default();
    Event::RouteDecided(RouteDecided { step: state.steps, tier, model, reason })
}

fn limit_reached(state: &State, spec: &AgentSpec) -> Option<Vec<Event>> {
    let limits = &spec.limits;
    let tokens = state.turn_usage.total();
    let (code, limit, value, allowed, what) = if state.turn_steps() >= limits.steps_max {
        let (value, allowed) = (u64::from(state.turn_steps()), u64::from(limits.steps_max));
        (ErrorCode::LIMIT_STEPS, "steps_max", value, allowed, "steps")
    } else if tokens >= limits.tokens_max {
        (ErrorCode::LIMIT_TOKENS, "tokens_max", tokens, limits.tokens_max, "tokens")
    } else {
        return None;
    };
    let error = Failure::new(code, format!("the turn used {value} {what}, limit {allowed}"))
        .with_hint(format!("raise Limits.{limit}"));
    let reached = Event::LimitReached { limit: limit.to_owned(), value, allowed };
    Some(vec![reached, Event::SessionFailed { error }])
}

fn begin(state: &State, spec: &AgentSpec, call: &ToolCallState) -> Option<Event> {
    match &call.status {
        CallStatus::Approved => Some(tool_call(state, call)),
        CallStatus::Planned(None) => match approve(spec, call) {
            Approve::Never => Some(tool_call(state, call)),
            Approve::Always => Some(approval_request(state, call.index)),
            Approve::Policy => None,
        },
        CallStatus::Planned(Some(problem)) => Some(Event::ToolCallFailed(ToolCallFailed {
            call: call.index,
            attempt: 0,
            error: Failure::new(code_of(problem), problem.message.clone()),
            retry_at_us: None,
        })),
        _ => None,
    }
}

/// Whether a person is asked before this call.
pub(crate) fn approve(spec: &AgentSpec, call: &ToolCallState) -> Approve {
    spec.tool(&call.call.name).map_or(Approve::Never, |tool| tool.approve)
}

fn code_of(problem: &Problem) -> ErrorCode {
    match problem.check.as_str() {
        "tool_unknown" => ErrorCode::TOOL_UNKNOWN,
        "tool_count" => ErrorCode::TOOL_CALLS_TOO_MANY,
        _ => ErrorCode::TOOL_ARGUMENTS_INVALID,
    }
}

/// The next model if a model could not do its step, otherwise the end of the turn.
fn fail_or_fall_back(state: &State, spec: &AgentSpec, error: &Failure) -> Event {
    let model_error = error.code.as_str().starts_with("model_");
    if !model_error || !has_next_tier(state, spec) {
        return Event::SessionFailed { error: error.clone() };
    }
    let name = spec.models.get(state.tier as usize).map_or("?", |model| model.name.as_str());
    let reason = format!("model {name:?} failed ({}): {}", error.code, error.message);
    route(state, spec, state.tier + 1, reason)
}
