//! What the engine must do once events are durable.

use crate::checks::Check;
use crate::context::{ActiveSummary, SummaryStarted};
use crate::event::{Event, ModelCallFinished, ModelCallStarted, ToolCallStarted};
use crate::follow;
use crate::ids::CallIndex;
use crate::spec::{AgentSpec, Approve};
use crate::state::{ActiveModelCall, CallStatus, Phase, State, ToolCallState};

/// An order to the engine. Given only after the events that cause it are durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make this model call with the conversation as it stands.
    CallModel(ActiveModelCall),
    /// Have a model make this summary.
    Summarise(ActiveSummary),
    /// Run this tool call.
    CallTool {
        /// Which one.
        call: CallIndex,
        /// The attempt.
        attempt: u32,
    },
    /// Ask the user's function whether a person must approve this tool call.
    AskPolicy {
        /// Which one.
        call: CallIndex,
    },
    /// Ask the user's function what became of this tool call, whose process ended.
    Reconcile {
        /// Which one.
        call: CallIndex,
    },
    /// Ask the user's function about the pending answer.
    Verify,
    /// Ask models about the pending answer.
    Check {
        /// The step whose answer it is.
        step: u32,
        /// Which check.
        check: Check,
    },
    /// Report the passing of this time (`Fact::TimerFired`), in microseconds since the epoch.
    Wait {
        /// When.
        until_us: i64,
    },
    /// Stop everything under way: its outcomes no longer count.
    CancelOutstanding,
    /// The turn has ended.
    Finish,
}

/// The commands that follow from newly appended events, given the state after them.
#[must_use]
pub fn commands(state: &State, spec: &AgentSpec, events: &[Event]) -> Vec<Command> {
    let mut commands = Vec::with_capacity(events.len());
    if state.held {
        return commands;
    }
    for event in events {
        match event {
            Event::ModelCallStarted(started) => commands.extend(call_model(state, started)),
            Event::SummaryStarted(started) => commands.extend(summarise(state, started)),
            Event::ModelCallFinished(finished) => commands.extend(verify(state, finished)),
            Event::ToolCallStarted(started) => commands.extend(call_tool(state, started)),
            // A new owner's first event may have ordered it already.
            Event::CheckStarted(started) => {
                let check = check(state, started.step);
                commands.extend(check.filter(|check| !commands.contains(check)));
            }
            Event::ModelCallFailed(failed) => commands.extend(wait(failed.retry_at_us)),
            Event::ToolCallFailed(failed) => commands.extend(wait(failed.retry_at_us)),
            Event::CancelRequested { .. } | Event::LimitReached { .. } => {
                commands.push(Command::CancelOutstanding);
            }
            Event::EpochTaken(_) | Event::SessionForked(_) => commands.extend(resumed(state)),
            event if event.is_terminal() => commands.push(Command::Finish),
            _ => {}
        }
    }
    if events.iter().any(makes_plans) {
        commands.extend(questions(state, spec));
    }
    commands
}

/// The call, unless a later event of the same append has already ended it.
fn call_model(state: &State, started: &ModelCallStarted) -> Option<Command> {
    match &state.phase {
        Phase::Calling(active)
            if (active.step, active.attempt) == (started.step, started.attempt) =>
        {
            Some(Command::CallModel(*active))
        }
        _ => None,
    }
}

/// The summary, unless a later event of the same append has already ended it.
fn summarise(state: &State, started: &SummaryStarted) -> Option<Command> {
    match state.phase {
        Phase::Summarising(active) if active.step == started.step => {
            Some(Command::Summarise(active))
        }
        _ => None,
    }
}

/// The call, unless a later event of the same append has already ended it.
fn call_tool(state: &State, started: &ToolCallStarted) -> Option<Command> {
    let current = state.call(started.call)?;
    let running = current.status == CallStatus::Running && current.attempt == started.attempt;
    running.then_some(Command::CallTool { call: started.call, attempt: started.attempt })
}

/// The question, unless a later event of the same append has already settled it.
fn verify(state: &State, finished: &ModelCallFinished) -> Option<Command> {
    let awaited = matches!(&state.phase, Phase::Judging(pending) if pending.verify);
    (finished.verify && awaited && finished.step + 1 == state.steps).then_some(Command::Verify)
}

/// The check, unless a later event of the same append has already ended it.
fn check(state: &State, step: u32) -> Option<Command> {
    let Phase::Judging(pending) = &state.phase else { return None };
    let check = pending.checking.filter(|_| step + 1 == state.steps)?;
    Some(Command::Check { step, check })
}

/// Whether an event may leave tool calls behind that a function of the user must be asked about.
fn makes_plans(event: &Event) -> bool {
    matches!(
        event,
        Event::ModelCallFinished(_)
            | Event::AnswerVerified(_)
            | Event::AnswerRejected(_)
            | Event::CheckFinished(_)
            | Event::EpochTaken(_)
            | Event::SessionForked(_)
    )
}

/// What the user's functions must be asked about the calls of the step.
fn questions(state: &State, spec: &AgentSpec) -> impl Iterator<Item = Command> {
    let asked = |current: &ToolCallState| {
        let call = current.index;
        let reconcile = || spec.tool(&current.call.name).is_some_and(|tool| tool.reconcile);
        match current.status {
            CallStatus::Planned(None) if follow::approve(spec, current) == Approve::Policy => {
                Some(Command::AskPolicy { call })
            }
            CallStatus::Unknown if reconcile() => Some(Command::Reconcile { call }),
            _ => None,
        }
    };
    state.calls().iter().filter_map(asked).collect::<Vec<_>>().into_iter()
}

fn wait(until_us: Option<i64>) -> Option<Command> {
    until_us.map(|until_us| Command::Wait { until_us })
}

/// What a new owner must take up that no event of its own asks for.
fn resumed(state: &State) -> Vec<Command> {
    match &state.phase {
        Phase::Backoff(_, at_us) => vec![Command::Wait { until_us: *at_us }],
        Phase::Judging(pending) if pending.verify => vec![Command::Verify],
        Phase::Judging(_) => check(state, state.steps.saturating_sub(1)).into_iter().collect(),
        Phase::Acting(calls) => calls
            .iter()
            .filter_map(|call| match call.status {
                CallStatus::Backoff(at_us) => Some(Command::Wait { until_us: at_us }),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}
