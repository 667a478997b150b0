//! Taking over a session whose owner is gone, and going on from where another session was.
//!
//! What was under way is lost, and whether it took effect is not known. A model call is made
//! again; a tool is run again only if its effect says that this does no harm, with the same effect
//! id; otherwise somebody must find out. An approval counts only in the store and the session in
//! which it was asked for: a copy and a fork ask again.

use crate::asking::EffectUnknown;
use crate::context::SummaryFailed;
use crate::decide::Moment;
use crate::error::{ErrorCode, Failure};
use crate::event::{Event, ModelCallFailed};
use crate::follow;
use crate::spec::{AgentSpec, Effect};
use crate::state::{CallStatus, Phase, State, ToolCallState};

/// A new owner's first event, and what follows from the state with it.
pub(crate) fn begun_anew(
    state: &State,
    first: Event,
    then: impl FnOnce(&State) -> Vec<Event>,
) -> Vec<Event> {
    let mut after = state.clone();
    after.fold(&first);
    let rest = then(&after);
    std::iter::once(first).chain(rest).collect()
}

/// What a new owner does about the calls that were under way. One that does not run the session
/// (`held`) leaves them as they are; approvals that count no more are asked for anew all the same.
pub(crate) fn retaken(
    state: &State,
    spec: &AgentSpec,
    now: Moment,
    approvals: Approvals,
) -> Vec<Event> {
    match &state.phase {
        Phase::Calling(call) if !state.held => vec![
            Event::ModelCallFailed(ModelCallFailed {
                step: call.step,
                attempt: call.attempt,
                error: Failure::new(
                    ErrorCode::PROCESS_LOST,
                    "the process ended while the model was answering",
                ),
                retry_at_us: Some(now.at_us),
                retry_after_ms: None,
                streamed_chars: 0,
                charged: state.spending.reserved,
            }),
            follow::model_call(state, spec, (call.step, call.attempt + 1), now),
        ],
        // What it would have said of the conversation is not worth asking twice for.
        Phase::Summarising(summary) if !state.held => {
            let error = Failure::new(
                ErrorCode::PROCESS_LOST,
                "the process ended while a summary was being made",
            );
            let charged = state.spending.reserved;
            vec![Event::SummaryFailed(SummaryFailed { step: summary.step, error, charged })]
        }
        Phase::Acting(calls) => {
            calls.iter().filter_map(|call| retake(state, spec, call, approvals)).collect()
        }
        _ => Vec::new(),
    }
}

/// What a fork does about the calls that were under way where it branched off.
pub(crate) fn forked(state: &State, spec: &AgentSpec) -> Vec<Event> {
    let calls = state.calls().iter();
    calls.filter_map(|call| retake(state, spec, call, Approvals::Void)).collect()
}

/// Whether approvals that were asked for before still count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Approvals {
    /// The session is the same and in the same store.
    Kept,
    /// It is a fork, or in another store: a copy.
    Void,
}

fn retake(
    state: &State,
    spec: &AgentSpec,
    call: &ToolCallState,
    approvals: Approvals,
) -> Option<Event> {
    match &call.status {
        CallStatus::Running if !state.held => {
            let tool = spec.tool(&call.call.name);
            let effect = tool.map_or(Effect::Unsafe, |tool| tool.effect);
            Some(if effect.repeatable() {
                follow::tool_call(state, call)
            } else {
                Event::EffectUnknown(EffectUnknown { call: call.index, attempt: call.attempt })
            })
        }
        CallStatus::Awaiting(_) | CallStatus::Approved => {
            (approvals == Approvals::Void).then(|| follow::approval_request(state, call.index))
        }
        _ => None,
    }
}
