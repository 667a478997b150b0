//! Applies events to a [`State`], one function for each thing that needs more than a line.
//!
//! Invariant: no event is refused and none panics, whatever the state; what does not fit changes
//! only the position. Reading starts at [`State::fold`].

use crate::asking::{ApprovalDecided, ApprovalDecision, EffectOutcome, EffectResolved};
use crate::error::{ErrorCode, Failure};
use crate::event::{
    AnswerRejected, EpochTaken, Event, ForkEdit, ModelCallFailed, ModelCallFinished,
    ModelCallStarted, Problem, RejectAction, RouteDecided, SessionForked, SessionStarted,
    ToolCallFailed, ToolCallStarted,
};
use crate::ids::{CallIndex, Epoch};
use crate::message::{Answer, Message, Part, Usage};
use crate::state::{
    ActiveModelCall, CallStatus, Outcome, PendingAnswer, Phase, State, ToolCallState,
};

impl State {
    /// Applies one event.
    pub fn fold(&mut self, event: &Event) {
        self.next_seq.0 += 1;
        match event {
            Event::SessionStarted(started) => self.fold_start(started),
            Event::SessionForked(forked) => self.fold_fork(forked),
            Event::InputReceived(input) => {
                self.begin_turn(Message::User { content: input.content.clone() });
            }
            Event::RouteDecided(route) => self.fold_route(route),
            Event::ModelCallStarted(call) => self.fold_model_call(call),
            Event::ModelCallFinished(finished) => self.fold_answer(finished),
            Event::ModelCallFailed(failed) => self.fold_model_failure(failed),
            Event::AnswerVerified(_) => self.accept_pending(),
            Event::AnswerRejected(rejected) => self.fold_rejection(rejected),
            Event::ToolCallStarted(started) => self.fold_tool_call(started),
            Event::ToolCallFinished(finished) => self.update_call(finished.call, |call| {
                call.status = CallStatus::Finished(finished.text.clone());
            }),
            Event::ToolCallFailed(failed) => self.fold_tool_failure(failed),
            Event::ApprovalRequested(asked) => self.update_call(asked.call, |call| {
                call.status = CallStatus::Awaiting(asked.approval.clone());
            }),
            Event::ApprovalDecided(decided) => self.fold_approval(decided),
            Event::EffectUnknown(unknown) => self.update_call(unknown.call, |call| {
                call.status = CallStatus::Unknown;
            }),
            Event::EffectResolved(resolved) => self.fold_resolution(resolved),
            Event::EpochTaken(taken) => self.fold_takeover(taken),
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

    fn fold_start(&mut self, started: &SessionStarted) {
        self.session = Some(started.session.clone());
        self.fingerprint = Some(started.fingerprint.clone());
        self.epoch = Epoch(1);
        self.store.clone_from(&started.store);
        self.held = started.held;
        self.phase = Phase::Ready;
    }

    fn fold_takeover(&mut self, taken: &EpochTaken) {
        self.epoch = taken.epoch;
        self.fingerprint = Some(taken.fingerprint.clone());
        self.store.clone_from(&taken.store);
        self.held = taken.held;
    }

    /// Takes over what another session was: nothing of what was under way there is under way here,
    /// what a model failed at there has not been tried here, and the route is decided anew, for
    /// another agent perhaps.
    fn fold_fork(&mut self, forked: &SessionForked) {
        self.session = Some(forked.session.clone());
        self.fingerprint = Some(forked.fingerprint.clone());
        self.epoch = forked.epoch;
        self.store.clone_from(&forked.store);
        self.held = false;
        if let Some(edit) = &forked.edit {
            self.fold_edit(edit);
        }
        self.tier = 0;
        self.routed = false;
        self.escalate = None;
        self.lost_attempts = 0;
        match self.phase {
            Phase::Calling(call) | Phase::Backoff(call, _) => {
                self.steps = call.step;
                self.phase = Phase::Stepping;
            }
            Phase::Failing(_) => self.phase = Phase::Stepping,
            _ => {}
        }
    }

    fn fold_edit(&mut self, edit: &ForkEdit) {
        match edit {
            ForkEdit::Message { index, content } => {
                let Some(message) = self.messages.get_mut(*index as usize) else { return };
                match message {
                    Message::User { content: said } => said.clone_from(content),
                    Message::Assistant { text, .. } | Message::Tool { text, .. } => {
                        *text = text_of(content);
                    }
                }
            }
            ForkEdit::Call { call, text } => self.update_call(*call, |call| {
                call.status = CallStatus::Finished(text.clone());
            }),
            ForkEdit::Answer { text } => {
                if let Phase::Judging(pending) = &mut self.phase {
                    pending.answer.text.clone_from(text);
                    // What was found wrong with the text was found in another text. Of an answer with
                    // calls that was wrong as a whole, the calls have not been looked at.
                    let calls = !pending.answer.tool_calls.is_empty();
                    pending.problems.retain(|problem| calls || problem.call.is_some());
                    self.accept_if_settled();
                }
            }
        }
    }

    fn fold_approval(&mut self, decided: &ApprovalDecided) {
        self.update_call(decided.call, |call| match &decided.decision {
            ApprovalDecision::Granted { arguments } => {
                if let Some(arguments) =
                    arguments.as_ref().filter(|new| **new != call.call.arguments)
                {
                    call.call.arguments.clone_from(arguments);
                    // Other arguments are another effect: the other side must not take it for a
                    // repetition of what was found not to be done.
                    call.effect_id = None;
                }
                call.status = CallStatus::Approved;
            }
            ApprovalDecision::Denied { message } => {
                let name = &call.call.name;
                let told = format!("tool {name:?} was not run, a person refused it: {message}");
                call.status = CallStatus::Failed(Failure::new(ErrorCode::APPROVAL_DENIED, told));
            }
        });
    }

    fn fold_resolution(&mut self, resolved: &EffectResolved) {
        self.update_call(resolved.call, |call| {
            call.status = match &resolved.outcome {
                EffectOutcome::Done { text } => CallStatus::Finished(text.clone()),
                EffectOutcome::NotDone => CallStatus::Approved,
                EffectOutcome::Undecided { .. } => CallStatus::Unknown,
                EffectOutcome::Failed { message } => {
                    let code = ErrorCode::TOOL_OUTCOME_UNKNOWN;
                    CallStatus::Failed(Failure::new(code, message.clone()))
                }
            };
        });
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

    fn fold_route(&mut self, route: &RouteDecided) {
        self.tier = route.tier;
        self.routed = true;
        self.escalate = None;
        self.phase = Phase::Stepping;
    }

    fn fold_model_call(&mut self, started: &ModelCallStarted) {
        let ModelCallStarted { step, attempt, tier, .. } = *started;
        if attempt == 1 {
            self.lost_attempts = 0;
        }
        self.steps = step + 1;
        self.phase = Phase::Calling(ActiveModelCall { step, attempt, tier });
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
        self.phase = Phase::Judging(pending);
        self.accept_if_settled();
    }

    fn accept_if_settled(&mut self) {
        let settled = |pending: &PendingAnswer| pending.problems.is_empty() && !pending.verify;
        if matches!(&self.phase, Phase::Judging(pending) if settled(pending)) {
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
                effect_id: None,
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

    fn fold_tool_call(&mut self, started: &ToolCallStarted) {
        self.update_call(started.call, |call| {
            call.attempt = started.attempt;
            call.effect_id = Some(started.effect_id.clone());
            call.status = CallStatus::Running;
        });
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

fn text_of(content: &[Part]) -> String {
    let texts: Vec<_> = content
        .iter()
        .filter_map(|part| match part {
            Part::Text { text } => Some(text.as_str()),
            Part::Image { .. } => None,
        })
        .collect();
    texts.join("\n")
}

fn list(problems: &[Problem]) -> String {
    let texts: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
    texts.join("; ")
}
