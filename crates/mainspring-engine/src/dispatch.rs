//! How a shard carries out a session's commands, and what it makes of their ends.

use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use mainspring_mcp::{McpCall, StdioConfig};
use mainspring_models::ModelRequest;
use mainspring_session::{ActiveModelCall, CallIndex, Command, ErrorCode, Fact, Failure, Phase};
use mainspring_wire::{CallIds, Delta};
use serde_json::value::RawValue;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::agent::Binding;
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

enum JobKind {
    Tool { call: CallIndex, attempt: u32 },
    Verify,
}

impl Shard {
    pub(crate) fn carry_out(&mut self, key: Key, command: Command) {
        match command {
            Command::CallModel(call) => self.call_model(key, call),
            Command::CallTool { call, attempt } => self.call_tool(key, call, attempt),
            Command::Verify => self.verify(key),
            Command::Wait { until_us } => {
                let wait_us = u64::try_from(until_us - self.now_us()).unwrap_or(0);
                let at = Instant::now() + Duration::from_micros(wait_us);
                self.timers.set(at, Timer::Wake(key, until_us));
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

    fn call_model(&mut self, key: Key, call: ActiveModelCall) {
        let Some(live) = self.lives.get_mut(&key) else {
            return;
        };
        let (step, attempt) = (call.step, call.attempt);
        let tier = &live.agent.tiers[call.tier as usize];
        let model = &live.agent.spec.models[call.tier as usize];
        let history = live.history.update(&tier.codec, &live.state.messages);
        let request = ModelRequest {
            endpoint: tier.endpoint.clone(),
            codec: tier.codec.clone(),
            body: tier.codec.body(history).into(),
            ids: CallIds { first: CallIndex(live.state.tool_call_count) },
            connect_ms_max: model.connect_ms_max,
            first_token_ms_max: model.first_token_ms_max,
            total_ms_max: model.total_ms_max,
        };
        let client = self.config.client.clone();
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
            let call = std::panic::AssertUnwindSafe(client.call(request, &mut on_delta));
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
        result: Result<mainspring_models::ModelReply, mainspring_wire::HttpFailure>,
    ) {
        let Some(live) = self.lives.get_mut(&key) else {
            return;
        };
        live.model = None;
        let fact = match result {
            Err(error) => Fact::ModelFailed {
                step,
                attempt,
                error: error.failure,
                retry_after_ms: error.retry_after_ms,
            },
            Ok(mut reply) => {
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
        let effect_id = live.state.effect_id(call);
        let Some(tool) = live.agent.tools.get(&current.call.name) else {
            let message = format!("tool {:?} is not bound to anything", current.call.name);
            let error = Failure::new(ErrorCode::TOOL_UNKNOWN, message);
            return self.tell(key, Fact::ToolFailed { call, attempt, error });
        };
        let timeout = Duration::from_millis(tool.timeout_ms);
        let arguments = current.call.arguments.clone();
        let mut task = None;
        match &tool.binding {
            Binding::Host(number) => {
                let context = CallContext {
                    session: live.id.clone(),
                    call,
                    call_id: current.call.id.clone(),
                    effect_id,
                    attempt,
                    timeout_ms: tool.timeout_ms,
                };
                let job = HostJob::Tool { tool: *number, arguments, context };
                self.host_calls.push(HostCall { ticket, job });
            }
            Binding::Mcp { server, tool } => {
                let server = self.config.broker.server(StdioConfig::clone(server));
                let request = McpCall {
                    tool: tool.clone(),
                    arguments: RawValue::from_string(arguments)
                        .expect("arguments fit their schema, so they are JSON"),
                    // The engine's own deadline comes first and cancels the call.
                    timeout: timeout + Duration::from_secs(5),
                    effect_id: effect_id.as_str().to_owned(),
                };
                let post = self.config.post.clone();
                let call = tokio::task::spawn_local(async move {
                    let outcome = mcp_outcome(server.call(request).await);
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
        if job.given_up && matches!(result.outcome, HostOutcome::Cancelled) {
            return self.end_if_over(job.key);
        }
        let key = job.key;
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

    /// Stops a job: drops it if it runs here, else asks the host.
    fn cancel_job(&mut self, ticket: Ticket) {
        let Some(job) = self.jobs.get_mut(&ticket.0) else {
            return;
        };
        match job.task.take() {
            Some(task) => {
                task.abort();
                self.job_ended(HostResult { ticket, outcome: HostOutcome::Cancelled });
            }
            None => self.host_cancels.push(ticket),
        }
    }

    /// Stops everything under way for a session.
    pub(crate) fn stop_work(&mut self, live: &mut Live) {
        if let Some(task) = live.model.take() {
            task.abort();
        }
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
            HostOutcome::Cancelled | HostOutcome::Verified(_) => {
                let message = "the tool was cancelled from within";
                let error = Failure::new(ErrorCode::CANCELLED, message);
                Fact::ToolFailed { call, attempt, error }
            }
        }),
        JobKind::Verify if job.given_up => None,
        JobKind::Verify => Some(Fact::Verified {
            rejection: match outcome {
                HostOutcome::Verified(rejection) => rejection,
                HostOutcome::Failed(error) => Some(error.message),
                _ => Some("the verify function was cancelled".to_owned()),
            },
        }),
    }
}

fn mcp_outcome(result: Result<mainspring_mcp::McpResult, mainspring_mcp::McpError>) -> HostOutcome {
    match result {
        Ok(result) if result.is_error => {
            HostOutcome::Failed(Failure::new(ErrorCode::TOOL_FAILED, result.text))
        }
        Ok(result) => HostOutcome::Returned(result.text),
        Err(error) => HostOutcome::Failed(crate::engine::mcp_failure(&error)),
    }
}
