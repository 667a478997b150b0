//! What a log amounts to: the state folded from its events.
//!
//! [`State::fold`] (`fold.rs`) is the only way to change a [`State`], and it refuses nothing: the log
//! is the truth. `decide` is what keeps impossible events out of the log.
//!
//! | phase | entered by | left by |
//! |---|---|---|
//! | `Empty` | nothing yet | `session_started` |
//! | `Ready` | `session_started`, the end of a turn | `input_received` |
//! | `Stepping` | an input, all tool results, a rejection, `session_forked`, the end of a summary, `context_compacted` | `model_call_started`, `summary_started`, the end of the turn |
//! | `Summarising` | `summary_started` | `summary_finished`, `summary_failed`, `session_forked` |
//! | `Calling` | `model_call_started` | `model_call_finished`, `model_call_failed`, `session_forked` |
//! | `Backoff` | `model_call_failed` with a retry | `model_call_started`, `session_forked` |
//! | `Judging` | `model_call_finished` with problems, a verifier or checks by models | `answer_verified`, `answer_rejected`, the last `check_finished`, an edit that mends it |
//! | `Acting` | an accepted answer with tool calls | the last tool result |
//! | `Concluding` | an accepted answer without tool calls | `session_finished` |
//! | `Failing` | `model_call_failed` without a retry, a fatal rejection | `route_decided`, `context_compacted`, `session_failed`, `session_forked` |
//!
//! Every phase of a turn is also left by the events that end one. An owner that does not run the
//! session (`held`) leaves it in whatever phase its one event led to.
//!
//! Inside `Acting` each call has a status of its own:
//!
//! | status | entered by | left by |
//! |---|---|---|
//! | `Planned` | an accepted answer | `tool_call_started`, `approval_requested`, `tool_call_failed` |
//! | `Awaiting` | `approval_requested` | `approval_decided`; in a copy or a fork another `approval_requested` |
//! | `Approved` | a grant, an effect that was not done | `tool_call_started`; in a copy or a fork `approval_requested` |
//! | `Running` | `tool_call_started` | `tool_call_finished`, `tool_call_failed`, `effect_unknown`; another attempt of a new owner |
//! | `Backoff` | `tool_call_failed` with a retry | `tool_call_started` |
//! | `Unknown` | `effect_unknown` | `effect_resolved` |
//! | `Finished`, `Failed` | an outcome, a denial, a fork's edit | the last result of the step |
//!
//! The end of a turn leaves none without an outcome (`tool_call_failed`).

use serde::{Deserialize, Serialize};

use crate::checks::{AnswerScore, Check};
use crate::context::{ActiveSummary, ContextState};
use crate::error::Failure;
use crate::event::{Event, Problem};
use crate::ids::{ApprovalId, BlobHash, CallIndex, EffectId, Epoch, Seq, SessionId};
use crate::message::{Answer, Message, ToolCall, Usage};
use crate::routing::RouteState;
use crate::spending::Spending;

/// How the last turn ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// With an answer: the last assistant message.
    Finished,
    /// With an error.
    Failed(Failure),
    /// By a cancel, for this reason.
    Cancelled(String),
}

/// A model call that is under way or will be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveModelCall {
    /// The step, counted from 0 over the whole session.
    pub step: u32,
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// Position in the agent's list of models.
    pub tier: u32,
}

/// Where one tool call stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallStatus {
    /// Accepted, not begun; the problem is why it must not begin.
    Planned(Option<Problem>),
    /// A person must answer this request first.
    Awaiting(ApprovalId),
    /// It may begin, once.
    Approved,
    /// An attempt is under way.
    Running,
    /// The next attempt is due at this time, in microseconds since the epoch.
    Backoff(i64),
    /// Its process ended, and whether it took effect is not known.
    Unknown,
    /// It returned this text.
    Finished(String),
    /// It failed for good.
    Failed(Failure),
}

/// One tool call of the current step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallState {
    /// Its position in the session.
    pub index: CallIndex,
    /// What the model asked for.
    pub call: ToolCall,
    /// Attempts begun so far.
    pub attempt: u32,
    /// Its key, from its first attempt on.
    pub effect_id: Option<EffectId>,
    /// Where it stands.
    pub status: CallStatus,
}

impl ToolCallState {
    /// Whether it still needs an outcome.
    #[must_use]
    pub fn outstanding(&self) -> bool {
        !matches!(self.status, CallStatus::Finished(_) | CallStatus::Failed(_))
    }

    /// Whether only a person, or whoever knows the other side, can bring it on.
    #[must_use]
    pub fn waits_for_people(&self) -> bool {
        matches!(self.status, CallStatus::Awaiting(_) | CallStatus::Unknown)
    }

    pub(crate) fn into_message(self) -> Message {
        let (text, is_error) = match self.status {
            CallStatus::Finished(text) => (text, false),
            CallStatus::Failed(error) => (error.to_text(), true),
            _ => unreachable!("only settled calls become messages"),
        };
        Message::Tool { call_id: self.call.id, name: self.call.name, text, is_error }
    }
}

/// What the session is doing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub enum Phase {
    /// No event yet.
    #[default]
    Empty,
    /// Between turns.
    Ready,
    /// Between steps: nothing is under way, a step must begin.
    Stepping,
    /// A summary of the oldest messages is being made.
    Summarising(ActiveSummary),
    /// A model call is under way.
    Calling(ActiveModelCall),
    /// The next attempt at a model call is due at this time, in microseconds since the epoch.
    Backoff(ActiveModelCall, i64),
    /// An answer waits for its verdict.
    Judging(PendingAnswer),
    /// Tool calls are under way.
    Acting(Vec<ToolCallState>),
    /// The final answer has been accepted.
    Concluding,
    /// The step cannot be completed by its model.
    Failing(Failure),
}

/// An answer that is not yet part of the conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PendingAnswer {
    /// What the model said.
    pub answer: Answer,
    /// What the checks found.
    pub problems: Vec<Problem>,
    /// Whether the user's function is being asked.
    pub verify: bool,
    /// What its own text says of it, if it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Box<AnswerScore>>,
    /// The checks by models that are still to come, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// The check by a model that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checking: Option<Check>,
}

impl PendingAnswer {
    /// Whether nothing more has to be found out about it, and nothing was found wrong.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let checked = self.checks.is_empty() && self.checking.is_none();
        self.problems.is_empty() && !self.verify && checked
    }
}

/// The kinds of [`Phase`], for tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "documented at Phase")]
pub enum PhaseKind {
    Empty,
    Ready,
    Stepping,
    Summarising,
    Calling,
    Backoff,
    Judging,
    Acting,
    Concluding,
    Failing,
}

impl Phase {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> PhaseKind {
        match self {
            Phase::Empty => PhaseKind::Empty,
            Phase::Ready => PhaseKind::Ready,
            Phase::Stepping => PhaseKind::Stepping,
            Phase::Summarising(_) => PhaseKind::Summarising,
            Phase::Calling(_) => PhaseKind::Calling,
            Phase::Backoff(..) => PhaseKind::Backoff,
            Phase::Judging(_) => PhaseKind::Judging,
            Phase::Acting(_) => PhaseKind::Acting,
            Phase::Concluding => PhaseKind::Concluding,
            Phase::Failing(_) => PhaseKind::Failing,
        }
    }
}

/// A session, folded from its events.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    /// The session, once started.
    pub session: Option<SessionId>,
    /// Hash of the agent's spec in force.
    pub fingerprint: Option<BlobHash>,
    /// The owner in force.
    pub epoch: Epoch,
    /// The store in force; approvals are bound to it.
    pub store: String,
    /// True when the owner in force does not run the session, so nothing follows by itself.
    pub held: bool,
    /// Position of the next event.
    pub next_seq: Seq,
    /// What it is doing.
    pub phase: Phase,
    /// How the last turn ended; none while a turn runs.
    pub outcome: Option<Outcome>,
    /// The conversation, oldest first. Every tool call in it has its result. Kept apart from the
    /// rest in snapshots, since it only grows.
    #[serde(skip)]
    pub messages: Vec<Message>,
    /// What of it is sent to models, and how many tokens that has.
    #[serde(default, skip_serializing_if = "ContextState::is_default")]
    pub context: ContextState,
    /// The model in force, by position in the agent's list.
    pub tier: u32,
    /// Whether the route of this turn has been decided.
    pub routed: bool,
    /// Why the next model must be asked, between a rejection and the route that answers it.
    pub escalate: Option<String>,
    /// Attempts at the current step that ended with their process, or were not made because the model
    /// was left alone: they say nothing of it.
    pub lost_attempts: u32,
    /// Steps begun so far, over all turns.
    pub steps: u32,
    /// The first step of this turn.
    pub first_step: u32,
    /// Answers sent back for repair in this turn.
    pub repairs: u32,
    /// Tokens of this turn.
    pub turn_usage: Usage,
    /// Tokens of the session.
    pub usage: Usage,
    /// US dollars of the session, of the calls whose price is known.
    pub cost_usd: f64,
    /// Tool calls asked for so far, over all turns.
    pub tool_call_count: u64,
    /// Of the tool calls, those asked for before this turn.
    #[serde(default)]
    pub calls_before_turn: u64,
    /// Who pays, and what was spent.
    #[serde(default, skip_serializing_if = "Spending::is_empty")]
    pub spending: Spending,
    /// What routing needs to know.
    #[serde(default)]
    pub route: RouteState,
}

impl State {
    /// Folds a whole log.
    #[must_use]
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut state = Self::default();
        for event in events {
            state.fold(event);
        }
        state
    }

    /// Whether a turn is running.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Empty | Phase::Ready)
    }

    /// Whether a turn is running that nothing but a person's decision can bring on.
    #[must_use]
    pub fn waits_for_people(&self) -> bool {
        let mut outstanding = self.calls().iter().filter(|call| call.outstanding()).peekable();
        outstanding.peek().is_some() && outstanding.all(ToolCallState::waits_for_people)
    }

    /// How many messages there were with the input that began the turn.
    #[must_use]
    pub fn turn_messages(&self) -> usize {
        self.messages.len().min(self.route.turn_from as usize + 1)
    }

    /// How many messages of the conversation are there for good: what came after them may be taken
    /// back, as an answer that was sent back and is then given up is.
    #[must_use]
    pub fn settled_messages(&self) -> usize {
        let count = self.messages.len();
        if self.route.is_fresh() { count } else { count.min(self.route.step_from as usize) }
    }

    /// Steps begun in this turn.
    #[must_use]
    pub fn turn_steps(&self) -> u32 {
        self.steps - self.first_step
    }

    /// Whether this turn has asked for a tool call.
    #[must_use]
    pub fn turn_has_called(&self) -> bool {
        self.tool_call_count > self.calls_before_turn
    }

    /// The text of the last assistant message: the answer, once a turn has finished.
    #[must_use]
    pub fn last_text(&self) -> Option<&str> {
        self.messages.iter().rev().find_map(|message| match message {
            Message::Assistant { text, .. } => Some(text.as_str()),
            _ => None,
        })
    }

    /// The tool calls of the current step.
    #[must_use]
    pub fn calls(&self) -> &[ToolCallState] {
        match &self.phase {
            Phase::Acting(calls) => calls,
            _ => &[],
        }
    }

    /// The tool call at this position, if it belongs to the current step.
    #[must_use]
    pub fn call(&self, index: CallIndex) -> Option<&ToolCallState> {
        self.calls().iter().find(|call| call.index == index)
    }

    /// The effect id of a tool call of the current step.
    ///
    /// # Panics
    /// If the session has not started.
    #[must_use]
    pub fn effect_id(&self, call: &ToolCallState) -> EffectId {
        let session = self.session.as_ref().expect("a started session has an id");
        call.effect_id.clone().unwrap_or_else(|| {
            EffectId::derive(session, call.index, &call.call.name, &call.call.arguments)
        })
    }

    /// The id of a request for an approval of a tool call, by the owner in force.
    ///
    /// # Panics
    /// If the session has not started.
    #[must_use]
    pub fn approval_id(&self, call: CallIndex) -> ApprovalId {
        let session = self.session.as_ref().expect("a started session has an id");
        ApprovalId::derive(session, self.epoch, &self.store, call)
    }
}
