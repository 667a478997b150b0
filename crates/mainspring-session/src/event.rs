//! What can happen in a session, in the past tense. The log is a list of these and nothing else.
//!
//! An event is stored as one JSON object whose `kind` names it. Kinds and fields of newer
//! versions are kept: a reader holds on to the stored text ([`Record::json`]), and a kind that it
//! does not know reads as [`Event::Unknown`].

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use mainspring_route::StepClass;

use crate::asking::{ApprovalDecided, ApprovalRequested, EffectResolved, EffectUnknown};
use crate::budget::{Amount, Funding};
use crate::checks::{AnswerScore, Check, CheckFinished, CheckStarted};
use crate::context::{ContextCompacted, SummaryFailed, SummaryFinished, SummaryStarted};
use crate::error::Failure;
use crate::ids::{BlobHash, CallIndex, EffectId, Epoch, Seq, SessionId};
use crate::message::{Answer, Part, Usage};
use crate::notes::CallNotes;
use crate::routing::RouteDecision;
use crate::upcast;

/// Version of the event format, stored in the first event of every session.
pub const SCHEMA_VERSION: u32 = 3;

/// Where an agent can be loaded from again, and what its spec was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStarted {
    /// Version of the event format, [`SCHEMA_VERSION`] when written.
    pub schema: u32,
    /// The session.
    pub session: SessionId,
    /// The agent's name.
    pub agent: String,
    /// Hash of the agent's spec; the spec itself is a blob of that hash.
    pub fingerprint: BlobHash,
    /// How to load the agent again, if it came from a module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Names the store; approvals are bound to it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub store: String,
    /// True when the process that wrote it does not run the session: whoever takes it over does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// What a fork changes of what was said up to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "target", rename_all = "snake_case")]
pub enum ForkEdit {
    /// A message of the conversation, by position, says this instead.
    Message {
        /// Position in the conversation.
        index: u32,
        /// What it says; only a user's message may have other parts than one text.
        content: Vec<Part>,
    },
    /// A tool call of the current step returned this instead.
    Call {
        /// The call.
        call: CallIndex,
        /// What the model reads.
        text: String,
    },
    /// The answer that waits for its verdict says this instead.
    Answer {
        /// Its text.
        text: String,
    },
}

/// The session began with the events of another up to here. What was under way there is not under
/// way here: a model call is made anew, and an approval must be given anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionForked {
    /// The new session.
    pub session: SessionId,
    /// The session whose events came before.
    pub parent: SessionId,
    /// The new session's first epoch.
    pub epoch: Epoch,
    /// The agent's name.
    pub agent: String,
    /// Hash of the agent's spec.
    pub fingerprint: BlobHash,
    /// How to load the agent again, if it came from a module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Names the store; approvals are bound to it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub store: String,
    /// What is changed of what was said before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<ForkEdit>,
}

/// A new owner took the session over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochTaken {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Hash of the agent's spec in force from here on.
    pub fingerprint: BlobHash,
    /// Names the store; approvals are bound to it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub store: String,
    /// True when it only records a decision: whoever takes the session over next runs it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// Where an agent was loaded from: `MODULE:AGENT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Origin(pub String);

/// A user's input began a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputReceived {
    /// What was said, in order.
    pub content: Vec<Part>,
    /// What the turn's steps are for, if the user says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_class: Option<StepClass>,
}

/// The router chose the model for the steps from here on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteDecided {
    /// The step it was chosen for, counted from 0 over the whole session.
    pub step: u32,
    /// Position in the agent's list of models.
    pub tier: u32,
    /// The model's name.
    pub model: String,
    /// Why this one, in words.
    pub reason: String,
    /// All that was weighed, where the policy had a choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Box<RouteDecision>>,
}

/// A model call was about to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCallStarted {
    /// The step, counted from 0 over the whole session.
    pub step: u32,
    /// The attempt at this step, counted from 1.
    pub attempt: u32,
    /// Position in the agent's list of models.
    pub tier: u32,
    /// Which messages were sent: half-open ranges `[from, to)` over the conversation as it stands.
    pub messages: Vec<(u32, u32)>,
    /// What it was expected to use, where somebody keeps an account of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Amount>,
    /// What the step is for; only of agents with several models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<StepClass>,
    /// When it was decided, in microseconds since the epoch; only of agents with several models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_us: Option<i64>,
}

/// Why a model stopped writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// It was done.
    Stop,
    /// It reached the token limit.
    Length,
    /// It called tools.
    ToolCalls,
    /// The provider cut it off for its content.
    ContentFilter,
    /// Something else, or nothing was said.
    Other,
}

/// When the parts of a model call happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// From request to first token (streams only), in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_us: Option<u64>,
    /// From request to the end of the answer, in microseconds.
    pub total_us: u64,
}

/// Something a check found wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Which check: `finish_reason`, `parse`, `empty`, `tool_unknown`, `tool_arguments`,
    /// `tool_count`, `output_schema`, `refusal`, `verify`, `score`, `agreement`, `judge`.
    pub check: String,
    /// What it found, in words a model can act on.
    pub message: String,
    /// The tool call it is about, by position in the answer; none if it is about the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<u32>,
}

/// A model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCallFinished {
    /// The step.
    pub step: u32,
    /// The attempt.
    pub attempt: u32,
    /// What it said.
    pub answer: Answer,
    /// Why it stopped.
    pub finish_reason: FinishReason,
    /// Tokens, as the provider counted them.
    pub usage: Usage,
    /// US dollars, if the price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// How long it took.
    pub timing: Timing,
    /// What else is known of the call.
    #[serde(default, skip_serializing_if = "CallNotes::is_empty")]
    pub notes: CallNotes,
    /// What the checks found. An answer with problems joins the conversation only if it is
    /// sent back to be repaired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// True when the user's own function is asked before the answer counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify: bool,
    /// What the answer's own text says of whether it is right; only where a larger model could be
    /// asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Box<AnswerScore>>,
    /// The checks by models that follow before the answer counts, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// A model call failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCallFailed {
    /// The step.
    pub step: u32,
    /// The attempt.
    pub attempt: u32,
    /// What went wrong.
    pub error: Failure,
    /// When the next attempt is due, in microseconds since the epoch; none if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at_us: Option<i64>,
    /// How long the server asked to wait, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Characters of the answer that watchers had got.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub streamed_chars: u64,
    /// What it is taken to have used, where somebody keeps an account of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charged: Option<Amount>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What watchers had been shown of an answer counts for nothing: the model call failed half-way, and
/// another one writes the answer from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRestarted {
    /// The step.
    pub step: u32,
    /// The attempt that failed.
    pub attempt: u32,
    /// How many characters had been shown.
    pub characters: u64,
}

/// The user's function accepted an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerVerified {
    /// The step.
    pub step: u32,
}

/// What happens after an answer was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectAction {
    /// The next model is asked the same.
    Escalate,
    /// The same model gets its answer back with the problems.
    Repair,
    /// The tool calls that are right run, the wrong ones are answered with their problem.
    Continue,
    /// The turn ends with an error.
    Fail,
}

/// An answer failed its checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRejected {
    /// The step.
    pub step: u32,
    /// What was wrong.
    pub problems: Vec<Problem>,
    /// What follows.
    pub action: RejectAction,
    /// True when a larger model can still be asked should the mended answer be wrong too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub larger_left: bool,
    /// True when the next model sees the rejected answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draft: bool,
}

/// A tool call was about to be made: the intent, durable before the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallStarted {
    /// The call.
    pub call: CallIndex,
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// The tool's name.
    pub name: String,
    /// The same for every attempt.
    pub effect_id: EffectId,
}

/// A tool answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallFinished {
    /// The call.
    pub call: CallIndex,
    /// What the model reads.
    pub text: String,
    /// How long the attempt took, in microseconds.
    pub duration_us: u64,
}

/// A tool call failed, or was refused before it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallFailed {
    /// The call.
    pub call: CallIndex,
    /// The attempt; 0 if it never ran.
    pub attempt: u32,
    /// What went wrong; the model reads message and hint.
    pub error: Failure,
    /// When the next attempt is due, in microseconds since the epoch; none if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at_us: Option<i64>,
}

/// A tool's outcome came after its call had been given up. Recorded, and never shown to a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallLate {
    /// The call.
    pub call: CallIndex,
    /// The attempt.
    pub attempt: u32,
    /// What it returned, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What it failed with, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// A turn ended with an answer: the last assistant message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFinished {
    /// The step whose answer is the result.
    pub step: u32,
}

/// The clock of a turn whose budget counts time was started or stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnClock {
    /// When, in microseconds since the epoch.
    pub clock_us: i64,
    /// Whether it runs from here on.
    pub running: bool,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant is documented at its struct")]
pub enum Event {
    SessionStarted(SessionStarted),
    SessionForked(SessionForked),
    BudgetSet(Funding),
    TurnClock(TurnClock),
    InputReceived(InputReceived),
    RouteDecided(RouteDecided),
    ModelCallStarted(ModelCallStarted),
    ModelCallFinished(ModelCallFinished),
    ModelCallFailed(ModelCallFailed),
    AnswerRestarted(AnswerRestarted),
    AnswerVerified(AnswerVerified),
    AnswerRejected(AnswerRejected),
    CheckStarted(CheckStarted),
    CheckFinished(CheckFinished),
    ToolCallStarted(ToolCallStarted),
    ToolCallFinished(ToolCallFinished),
    ToolCallFailed(ToolCallFailed),
    ToolCallLate(ToolCallLate),
    ApprovalRequested(ApprovalRequested),
    ApprovalDecided(ApprovalDecided),
    EffectUnknown(EffectUnknown),
    EffectResolved(EffectResolved),
    ContextCompacted(ContextCompacted),
    SummaryStarted(SummaryStarted),
    SummaryFinished(SummaryFinished),
    SummaryFailed(SummaryFailed),
    CancelRequested {
        reason: String,
    },
    LimitReached {
        limit: String,
        value: u64,
        allowed: u64,
    },
    EpochTaken(EpochTaken),
    SessionFinished(SessionFinished),
    SessionFailed {
        error: Failure,
    },
    SessionCancelled {
        reason: String,
    },
    #[serde(other)]
    Unknown,
}

impl Event {
    /// The event's kind, as stored.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Event::SessionStarted(_) => "session_started",
            Event::SessionForked(_) => "session_forked",
            Event::BudgetSet(_) => "budget_set",
            Event::TurnClock(_) => "turn_clock",
            Event::InputReceived(_) => "input_received",
            Event::RouteDecided(_) => "route_decided",
            Event::ModelCallStarted(_) => "model_call_started",
            Event::ModelCallFinished(_) => "model_call_finished",
            Event::ModelCallFailed(_) => "model_call_failed",
            Event::AnswerRestarted(_) => "answer_restarted",
            Event::AnswerVerified(_) => "answer_verified",
            Event::AnswerRejected(_) => "answer_rejected",
            Event::CheckStarted(_) => "check_started",
            Event::CheckFinished(_) => "check_finished",
            Event::ToolCallStarted(_) => "tool_call_started",
            Event::ToolCallFinished(_) => "tool_call_finished",
            Event::ToolCallFailed(_) => "tool_call_failed",
            Event::ToolCallLate(_) => "tool_call_late",
            Event::ApprovalRequested(_) => "approval_requested",
            Event::ApprovalDecided(_) => "approval_decided",
            Event::EffectUnknown(_) => "effect_unknown",
            Event::EffectResolved(_) => "effect_resolved",
            Event::ContextCompacted(_) => "context_compacted",
            Event::SummaryStarted(_) => "summary_started",
            Event::SummaryFinished(_) => "summary_finished",
            Event::SummaryFailed(_) => "summary_failed",
            Event::CancelRequested { .. } => "cancel_requested",
            Event::LimitReached { .. } => "limit_reached",
            Event::EpochTaken(_) => "epoch_taken",
            Event::SessionFinished(_) => "session_finished",
            Event::SessionFailed { .. } => "session_failed",
            Event::SessionCancelled { .. } => "session_cancelled",
            Event::Unknown => "unknown",
        }
    }

    /// Whether the event ends a turn.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(
            self,
            Event::SessionFinished(_)
                | Event::SessionFailed { .. }
                | Event::SessionCancelled { .. }
        )
    }

    /// Appends the event's JSON, one object without line breaks.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(out, self).expect("events hold string keys only, so they encode");
    }
}

/// An event as it stands in a log.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its position.
    pub seq: Seq,
    /// When it was decided, in microseconds since the epoch.
    pub at_us: i64,
    /// The owner that wrote it.
    pub epoch: Epoch,
    /// Version of the event format it was written in, at most [`SCHEMA_VERSION`].
    pub schema: u32,
    /// The event exactly as stored, so that a copy loses nothing this version does not know.
    pub json: Box<RawValue>,
}

impl Record {
    /// The event, or [`Event::Unknown`] if its kind is of a newer version. An event of an older
    /// format is brought up to this one.
    ///
    /// # Errors
    /// The JSON error if a known kind has fields of the wrong type.
    pub fn event(&self) -> Result<Event, serde_json::Error> {
        upcast::read(self.json.get(), self.schema)
    }
}
