//! What a log amounts to: the state folded from its events.
//!
//! [`State::fold`] is the only way to change a [`State`], and it refuses nothing: the log is the
//! truth. `decide` is what keeps impossible events out of the log.
//!
//! | phase | entered by | left by |
//! |---|---|---|
//! | `Empty` | nothing yet | `session_started` |
//! | `Ready` | `session_started`, the end of a turn | `input_received` |
//! | `Stepping` | an input, all tool results, a rejection | `model_call_started`, the end of the turn |
//! | `Calling` | `model_call_started` | `model_call_finished`, `model_call_failed` |
//! | `Backoff` | `model_call_failed` with a retry | `model_call_started` |
//! | `Judging` | `model_call_finished` with problems or a verifier | `answer_verified`, `answer_rejected` |
//! | `Acting` | an accepted answer with tool calls | the last tool result |
//! | `Concluding` | an accepted answer without tool calls | `session_finished` |
//! | `Failing` | `model_call_failed` without a retry, a fatal rejection | `route_decided`, `session_failed` |

use crate::error::{ErrorCode, Failure};
use crate::event::{
    AnswerRejected, Event, ModelCallFailed, ModelCallFinished, Problem, RejectAction,
    ToolCallFailed,
};
use crate::ids::{BlobHash, CallIndex, EffectId, Epoch, Seq, SessionId};
use crate::message::{Answer, Message, ToolCall, Usage};

/// How the last turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer: the last assistant message.
    Finished,
    /// With an error.
    Failed(Failure),
    /// By a cancel, for this reason.
    Cancelled(String),
}

/// A model call that is under way or will be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveModelCall {
    /// The step, counted from 0 over the whole session.
    pub step: u32,
    /// The attempt, counted from 1.
    pub attempt: u32,
    /// Position in the agent's list of models.
    pub tier: u32,
}

/// Where one tool call stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallStatus {
    /// Accepted, not begun; the problem is why it must not begin.
    Planned(Option<Problem>),
    /// An attempt is under way.
    Running,
    /// The next attempt is due at this time, in microseconds since the epoch.
    Backoff(i64),
    /// It returned this text.
    Finished(String),
    /// It failed for good.
    Failed(Failure),
}

/// One tool call of the current step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCallState {
    /// Its position in the session.
    pub index: CallIndex,
    /// What the model asked for.
    pub call: ToolCall,
    /// Attempts begun so far.
    pub attempt: u32,
    /// Where it stands.
    pub status: CallStatus,
}

impl ToolCallState {
    /// Whether it still needs an outcome.
    #[must_use]
    pub fn outstanding(&self) -> bool {
        !matches!(self.status, CallStatus::Finished(_) | CallStatus::Failed(_))
    }

    fn into_message(self) -> Message {
        let (text, is_error) = match self.status {
            CallStatus::Finished(text) => (text, false),
            CallStatus::Failed(error) => (error.to_text(), true),
            _ => unreachable!("only settled calls become messages"),
        };
        Message::Tool { call_id: self.call.id, name: self.call.name, text, is_error }
    }
}

/// What the session is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// No event yet.
    #[default]
    Empty,
    /// Between turns.
    Ready,
    /// Between steps: nothing is under way, a step must begin.
    Stepping,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingAnswer {
    /// What the model said.
    pub answer: Answer,
    /// What the checks found.
    pub problems: Vec<Problem>,
    /// Whether the user's function is being asked.
    pub verify: bool,
}

/// The kinds of [`Phase`], for tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "documented at Phase")]
pub enum PhaseKind {
    Empty,
    Ready,
    Stepping,
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
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// The session, once started.
    pub session: Option<SessionId>,
    /// Hash of the agent's spec in force.
    pub fingerprint: Option<BlobHash>,
    /// The owner in force.
    pub epoch: Epoch,
    /// Position of the next event.
    pub next_seq: Seq,
    /// What it is doing.
    pub phase: Phase,
    /// How the last turn ended; none while a turn runs.
    pub outcome: Option<Outcome>,
    /// The conversation, oldest first. Every tool call in it has its result.
    pub messages: Vec<Message>,
    /// The model in force, by position in the agent's list.
    pub tier: u32,
    /// Whether the route of this turn has been decided.
    pub routed: bool,
    /// Why the next model must be asked, between a rejection and the route that answers it.
    pub escalate: Option<String>,
    /// Attempts at the current step that ended with their process, and so say nothing of the model.
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

    /// Steps begun in this turn.
    #[must_use]
    pub fn turn_steps(&self) -> u32 {
        self.steps - self.first_step
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

    /// The effect id of a tool call.
    ///
    /// # Panics
    /// If the session has not started.
    #[must_use]
    pub fn effect_id(&self, index: CallIndex) -> EffectId {
        let session = self.session.as_ref().expect("a started session has an id");
        EffectId::derive(session, index)
    }

    /// Applies one event.
    pub fn fold(&mut self, event: &Event) {
        self.next_seq.0 += 1;
        match event {
            Event::SessionStarted(started) => {
                self.session = Some(started.session.clone());
                self.fingerprint = Some(started.fingerprint.clone());
                self.epoch = Epoch(1);
                self.phase = Phase::Ready;
            }
            Event::InputReceived(input) => {
                self.begin_turn(Message::User { content: input.content.clone() });
            }
            Event::RouteDecided(route) => {
                self.tier = route.tier;
                self.routed = true;
                self.escalate = None;
                self.phase = Phase::Stepping;
            }
            Event::ModelCallStarted(call) => {
                if call.attempt == 1 {
                    self.lost_attempts = 0;
                }
                self.steps = call.step + 1;
                self.phase = Phase::Calling(ActiveModelCall {
                    step: call.step,
                    attempt: call.attempt,
                    tier: call.tier,
                });
            }
            Event::ModelCallFinished(finished) => self.fold_answer(finished),
            Event::ModelCallFailed(failed) => self.fold_model_failure(failed),
            Event::AnswerVerified(_) => self.accept_pending(),
            Event::AnswerRejected(rejected) => self.fold_rejection(rejected),
            Event::ToolCallStarted(started) => self.update_call(started.call, |call| {
                call.attempt = started.attempt;
                call.status = CallStatus::Running;
            }),
            Event::ToolCallFinished(finished) => self.update_call(finished.call, |call| {
                call.status = CallStatus::Finished(finished.text.clone());
            }),
            Event::ToolCallFailed(failed) => self.fold_tool_failure(failed),
            Event::EpochTaken { epoch, fingerprint } => {
                self.epoch = *epoch;
                self.fingerprint = Some(fingerprint.clone());
            }
            Event::SessionFinished(_) => self.end_turn(Outcome::Finished),
            Event::SessionFailed { error } => self.end_turn(Outcome::Failed(error.clone())),
            Event::SessionCancelled { reason } => {
                self.end_turn(Outcome::Cancelled(reason.clone()));
            }
            Event::ToolCallLate(_)
            | Event::CancelRequested { .. }
            | Event::LimitReached { .. }
            | Event::Unknown => {}
        }
    }

    fn begin_turn(&mut self, message: Message) {
        self.messages.push(message);
        self.phase = Phase::Stepping;
        self.outcome = None;
        self.tier = 0;
        self.routed = false;
        self.escalate = None;
        self.first_step = self.steps;
        self.repairs = 0;
        self.turn_usage = Usage::default();
    }

    fn end_turn(&mut self, outcome: Outcome) {
        self.phase = Phase::Ready;
        self.outcome = Some(outcome);
    }

    fn fold_answer(&mut self, finished: &ModelCallFinished) {
        self.usage.add(finished.usage);
        self.turn_usage.add(finished.usage);
        self.cost_usd += finished.cost_usd.unwrap_or(0.0);
        let pending = PendingAnswer {
            answer: finished.answer.clone(),
            problems: finished.problems.clone(),
            verify: finished.verify,
        };
        let settled = pending.problems.is_empty() && !pending.verify;
        self.phase = Phase::Judging(pending);
        if settled {
            self.accept_pending();
        }
    }

    fn fold_model_failure(&mut self, failed: &ModelCallFailed) {
        let Phase::Calling(call) = self.phase else {
            return;
        };
        self.lost_attempts += u32::from(failed.error.code == ErrorCode::PROCESS_LOST);
        self.phase = match failed.retry_at_us {
            Some(at_us) => Phase::Backoff(call, at_us),
            None => Phase::Failing(failed.error.clone()),
        };
    }

    fn take_pending(&mut self) -> Option<PendingAnswer> {
        match std::mem::take(&mut self.phase) {
            Phase::Judging(pending) => Some(pending),
            other => {
                self.phase = other;
                None
            }
        }
    }

    fn accept_pending(&mut self) {
        let Some(pending) = self.take_pending() else {
            return;
        };
        let Answer { text, tool_calls } = pending.answer;
        let first = self.tool_call_count;
        self.tool_call_count += tool_calls.len() as u64;
        let calls: Vec<_> = (first..)
            .zip(&tool_calls)
            .enumerate()
            .map(|(position, (index, call))| ToolCallState {
                index: CallIndex(index),
                call: call.clone(),
                attempt: 0,
                status: CallStatus::Planned(problem_of(&pending.problems, position)),
            })
            .collect();
        self.messages.push(Message::Assistant { text, tool_calls });
        self.phase = if calls.is_empty() { Phase::Concluding } else { Phase::Acting(calls) };
    }

    fn fold_rejection(&mut self, rejected: &AnswerRejected) {
        match rejected.action {
            RejectAction::Continue => self.accept_pending(),
            RejectAction::Escalate => {
                self.escalate =
                    Some(format!("the answer was rejected: {}", list(&rejected.problems)));
                self.phase = Phase::Stepping;
            }
            RejectAction::Repair => self.send_back(&rejected.problems),
            RejectAction::Fail => {
                self.phase = Phase::Failing(Failure::new(
                    ErrorCode::ANSWER_REJECTED,
                    format!("the answer was rejected: {}", list(&rejected.problems)),
                ));
            }
        }
    }

    /// Puts the rejected answer and what was wrong with it into the conversation; its tool calls
    /// are answered as not run, so that none is left open.
    fn send_back(&mut self, problems: &[Problem]) {
        let Some(pending) = self.take_pending() else {
            return;
        };
        self.repairs += 1;
        let Answer { text, tool_calls } = pending.answer;
        self.tool_call_count += tool_calls.len() as u64;
        let results: Vec<_> = tool_calls
            .iter()
            .map(|call| Message::Tool {
                call_id: call.id.clone(),
                name: call.name.clone(),
                text: "not run: the answer was rejected".to_owned(),
                is_error: true,
            })
            .collect();
        self.messages.push(Message::Assistant { text, tool_calls });
        self.messages.extend(results);
        self.messages.push(Message::user(format!(
            "Your answer was rejected: {}. Answer again.",
            list(problems)
        )));
        self.phase = Phase::Stepping;
    }

    fn fold_tool_failure(&mut self, failed: &ToolCallFailed) {
        self.update_call(failed.call, |call| {
            call.status = match failed.retry_at_us {
                Some(at_us) => CallStatus::Backoff(at_us),
                None => CallStatus::Failed(failed.error.clone()),
            };
        });
    }

    fn update_call(&mut self, index: CallIndex, change: impl FnOnce(&mut ToolCallState)) {
        let Phase::Acting(calls) = &mut self.phase else {
            return;
        };
        let Some(call) = calls.iter_mut().find(|call| call.index == index) else {
            return;
        };
        change(call);
        if calls.iter().any(ToolCallState::outstanding) {
            return;
        }
        let settled = std::mem::take(calls);
        self.messages.extend(settled.into_iter().map(ToolCallState::into_message));
        self.phase = Phase::Stepping;
    }
}

fn problem_of(problems: &[Problem], position: usize) -> Option<Problem> {
    problems.iter().find(|problem| problem.call.is_some_and(|at| at as usize == position)).cloned()
}

fn list(problems: &[Problem]) -> String {
    let texts: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
    texts.join("; ")
}
