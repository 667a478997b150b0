//! What a session amounts to, for whoever asks.

use mainspring_session::{
    ApprovalId, CallIndex, EffectId, Failure, Outcome, SessionId, State, Usage,
};

/// How a session's last turn stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionOutcome {
    /// It goes on.
    Open,
    /// It goes on once a person decides something.
    Waiting,
    /// It ended with this text.
    Finished(String),
    /// It ended with this error.
    Failed(Failure),
    /// It was cancelled for this reason.
    Cancelled(String),
}

/// A session in a few numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionReport {
    /// The session.
    pub session: SessionId,
    /// How its last turn stands.
    pub outcome: SessionOutcome,
    /// Tokens over all turns.
    pub usage: Usage,
    /// US dollars over all turns, of the calls whose price is known.
    pub cost_usd: f64,
    /// Steps of the last turn.
    pub steps: u32,
    /// Prompt caches that were lost without a reason.
    pub cache_busts: u64,
    /// Tokens that were read anew because of that, estimated.
    pub cache_bust_tokens: u64,
    /// How often what is sent to models was made shorter.
    pub compactions: u32,
}

impl SessionReport {
    /// Reads the report off a state.
    pub(crate) fn of(session: &SessionId, state: &State) -> Self {
        let outcome = match &state.outcome {
            Some(Outcome::Finished) => {
                SessionOutcome::Finished(state.last_text().unwrap_or_default().to_owned())
            }
            Some(Outcome::Failed(error)) => SessionOutcome::Failed(error.clone()),
            Some(Outcome::Cancelled(reason)) => SessionOutcome::Cancelled(reason.clone()),
            None if state.waits_for_people() => SessionOutcome::Waiting,
            None => SessionOutcome::Open,
        };
        Self {
            session: session.clone(),
            outcome,
            usage: state.usage,
            cost_usd: state.cost_usd,
            steps: state.turn_steps(),
            cache_busts: state.context.cache_busts,
            cache_bust_tokens: state.context.cache_bust_tokens,
            compactions: state.context.view.generation,
        }
    }
}

/// What a tool call waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PendingKind {
    /// A person's approval; the id names the request.
    Approval(ApprovalId),
    /// Somebody who knows whether it took effect.
    Effect,
}

/// A tool call that waits for a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The session.
    pub session: SessionId,
    /// The call.
    pub call: CallIndex,
    /// What it waits for.
    pub kind: PendingKind,
    /// The tool.
    pub tool: String,
    /// Its arguments, as JSON.
    pub arguments: String,
    /// Its key, the same for all its attempts.
    pub effect_id: EffectId,
    /// Attempts begun so far.
    pub attempt: u32,
}
