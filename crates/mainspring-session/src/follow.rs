//! What a session does next of its own accord, while nothing outside is awaited.
//!
//! [`follow`] is asked again and again until it has nothing to add; each answer is folded before
//! the next question. It begins steps and tool calls, judges answers, and ends turns.

use crate::asking::ApprovalRequested;
use crate::budget::Amount;
use crate::checks;
use crate::compact;
use crate::decide::Moment;
use crate::error::{ErrorCode, Failure};
use crate::event::{
    AnswerRejected, AnswerVerified, Event, ModelCallStarted, Problem, RejectAction, RouteDecided,
    SessionFinished, ToolCallFailed, ToolCallStarted,
};
use crate::ids::CallIndex;
use crate::message::Answer;
use crate::routing;
use crate::spec::{AgentSpec, Approve};
use crate::spending::estimate;
use crate::state::{CallStatus, PendingAnswer, Phase, State, ToolCallState};

/// The events that must come next; none when the outside world has to act.
pub(crate) fn follow(state: &State, spec: &AgentSpec, now: Moment) -> Vec<Event> {
    match &state.phase {
        _ if state.held => Vec::new(),
        Phase::Stepping => next_step(state, spec, now),
        Phase::Judging(pending) if !pending.problems.is_empty() => {
            vec![judge(state, spec, pending)]
        }
        // The agent may have been changed since to one without such a function.
        Phase::Judging(pending) if pending.verify && !spec.verify => {
            let step = state.steps.saturating_sub(1);
            vec![Event::AnswerVerified(AnswerVerified { step })]
        }
        Phase::Judging(pending) if !pending.verify => {
            checks::next(state, spec, pending).into_iter().collect()
        }
        Phase::Acting(calls) => calls.iter().filter_map(|call| begin(state, spec, call)).collect(),
        Phase::Concluding => {
            let step = state.steps.saturating_sub(1);
            vec![Event::SessionFinished(SessionFinished { step })]
        }
        Phase::Failing(error) => match compact::after_overflow(state, spec) {
            Some(event) => vec![event],
            None => vec![fail_or_fall_back(state, spec, error)],
        },
        _ => Vec::new(),
    }
}

/// The start of a model call with what is sent of the conversation.
pub(crate) fn model_call(
    state: &State,
    spec: &AgentSpec,
    (step, attempt): (u32, u32),
    now: Moment,
) -> Event {
    // An agent that was changed while its session was down may have fewer models than before.
    let last = u32::try_from(spec.models.len()).unwrap_or(u32::MAX).saturating_sub(1);
    let tier = state.tier.min(last);
    Event::ModelCallStarted(ModelCallStarted {
        step,
        attempt,
        tier,
        messages: state.sent_ranges(),
        reserved: reserve(state, spec, tier),
        class: (last > 0).then(|| routing::step_class(state, spec)),
        decided_us: (last > 0).then_some(now.at_us),
    })
}

/// What a model call is expected to use, where somebody keeps an account.
fn reserve(state: &State, spec: &AgentSpec, tier: u32) -> Option<Amount> {
    (!state.spending.funding.is_empty()).then(|| estimate(state, spec, tier).likely)
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

/// What follows a rejection. A mistake of form is sent back to the same model once; then, and for all
/// else, the next model is asked, if one is left for the step. After that, what can be saved is, or
/// the answer is sent back as often as the limit allows.
pub(crate) fn rejection(state: &State, spec: &AgentSpec, problems: Vec<Problem>) -> Event {
    let only_calls = problems.iter().all(|problem| problem.call.is_some());
    let too_many = problems.iter().all(|problem| problem.check == "tool_count");
    let of_form = problems.iter().all(|problem| checks::is_of_form(&problem.check));
    // An answer that the user's function has to accept must not be run in parts without it.
    let may_continue = only_calls && !spec.verify;
    let larger_left = routing::next_tier(state, spec).is_some();
    let first = state.route.step_repairs == 0 && spec.limits.repairs_max > 0;
    let action = if may_continue && (too_many || !larger_left) {
        RejectAction::Continue
    } else if larger_left {
        if of_form && first { RejectAction::Repair } else { RejectAction::Escalate }
    } else if state.repairs < spec.limits.repairs_max {
        RejectAction::Repair
    } else {
        RejectAction::Fail
    };
    let shows = || spec.route.as_ref().is_some_and(|route| route.show_draft);
    Event::AnswerRejected(AnswerRejected {
        step: state.steps.saturating_sub(1),
        problems,
        larger_left: larger_left && action == RejectAction::Repair,
        draft: action == RejectAction::Escalate && shows(),
        action,
    })
}

fn judge(state: &State, spec: &AgentSpec, pending: &PendingAnswer) -> Event {
    rejection(state, spec, pending.problems.clone())
}

fn next_step(state: &State, spec: &AgentSpec, now: Moment) -> Vec<Event> {
    if let Some(events) = limit_reached(state, spec) {
        return events;
    }
    if let Some(route) = next_route(state, spec, now) {
        return vec![route];
    }
    if let Some(event) = compact::due(state, spec) {
        return vec![event];
    }
    let attempt = state.context.first_attempt(state.steps);
    vec![model_call(state, spec, (state.steps, attempt), now)]
}

/// The decision about the step's model, where one is due.
fn next_route(state: &State, spec: &AgentSpec, now: Moment) -> Option<Event> {
    if let Some(reason) = &state.escalate {
        // The last answer was rejected. An agent that was changed since may have no larger model.
        let tier = routing::larger(state, spec).next();
        return tier.map(|tier| route(state, spec, tier, reason.clone()));
    }
    if state.routed {
        return None;
    }
    if spec.models.len() == 1 {
        return Some(route(state, spec, 0, "the only model".to_owned()));
    }
    if let Some(tier) = state.frugal_tier(spec) {
        let reason = "a budget is past its soft limit: the cheapest model".to_owned();
        return Some(route(state, spec, tier, reason));
    }
    let decision = routing::choose(state, spec, now);
    let tier = u32::try_from(decision.decision.tier).unwrap_or(0);
    let reason = decision.decision.reason.clone();
    let decision = Some(Box::new(decision));
    match route(state, spec, tier, reason) {
        Event::RouteDecided(decided) => {
            Some(Event::RouteDecided(RouteDecided { decision, ..decided }))
        }
        other => Some(other),
    }
}

fn route(state: &State, spec: &AgentSpec, tier: u32, reason: String) -> Event {
    let model = spec.models.get(tier as usize).map(|model| model.name.clone()).unwrap_or_default();
    Event::RouteDecided(RouteDecided { step: state.steps, tier, model, reason, decision: None })
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

/// Whether another model takes over when this failure stands.
pub(crate) fn falls_back(state: &State, spec: &AgentSpec, error: &Failure) -> bool {
    error.code.as_str().starts_with("model_") && routing::stand_in(state, spec).is_some()
}

/// Another model if a model could not do its step, otherwise the end of the turn.
fn fail_or_fall_back(state: &State, spec: &AgentSpec, error: &Failure) -> Event {
    let falls_back = falls_back(state, spec, error);
    let Some(tier) = routing::stand_in(state, spec).filter(|_| falls_back) else {
        return Event::SessionFailed { error: error.clone() };
    };
    let name = spec.models.get(state.tier as usize).map_or("?", |model| model.name.as_str());
    let reason = format!("model {name:?} failed ({}): {}", error.code, error.message);
    route(state, spec, tier, reason)
}
