//! The other side of a tool call: whatever runs the user's own functions.
//!
//! The engine never calls into Python; it hands jobs to a [`Host`] and gets results by ticket.

use std::sync::Arc;

use mainspring_models::ModelHost;
use mainspring_session::{CallIndex, EffectId, EffectOutcome, Failure, SessionId};

/// Names one job handed to a host. The top byte is the shard that waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

impl Ticket {
    const SHARD_SHIFT: u32 = 56;

    pub(crate) fn new(shard: u8, number: u64) -> Self {
        Self((u64::from(shard) << Self::SHARD_SHIFT) | (number & ((1 << Self::SHARD_SHIFT) - 1)))
    }

    pub(crate) fn shard(self) -> usize {
        (self.0 >> Self::SHARD_SHIFT) as usize
    }
}

/// What a tool may know about its call.
#[derive(Debug, Clone)]
pub struct CallContext {
    /// The session.
    pub session: SessionId,
    /// The call.
    pub call: CallIndex,
    /// The id that pairs the call with its result inside the conversation.
    pub call_id: String,
    /// The same for every attempt at this call.
    pub effect_id: EffectId,
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// How long the attempt may take.
    pub timeout_ms: u64,
    /// When the engine took the session; see `Engine::may_act`.
    pub tenure: u64,
}

/// What the host is to do.
#[derive(Debug, Clone)]
pub enum HostJob {
    /// Run a tool with these arguments, a JSON object that fits the tool's schema.
    Tool {
        /// The tool, by the number the host gave it.
        tool: u32,
        /// The arguments.
        arguments: String,
        /// About the call.
        context: CallContext,
    },
    /// Ask the tool's policy whether a person must approve this call.
    Policy {
        /// The tool.
        tool: u32,
        /// The arguments.
        arguments: String,
        /// About the call.
        context: CallContext,
    },
    /// Ask the tool's own function what became of an attempt whose process ended.
    Reconcile {
        /// The tool.
        tool: u32,
        /// The arguments.
        arguments: String,
        /// About the call.
        context: CallContext,
    },
    /// Ask the user's function about an answer.
    Verify {
        /// The function, by the number the host gave it.
        verifier: u32,
        /// The answer as JSON: `text`, `tool_calls`, `model`, `step`, `session`.
        answer: String,
    },
}

/// A job and where its result goes.
#[derive(Debug, Clone)]
pub struct HostCall {
    /// Its ticket.
    pub ticket: Ticket,
    /// What to do.
    pub job: HostJob,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub enum HostOutcome {
    /// A tool returned this text.
    Returned(String),
    /// It failed.
    Failed(Failure),
    /// It stopped because it was told to.
    Cancelled,
    /// It was not run at all, because the engine's hold on the session was not certain: see
    /// `Engine::may_act`. It is run once that is certain again.
    Withheld,
    /// The verifier accepted the answer, or said why not.
    Verified(Option<String>),
    /// The policy said whether a person must approve.
    Policy(bool),
    /// What became of an attempt.
    Reconciled(EffectOutcome),
}

/// The end of a job.
#[derive(Debug, Clone)]
pub struct HostResult {
    /// Its ticket.
    pub ticket: Ticket,
    /// How it ended.
    pub outcome: HostOutcome,
}

/// Runs jobs. Neither method may block.
pub trait Host: ModelHost {
    /// Takes jobs; each ends with one [`HostResult`] given to `Engine::host_results`.
    fn run(&self, calls: Vec<HostCall>);

    /// Asks for jobs to stop. A job that cannot stop ends as it ends.
    fn cancel(&self, tickets: Vec<Ticket>);
}

/// A host without functions, for agents whose tools are all elsewhere.
impl Host for () {
    fn run(&self, _calls: Vec<HostCall>) {}

    fn cancel(&self, _tickets: Vec<Ticket>) {}
}

pub(crate) type SharedHost = Arc<dyn Host>;
