//! How a shard carries out a session's commands, and what it makes of their ends.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mainspring_journal::Hold;
use mainspring_mcp::{Guard, McpCall, StdioConfig};
use mainspring_models::ModelRequest;
use mainspring_session::{
    ActiveModelCall, CallIndex, CallStatus, Command, EffectOutcome, ErrorCode, Fact, Failure,
    PendingAnswer, Phase, model_wait_ms_max,
};
use mainspring_wire::{Delta, HttpFailure};
use serde_json::value::RawValue;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::agent::Binding;
use crate::budgets::{Paid, within};
use crate::check;
use crate::host::{CallContext, HostCall, HostJob, HostOutcome, HostResult, Ticket};
use crate::live::{Key, Live};
use crate::mail::Mail;
use crate::shard::Shard;
use crate::timers::Timer;

/// A tool call or a verification that is under way.
pub(crate) struct Job {
    key: Key,
    kind: JobKind,
    started: Instant,
    /// Its time was up or its session was cancelled: what it ends with is late.
    given_up: bool,
    /// Set for jobs that run here and can be dropped.
    task: Option<AbortHandle>,
}

#[derive(Clone, Copy)]
enum JobKind {
    Tool { call: CallIndex, attempt: u32 },
    Policy { call: CallIndex },
    Reconcile { call: CallIndex },
    Verify,
}

impl JobKind {
    /// The call that the host is asked something about.
    fn asked_about(self) -> Option<CallIndex> {
        match self {
            JobKind::Policy { call } | JobKind::Reconcile { call } => Some(call),
            JobKind::Tool { .. } | JobKind::Verify => None,
        }
    }
}

/// How long a tool call of an MCP server is listened to after its deadline.
const LATE_MAX: Duration = Duration::from_secs(5);

/// How soon a lease that was not certain is looked at again.
const HOLD_AGAIN: Duration = Duration::from_millis(20);

impl Shard {
    pub(crate) fn carry_out(&mut self, key: Key, command: Command) {
        if reaches_out(&command) && !self.may_act(key, &command) {
            return;
        }
        match command {
            Command::CallModel(_) if self.draining.is_some() => self.park(key),
            Command::CallModel(call) => self.call_model(key, call),
            Command::Summarise(_) if self.draining.is_some() => self.park(key),
            Command::Summarise(summary) => self.summarise(key, summary),
            Command::CallTool { call, attempt } => self.call_tool(key, call, attempt),
            Command::AskPolicy { call } => self.ask_host(key, JobKind::Policy { call }),
            Command::Reconcile { call } => self.ask_host(key, JobKind::Reconcile { call }),
            Command::Verify => self.verify(key),
            Command::Check { .. } if self.draining.is_some() => self.park(key),
            Command::Check { step, check } => self.check_answer(key, step, check),
            Command::Wait { until_us } => {
                if self.draining.is_some() && self.is_backing_off(key) {
                    return self.park(key);
                }
                if let Some(live) = self.lives.get(&key) {
                    let at = Instant::now() + wait_until(live, until_us);
                    self.timers.set(at, Timer::Wake(key, until_us));
                }
            }
            Command::CancelOutstanding => {
                if let Some(mut live) = self.lives.remove(&key) {
                    self.stop_work(&mut live);
                    self.lives.insert(key, live);
                }
            }
            Command::Finish => {}
        }
    }

    fn is_backing_off(&self, key: Key) -> bool {
        let live = self.lives.get(&key);
        live.is_some_and(|live| matches!(live.state.phase, Phase::Backoff(..)))
    }

    /// Whether this process still owns a session, asked just before it acts for it. What must wait
    /// until that is certain is kept; a session that is lost is dropped.
    fn may_act(&mut self, key: Key, command: &Command) -> bool {
        let Some(live) = self.lives.get(&key) else { return false };
        match self.config.journal.hold(live.tenure) {
            Hold::Held => true,
            Hold::Paused => {
                self.pause(key, command.clone());
                false
            }
            Hold::Lost => {
                self.lose(key, &lease_lost());
                false
            }
        }
    }

    /// Keeps a command until the lease is looked at again.
    fn pause(&mut self, key: Key, command: Command) {
        if self.paused.is_empty() {
            self.timers.set(Instant::now() + HOLD_AGAIN, Timer::Hold);
        }
        self.paused.push((key, command));
    }

    /// Looks at the lease again, for all that waits for it.
    pub(crate) fn retry_paused(&mut self) {
        for (key, command) in std::mem::take(&mut self.paused) {
            let Some(live) = self.lives.get(&key) else { continue };
            if still_wanted(live, &command) {
                self.guarded(key, |shard| shard.carry_out(key, command));
            }
        }
    }

    fn call_model(&mut self, key: Key, call: ActiveModelCall) {
        let paid = self.paid(key, call);
        let Some(live) = self.lives.get_mut(&key) else {
            return;
        };
        let (step, attempt) = (call.step, call.attempt);
        live.watch_cache(call);
        let Some(request) = live.model_request(call.tier) else {
            return;
        };
        let request = ModelRequest { attempt, second: paid.as_ref().map(Paid::second), ..request };
        let models = Arc::clone(&self.config.models);
        let post = self.config.post.clone();
        let watched = live.watched.clone();
        live.unwatched_text = Rc::default();
        let unwatched_text = live.unwatched_text.clone();
        let task = tokio::task::spawn_local(async move {
            let mut on_delta = |delta: Delta<'_>| {
                if let Delta::Text(text) | Delta::Constrained(text) = delta {
                    if watched.get() {
                        let text = text.to_owned();
                        let _ = post.send(Mail::Delta { key, step, attempt, text });
                    } else {
                        unwatched_text.borrow_mut().push_str(text);
                    }
                }
            };
            let call =
                std::panic::AssertUnwindSafe(within(paid, models.call(request, &mut on_delta)));
            let result = call.catch_unwind().await.unwrap_or_else(|_| {
                let message = "the model call stopped at a broken invariant";
                Err(Failure::new(ErrorCode::INTERNAL, message).into())
            });
            let _ = post.send(Mail::Model { key, step, attempt, result });
        });
        live.model = Some(task.abort_handle());
    }

    pub(crate) fn model_ended(
        &mut self,
        key: Key,
        step: u32,
        attempt: u32,
        result: Result<mainspring_models::ModelReply, HttpFailure>,
    ) {
        let Some(live) = self.lives.get_mut(&key) else {
            return;
        };
        live.model = None;
        let fact = match result {
            Err(error) => failed_fact(live, (step, attempt), error),
            Ok(mut reply) => {
                if let Phase::Calling(call) = live.state.phase {
                    reply.notes.cache_bust = live.cache.answered(call.tier, reply.usage);
                }
                check::normalise(&mut reply.answer);
                let mut problems = reply.problems;
                if problems.is_empty() {
                    problems = check::check(&live.agent, &reply.answer, reply.finish_reason);
                }
                Fact::ModelAnswered {
                    step,
                    attempt,
                    answer: reply.answer,
                    finish_reason: reply.finish_reason,
                    usage: reply.usage,
                    timing: reply.timing,
                    notes: reply.notes,
                    problems,
                }
            }
        };
        self.tell(key, fact);
    }

    fn add_job(&mut self, key: Key, ticket: Ticket, kind: JobKind) {
        let job = Job { key, kind, started: Instant::now(), given_up: false, task: None };
        self.jobs.insert(ticket.0, job);
        if let Some(live) = self.lives.get_mut(&key) {
            live.jobs.push(ticket.0);
        }
    }

    fn call_tool(&mut self, key: Key, call: CallIndex, attempt: u32) {
        let ticket = self.next_ticket();
        let Some(live) = self.lives.get(&key) else {
            return;
        };
        let Some(current) = live.state.call(call) else {
            return;
        };
        let effect_id = live.state.effect_id(current);
        let Some(tool) = live.agent.tools.get(&current.call.name) else {
            let message = format!("tool {:?} is not bound to anything", current.call.name);
            let error = Failure::new(ErrorCode::TOOL_UNKNOWN, message);
            return self.tell(key, Fact::ToolFailed { call, attempt, error });
        };
        let timeout = Duration::from_millis(tool.timeout_ms);
        let arguments = current.call.arguments.clone();
        let mut task = None;
        match &tool.binding {
            Binding::Search => return self.search_tools(key, call, attempt),
            Binding::StandIn => return self.refuse_stand_in(key, call, attempt),
            Binding::Host(number) => {
                let context = CallContext {
                    session: live.id.clone(),
                    call,
                    call_id: current.call.id.clone(),
                    effect_id,
                    attempt,
                    timeout_ms: tool.timeout_ms,
                    tenure: live.tenure,
                };
                let job = HostJob::Tool { tool: *number, arguments, context };
                self.host_calls.push(HostCall { ticket, job });
            }
            Binding::Mcp { server, tool } => {
                let broker = self.config.broker.as_ref();
                let server = broker.map(|broker| broker.server(StdioConfig::clone(server)));
                let (journal, tenure) = (Arc::clone(&self.config.journal), live.tenure);
                let request = McpCall {
                    tool: tool.clone(),
                    arguments: RawValue::from_string(arguments)
                        .expect("arguments fit their schema, so they are JSON"),
                    // The engine's own deadline comes first; what still comes within this time is
                    // recorded as late, and then the server is told to stop.
                    timeout: timeout + LATE_MAX,
                    effect_id: effect_id.as_str().to_owned(),
                    guard: Guard::new(move || journal.hold(tenure) == Hold::Held),
                };
                let post = self.config.post.clone();
                let call = tokio::task::spawn_local(async move {
                    let outcome = match server {
                        Some(server) => mcp_outcome(server.call(request).await),
                        None => HostOutcome::Failed(no_broker()),
                    };
                    let _ = post.send(Mail::Host(vec![HostResult { ticket, outcome }]));
                });
                task = Some(call.abort_handle());
            }
        }
        self.add_job(key, ticket, JobKind::Tool { call, attempt });
        if let Some(job) = self.jobs.get_mut(&ticket.0) {
            job.task = task;
        }
        self.timers.set(Instant::now() + timeout, Timer::job(ticket));
    }

    /// Asks the host about a tool call: whether a person must approve it, or what became of it.
    fn ask_host(&mut self, key: Key, kind: JobKind) {
        let (JobKind::Policy { call } | JobKind::Reconcile { call }) = kind else { return };
        let ticket = self.next_ticket();
        let Some(live) = self.lives.get_mut(&key) else { return };
        let Some(current) = live.state.call(call) else { return };
        let bound = live.agent.tools.get(&current.call.name);
        let Some((Binding::Host(number), timeout_ms)) =
            bound.map(|tool| (&tool.binding, tool.timeout_ms))
        else {
            // Such a tool has no functions to ask, so a person decides.
            let nobody = HostOutcome::Failed(no_function());
            if let Some(fact) = answered_fact(kind, nobody) {
                self.tell(key, fact);
            }
            return;
        };
        let context = CallContext {
            session: live.id.clone(),
            call,
            call_id: current.call.id.clone(),
            effect_id: live.state.effect_id(current),
            attempt: current.attempt,
            timeout_ms,
            tenure: live.tenure,
        };
        let (tool, arguments) = (*number, current.call.arguments.clone());
        let job = match kind {
            JobKind::Policy { .. } => HostJob::Policy { tool, arguments, context },
            _ => HostJob::Reconcile { tool, arguments, context },
        };
        live.questions.push(call);
        self.host_calls.push(HostCall { ticket, job });
        self.add_job(key, ticket, kind);
        self.timers.set(Instant::now() + Duration::from_millis(timeout_ms), Timer::job(ticket));
    }

    fn verify(&mut self, key: Key) {
        let ticket = self.next_ticket();
        let Some(live) = self.lives.get(&key) else {
            return;
        };
        let (Phase::Judging(pending), Some(verifier)) = (&live.state.phase, live.agent.verifier)
        else {
            return;
        };
        let step = live.state.steps.saturating_sub(1);
        let model = live.agent.spec.models.get(live.state.tier as usize);
        let answer = serde_json::json!({
            "text": pending.answer.text,
            "tool_calls": pending.answer.tool_calls,
            "model": model.map(|model| model.name.as_str()),
            "step": step,
            "session": live.id.as_str(),
        });
        let job = HostJob::Verify { verifier, answer: answer.to_string() };
        self.host_calls.push(HostCall { ticket, job });
        self.add_job(key, ticket, JobKind::Verify);
        let timeout = Duration::from_millis(self.config.limits.verify_ms_max);
        self.timers.set(Instant::now() + timeout, Timer::job(ticket));
    }

    pub(crate) fn job_ended(&mut self, result: HostResult) {
        let Some(job) = self.jobs.remove(&result.ticket.0) else {
            return;
        };
        let Some(live) = self.lives.get_mut(&job.key) else {
            return;
        };
        live.jobs.retain(|number| *number != result.ticket.0);
        if let (Some(call), false) = (job.kind.asked_about(), job.given_up) {
            live.answered(call);
        }
        if job.given_up && matches!(result.outcome, HostOutcome::Cancelled) {
            return self.end_if_over(job.key);
        }
        let key = job.key;
        if let (HostOutcome::Withheld, JobKind::Tool { call, attempt }) =
            (&result.outcome, job.kind)
        {
            return self.pause(key, Command::CallTool { call, attempt });
        }
        match ended_fact(&job, result.outcome) {
            Some(fact) => self.tell(key, fact),
            None => self.end_if_over(key),
        }
    }

    pub(crate) fn job_timed_out(&mut self, ticket: Ticket) {
        let Some(job) = self.jobs.get_mut(&ticket.0) else {
            return;
        };
        if job.given_up {
            return;
        }
        job.given_up = true;
        let key = job.key;
        let fact = match job.kind {
            JobKind::Tool { call, attempt } => {
                let ran_s = job.started.elapsed().as_secs_f64();
                Fact::ToolFailed { call, attempt, error: self.timeout_error(key, call, ran_s) }
            }
            JobKind::Verify => {
                let limit_ms = self.config.limits.verify_ms_max;
                let reason = format!("the verify function took longer than {limit_ms} ms");
                Fact::Verified { rejection: Some(reason) }
            }
            JobKind::Policy { call } | JobKind::Reconcile { call } => {
                let kind = job.kind;
                if let Some(live) = self.lives.get_mut(&key) {
                    live.answered(call);
                }
                let late = Failure::new(ErrorCode::TOOL_TIMEOUT, "the function took too long");
                let Some(fact) = answered_fact(kind, HostOutcome::Failed(late)) else { return };
                fact
            }
        };
        self.tell(key, fact);
        self.cancel_job(ticket);
    }

    fn timeout_error(&self, key: Key, call: CallIndex, ran_s: f64) -> Failure {
        let live = self.lives.get(&key);
        let current = live.and_then(|live| Some((live, live.state.call(call)?)));
        let (name, limit_ms) = match current {
            Some((live, call)) => {
                let name = call.call.name.as_str();
                (name, live.agent.tools.get(name).map_or(0, |tool| tool.timeout_ms))
            }
            None => ("?", 0),
        };
        let limit_s = limit_ms as f64 / 1000.0;
        let message = format!("tool {name:?} ran {ran_s:.1} s, limit {limit_s} s");
        Failure::new(ErrorCode::TOOL_TIMEOUT, message)
            .with_hint("raise the tool's timeout_s, or let it return partial results")
    }

    /// Asks the host to stop a job. One that runs here stops by its own, later deadline, so that
    /// an outcome that comes a little late is recorded.
    fn cancel_job(&mut self, ticket: Ticket) {
        if self.jobs.get(&ticket.0).is_some_and(|job| job.task.is_none()) {
            self.host_cancels.push(ticket);
        }
    }

    /// Stops everything under way for a session.
    pub(crate) fn stop_work(&mut self, live: &mut Live) {
        if let Some(task) = live.model.take() {
            task.abort();
        }
        live.questions.clear();
        for number in live.jobs.clone() {
            if let Some(job) = self.jobs.get_mut(&number) {
                job.given_up = true;
                if let Some(task) = job.task.take() {
                    task.abort();
                    self.jobs.remove(&number);
                    live.jobs.retain(|other| *other != number);
                } else {
                    self.host_cancels.push(Ticket(number));
                }
            }
        }
    }
}

/// The fact that the end of a job amounts to; none if nobody needs to know.
fn ended_fact(job: &Job, outcome: HostOutcome) -> Option<Fact> {
    match job.kind {
        JobKind::Tool { call, attempt } => Some(match outcome {
            HostOutcome::Returned(text) => {
                let duration_us = u64::try_from(job.started.elapsed().as_micros()).unwrap_or(0);
                Fact::ToolReturned { call, attempt, text, duration_us }
            }
            HostOutcome::Failed(error) => Fact::ToolFailed { call, attempt, error },
            HostOutcome::Cancelled
            | HostOutcome::Withheld
            | HostOutcome::Verified(_)
            | HostOutcome::Policy(_)
            | HostOutcome::Reconciled(_) => {
                let message = "the tool was cancelled from within";
                let error = Failure::new(ErrorCode::CANCELLED, message);
                Fact::ToolFailed { call, attempt, error }
            }
        }),
        JobKind::Policy { .. } | JobKind::Reconcile { .. } | JobKind::Verify if job.given_up => {
            None
        }
        kind @ (JobKind::Policy { .. } | JobKind::Reconcile { .. }) => answered_fact(kind, outcome),
        JobKind::Verify => Some(Fact::Verified {
            rejection: match outcome {
                HostOutcome::Verified(rejection) => rejection,
                HostOutcome::Failed(error) => Some(error.message),
                _ => Some("the verify function was cancelled".to_owned()),
            },
        }),
    }
}

/// What an answer of the host about a call amounts to. Where it does not answer, a person decides.
fn answered_fact(kind: JobKind, outcome: HostOutcome) -> Option<Fact> {
    match kind {
        JobKind::Policy { call } => Some(Fact::PolicyAnswered {
            call,
            needed: !matches!(outcome, HostOutcome::Policy(false)),
        }),
        JobKind::Reconcile { call } => {
            let outcome = match outcome {
                HostOutcome::Reconciled(outcome) => outcome,
                HostOutcome::Failed(error) => EffectOutcome::Undecided { message: error.message },
                _ => EffectOutcome::Undecided { message: "the function was cancelled".to_owned() },
            };
            Some(Fact::EffectResolved { call, outcome, by: Some("reconcile".to_owned()) })
        }
        JobKind::Tool { .. } | JobKind::Verify => None,
    }
}

/// The failure of a model call as the session hears of it: a retry that would come after the turn's
/// end is none, and what nobody saw of an answer need not be taken back.
fn failed_fact(live: &mut Live, (step, attempt): (u32, u32), error: HttpFailure) -> Fact {
    let HttpFailure { failure: mut error, retry_after_ms } = error;
    let left = live.turn_ends.map(|ends| ends.saturating_duration_since(Instant::now()));
    let wait = model_wait_ms_max(attempt, retry_after_ms).map(Duration::from_millis);
    if error.retryable && wait.zip(left).is_some_and(|(wait, left)| wait > left) {
        error.retryable = false;
        error.hint = Some("the turn's time is up before another attempt".to_owned());
    }
    let streamed_chars = live.watch.break_off(step, attempt);
    Fact::ModelFailed { step, attempt, error, retry_after_ms, streamed_chars }
}

/// How long a session waits for a time. The wall clock may have been set since the time was
/// chosen: by now, so it is measured from the decision; or before this process took the session
/// over, so it is then no longer than any wait that the log tells of.
fn wait_until(live: &Live, until_us: i64) -> Duration {
    let wait_us = u64::try_from(until_us.saturating_sub(live.decided_us)).unwrap_or(0);
    Duration::from_micros(wait_us.min(live.wait_us_max))
}

/// Whether a command does something outside of this process.
fn reaches_out(command: &Command) -> bool {
    !matches!(command, Command::Wait { .. } | Command::CancelOutstanding | Command::Finish)
}

/// Whether a command that has waited still fits what its session is doing.
fn still_wanted(live: &Live, command: &Command) -> bool {
    let status = |call| live.state.call(call).map(|call| (&call.status, call.attempt));
    match command {
        Command::CallModel(call) => live.state.phase == Phase::Calling(*call),
        Command::Summarise(summary) => live.state.phase == Phase::Summarising(*summary),
        Command::CallTool { call, attempt } => {
            status(*call) == Some((&CallStatus::Running, *attempt))
        }
        Command::AskPolicy { call } => {
            matches!(status(*call), Some((CallStatus::Planned(None), _)))
        }
        Command::Reconcile { call } => matches!(status(*call), Some((CallStatus::Unknown, _))),
        Command::Verify => matches!(&live.state.phase, Phase::Judging(pending) if pending.verify),
        Command::Check { step, check } => {
            let awaited = |pending: &PendingAnswer| pending.checking == Some(*check);
            matches!(&live.state.phase, Phase::Judging(pending) if awaited(pending))
                && live.state.steps == step + 1
        }
        _ => true,
    }
}

pub(crate) fn lease_lost() -> Failure {
    Failure::new(ErrorCode::LEASE_LOST, "this process lost its lease on the session")
        .with_hint("another process of the store goes on with it")
}

fn no_broker() -> Failure {
    Failure::new(ErrorCode::MCP_START_FAILED, "this engine runs no MCP servers")
}

fn no_function() -> Failure {
    Failure::new(ErrorCode::TOOL_UNKNOWN, "the tool has no function to ask")
}

fn mcp_outcome(result: Result<mainspring_mcp::McpResult, mainspring_mcp::McpError>) -> HostOutcome {
    match result {
        Ok(result) if result.is_error => {
            HostOutcome::Failed(Failure::new(ErrorCode::TOOL_FAILED, result.text))
        }
        Ok(result) => HostOutcome::Returned(result.text),
        Err(mainspring_mcp::McpError::Withheld { .. }) => HostOutcome::Withheld,
        Err(error) => HostOutcome::Failed(crate::engine::mcp_failure(&error)),
    }
}
