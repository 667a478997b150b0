//! Applies events to a [`State`], one function for each thing that needs more than a line.
//!
//! Invariant: no event is refused and none panics, whatever the state; what does not fit changes
//! only the position. Reading starts at [`State::fold`].

use mainspring_route::StepClass;

use crate::asking::{ApprovalDecided, ApprovalDecision, EffectOutcome, EffectResolved};
use crate::checks::{CheckFinished, CheckStarted};
use crate::context::{
    ActiveSummary, ContextCompacted, SummaryFailed, SummaryFinished, SummaryOutcome, SummaryStarted,
};
use crate::error::{ErrorCode, Failure};
use crate::event::{
    AnswerRejected, EpochTaken, Event, ForkEdit, ModelCallFailed, ModelCallFinished,
    ModelCallStarted, Problem, RejectAction, RouteDecided, SessionForked, SessionStarted,
    ToolCallFailed, ToolCallStarted,
};
use crate::ids::{CallIndex, Epoch};
use crate::message::{Answer, Message, Part, Usage};
use crate::routing::{RouteState, TierState};
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
            Event::BudgetSet(funding) => self.spending.fund(funding),
            Event::TurnClock(clock) => self.spending.clock(clock),
            Event::InputReceived(input) => {
                let message = Message::User { content: input.content.clone() };
                self.begin_turn(message, input.step_class);
            }
            Event::RouteDecided(route) => self.fold_route(route),
            Event::ModelCallStarted(call) => self.fold_model_call(call),
            Event::ModelCallFinished(finished) => self.fold_answer(finished),
            Event::ModelCallFailed(failed) => self.fold_model_failure(failed),
            Event::AnswerVerified(_) => self.fold_verdict(),
            Event::AnswerRejected(rejected) => self.fold_rejection(rejected),
            Event::CheckStarted(started) => self.fold_check(started),
            Event::CheckFinished(finished) => self.fold_finding(finished),
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
            Event::ContextCompacted(compacted) => self.fold_compaction(compacted),
            Event::SummaryStarted(started) => self.fold_summary_start(started),
            Event::SummaryFinished(finished) => self.fold_summary(finished),
            Event::SummaryFailed(failed) => self.fold_no_summary(failed),
            Event::SessionFinished(_) => self.end_turn(Outcome::Finished),
            Event::SessionFailed { error } => self.end_turn(Outcome::Failed(error.clone())),
            Event::SessionCancelled { reason } => {
                self.end_turn(Outcome::Cancelled(reason.clone()));
            }
            Event::ToolCallLate(_)
            | Event::AnswerRestarted(_)
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
        if self.fingerprint.as_ref() != Some(&taken.fingerprint) {
            // The positions may be those of other models.
            self.route.tiers.clear();
        }
        self.epoch = taken.epoch;
        if self.fingerprint.as_ref() != Some(&taken.fingerprint) {
            self.context.agent_changed();
        }
        self.fingerprint = Some(taken.fingerprint.clone());
        self.store.clone_from(&taken.store);
        self.held = taken.held;
        // The time of a process that is gone does not count.
        self.spending.running_since_us = None;
    }

    /// Takes over what another session was: nothing of what was under way there is under way here,
    /// what a model failed at there has not been tried here, and the route is decided anew, for
    /// another agent perhaps.
    fn fold_fork(&mut self, forked: &SessionForked) {
        self.session = Some(forked.session.clone());
        if self.fingerprint.as_ref() != Some(&forked.fingerprint) {
            self.context.agent_changed();
        }
        self.fingerprint = Some(forked.fingerprint.clone());
        self.epoch = forked.epoch;
        self.store.clone_from(&forked.store);
        self.held = false;
        self.spending.fork();
        if let Some(edit) = &forked.edit {
            self.fold_edit(edit);
        }
        self.tier = 0;
        self.routed = false;
        self.escalate = None;
        self.lost_attempts = 0;
        // A step that was refused as too long has been tried there, and is another one here.
        let tried = self.context.leave_step(self.steps);
        self.route = RouteState {
            turn_from: self.route.turn_from,
            turn_class: self.route.turn_class,
            step_from: self.route.step_from,
            ..RouteState::default()
        };
        match self.phase {
            Phase::Stepping | Phase::Summarising(_) => {
                self.steps += u32::from(tried);
                self.phase = Phase::Stepping;
            }
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
                self.context.weigh_anew();
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
                    pending.checks.clear();
                    pending.checking = None;
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

    fn begin_turn(&mut self, message: Message, class: Option<StepClass>) {
        self.route.turn_from = position(&self.messages);
        self.route.turn_class = class;
        self.end_step();
        self.messages.push(message);
        self.phase = Phase::Stepping;
        self.outcome = None;
        self.routed = false;
        self.escalate = None;
        self.first_step = self.steps;
        self.calls_before_turn = self.tool_call_count;
        self.repairs = 0;
        self.turn_usage = Usage::default();
    }

    fn fold_route(&mut self, route: &RouteDecided) {
        self.tier = route.tier;
        if route.decision.is_some() {
            self.route.decided = route.step;
        }
        let chosen = route.decision.as_ref().map(|made| &made.decision.candidates);
        let chosen = chosen.and_then(|candidates| candidates.get(route.tier as usize));
        self.route.trial = route.decision.as_ref().is_some_and(|made| made.decision.explored);
        self.route.p_before = chosen.and_then(|candidate| candidate.p_ok);
        self.routed = true;
        self.escalate = None;
        self.phase = Phase::Stepping;
    }

    fn fold_model_call(&mut self, started: &ModelCallStarted) {
        let ModelCallStarted { step, attempt, tier, decided_us, .. } = *started;
        if attempt == 1 {
            self.lost_attempts = 0;
            if self.route.is_fresh() {
                self.route.step_from = position(&self.messages);
            }
        }
        if let Some(called_us) = decided_us {
            self.tier_state(tier).called_us = called_us;
        }
        self.steps = step + 1;
        self.spending.reserved = started.reserved;
        self.context.called(&self.messages);
        self.phase = Phase::Calling(ActiveModelCall { step, attempt, tier });
    }

    /// A step that was refused as too long is not over: it goes on with less.
    fn fold_compaction(&mut self, compacted: &ContextCompacted) {
        self.context.compacted(compacted, &self.messages);
        self.reopen_step(compacted.step);
        // What the model had in its cache is lost, so the next step may as well go to another one.
        let route = &self.route;
        if !route.tiers.is_empty() && route.is_fresh() && route.decided != compacted.step {
            self.routed = false;
        }
    }

    fn fold_summary_start(&mut self, started: &SummaryStarted) {
        let SummaryStarted { step, tier, messages, bytes_max, reserved } = *started;
        self.reopen_step(step);
        self.spending.reserved = reserved;
        self.phase = Phase::Summarising(ActiveSummary { step, tier, messages, bytes_max });
    }

    fn reopen_step(&mut self, step: u32) {
        if let Phase::Failing(_) = self.phase {
            self.steps = step;
            self.lost_attempts += 1;
            self.phase = Phase::Stepping;
        }
    }

    fn fold_summary(&mut self, finished: &SummaryFinished) {
        self.usage.add(finished.usage);
        self.turn_usage.add(finished.usage);
        self.cost_usd += finished.cost_usd.unwrap_or(0.0);
        self.spending.summarised(finished);
        if let Phase::Summarising(summary) = self.phase {
            let until = summary.messages.1;
            self.context.summary = Some(SummaryOutcome::Text(finished.text.clone(), until));
            self.phase = Phase::Stepping;
        }
    }

    fn fold_no_summary(&mut self, failed: &SummaryFailed) {
        if let Phase::Summarising(_) = self.phase {
            self.spending.settle(failed.charged.unwrap_or_default());
            self.context.summary = Some(SummaryOutcome::None);
            self.phase = Phase::Stepping;
        }
    }

    fn end_turn(&mut self, outcome: Outcome) {
        self.spending.turn_ended();
        self.steps += u32::from(self.context.leave_step(self.steps));
        self.phase = Phase::Ready;
        self.outcome = Some(outcome);
    }

    fn fold_answer(&mut self, finished: &ModelCallFinished) {
        if let Phase::Calling(call) = self.phase {
            self.context.answered(call.tier, finished.usage, &finished.notes);
        }
        self.spending.answered(finished);
        self.add_cost(finished.usage, finished.cost_usd);
        if let Phase::Calling(call) = self.phase
            && let Some(tier) = self.route.tiers.get_mut(call.tier as usize)
        {
            tier.cached_tokens = finished.usage.total();
            tier.calls += 1;
            tier.failed_us = None;
        }
        let pending = PendingAnswer {
            answer: finished.answer.clone(),
            problems: finished.problems.clone(),
            verify: finished.verify,
            score: finished.score.clone(),
            checks: finished.checks.clone(),
            checking: None,
        };
        self.phase = Phase::Judging(pending);
        self.accept_if_settled();
    }

    fn accept_if_settled(&mut self) {
        if matches!(&self.phase, Phase::Judging(pending) if pending.is_settled()) {
            self.accept_pending();
        }
    }

    fn fold_verdict(&mut self) {
        if let Phase::Judging(pending) = &mut self.phase {
            pending.verify = false;
            self.accept_if_settled();
        }
    }

    fn fold_check(&mut self, started: &CheckStarted) {
        if let Phase::Judging(pending) = &mut self.phase {
            pending.checks.retain(|check| *check != started.check);
            pending.checking = Some(started.check);
            self.spending.reserved = started.reserved;
        }
    }

    /// A finding against the answer is the last: the checks that are dearer are not made.
    fn fold_finding(&mut self, finished: &CheckFinished) {
        self.add_cost(finished.usage, finished.cost_usd);
        self.spending.settle(finished.charged.unwrap_or_default());
        let Phase::Judging(pending) = &mut self.phase else { return };
        pending.checking = None;
        if finished.passed == Some(false) {
            let check = finished.check.as_str().to_owned();
            let message = finished.reason.clone();
            pending.problems.push(Problem { check, message, call: None });
            pending.checks.clear();
        }
        self.accept_if_settled();
    }

    fn add_cost(&mut self, usage: Usage, cost_usd: Option<f64>) {
        self.usage.add(usage);
        self.turn_usage.add(usage);
        self.cost_usd += cost_usd.unwrap_or(0.0);
    }

    fn tier_state(&mut self, tier: u32) -> &mut TierState {
        let tiers = &mut self.route.tiers;
        // What stands in a log may name any number; a route is never that long.
        let at = (tier as usize).min(TIERS_MAX - 1);
        if tiers.len() <= at {
            tiers.resize(at + 1, TierState::default());
        }
        &mut tiers[at]
    }

    /// The step has its answer, or its turn has ended: the next one is tried afresh.
    fn end_step(&mut self) {
        self.route.step_repairs = 0;
        self.route.escalations = 0;
        self.route.failed.clear();
    }

    fn fold_model_failure(&mut self, failed: &ModelCallFailed) {
        let Phase::Calling(call) = self.phase else {
            return;
        };
        let unmade = [ErrorCode::PROCESS_LOST, ErrorCode::MODEL_UNAVAILABLE];
        self.lost_attempts += u32::from(unmade.contains(&failed.error.code));
        if failed.retry_at_us.is_none() {
            self.route.failed.push(call.tier);
            if let Some(tier) = self.route.tiers.get_mut(call.tier as usize) {
                tier.failed_us = Some(tier.called_us);
            }
        }
        self.spending.settle(failed.charged.unwrap_or_default());
        if failed.error.code == ErrorCode::MODEL_CONTEXT_OVERFLOW {
            self.context.refused(call);
        }
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
        let Answer { text, tool_calls, reasoning } = pending.answer;
        let first = self.tool_call_count;
        self.tool_call_count += tool_calls.len() as u64;
        let calls: Vec<_> = (first..)
            .zip(&tool_calls)
            .enumerate()
            .map(|(position, (index, call))| ToolCallState {
                index: CallIndex(index),
                call: self.context.meant(call),
                attempt: 0,
                effect_id: None,
                status: CallStatus::Planned(problem_of(&pending.problems, position)),
            })
            .collect();
        self.messages.push(Message::Assistant { text, tool_calls, reasoning });
        // A larger model that was asked, or one that was tried, was so for one step: for the next
        // one it is decided anew.
        self.routed &= self.route.escalations == 0 && !self.route.trial;
        if let Some(tier) = self.route.tiers.get_mut(self.tier as usize) {
            tier.accepted += 1;
        }
        self.end_step();
        self.phase = if calls.is_empty() { Phase::Concluding } else { Phase::Acting(calls) };
    }

    fn fold_rejection(&mut self, rejected: &AnswerRejected) {
        match rejected.action {
            RejectAction::Continue => self.accept_pending(),
            RejectAction::Escalate => self.escalate(rejected),
            RejectAction::Repair => {
                self.route.step_repairs += 1;
                self.repairs += u32::from(!rejected.larger_left);
                self.send_back(&rejected.problems);
            }
            RejectAction::Fail => {
                self.phase = Phase::Failing(Failure::new(
                    ErrorCode::ANSWER_REJECTED,
                    format!("the answer was rejected: {}", list(&rejected.problems)),
                ));
            }
        }
    }

    /// Makes way for the next model: it sees nothing of what this one tried, unless it is to.
    fn escalate(&mut self, rejected: &AnswerRejected) {
        if rejected.draft {
            self.send_back(&rejected.problems);
        } else if self.route.step_repairs > 0 {
            self.messages.truncate(self.route.step_from as usize);
            self.context.rewound(&self.messages);
            self.route.rewinds += 1;
        }
        if let Some(tier) = self.route.tiers.get_mut(self.tier as usize) {
            tier.rejected += 1;
        }
        self.route.escalations += 1;
        self.route.step_repairs = 0;
        self.escalate = Some(format!("the answer was rejected: {}", list(&rejected.problems)));
        self.phase = Phase::Stepping;
    }

    /// Puts the rejected answer and what was wrong with it into the conversation; its tool calls
    /// are answered as not run, so that none is left open.
    fn send_back(&mut self, problems: &[Problem]) {
        let Some(pending) = self.take_pending() else {
            return;
        };
        let Answer { text, tool_calls, reasoning } = pending.answer;
        self.tool_call_count += tool_calls.len() as u64;
        // They use up their numbers, and count for no call of the turn.
        self.calls_before_turn += tool_calls.len() as u64;
        let results: Vec<_> = tool_calls
            .iter()
            .map(|call| Message::Tool {
                call_id: call.id.clone(),
                name: call.name.clone(),
                text: "not run: the answer was rejected".to_owned(),
                is_error: true,
            })
            .collect();
        self.messages.push(Message::Assistant { text, tool_calls, reasoning });
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

/// Models of a route that are told apart.
const TIERS_MAX: usize = 64;

/// The position that the next message gets.
fn position(messages: &[Message]) -> u32 {
    u32::try_from(messages.len()).unwrap_or(u32::MAX)
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
