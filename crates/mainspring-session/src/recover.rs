//! Taking over a session whose owner is gone.
//!
//! What was under way is lost, and whether it took effect is not known. A model call is made
//! again; a tool is run again only if its effect says that this does no harm.

use crate::decide::Moment;
use crate::error::{ErrorCode, Failure};
use crate::event::{Event, ModelCallFailed, ToolCallFailed};
use crate::follow;
use crate::spec::{AgentSpec, Effect};
use crate::state::{CallStatus, Phase, State, ToolCallState};

/// What a new owner does about the calls that were under way.
pub(crate) fn retaken(state: &State, spec: &AgentSpec, now: Moment) -> Vec<Event> {
    let mut events = Vec::new();
    match &state.phase {
        Phase::Calling(call) => {
            events.push(Event::ModelCallFailed(ModelCallFailed {
                step: call.step,
                attempt: call.attempt,
                error: Failure::new(
                    ErrorCode::PROCESS_LOST,
                    "the process ended while the model was answering",
                ),
                retry_at_us: Some(now.at_us),
            }));
            events.push(follow::model_call(state, spec, call.step, call.attempt + 1));
        }
        Phase::Acting(calls) => {
            let lost = calls.iter().filter(|call| call.status == CallStatus::Running);
            events.extend(lost.map(|call| retake(state, spec, call)));
        }
        _ => {}
    }
    events
}

fn retake(state: &State, spec: &AgentSpec, call: &ToolCallState) -> Event {
    let effect = spec.tool(&call.call.name).map_or(Effect::Unsafe, |tool| tool.effect);
    if effect.repeatable() {
        return follow::tool_call(state, call);
    }
    let name = &call.call.name;
    Event::ToolCallFailed(ToolCallFailed {
        call: call.index,
        attempt: call.attempt,
        error: Failure::new(
            ErrorCode::TOOL_OUTCOME_UNKNOWN,
            format!(
                "tool {name:?} was running when the process ended; whether it took effect is \
                 not known, and it was not run again"
            ),
        )
        .with_hint("find out whether it took effect before you call it again"),
        retry_at_us: None,
    })
}
