//! One completion under way: choose, ask, check, then repair, escalate, fall back, or be done.
//!
//! ```text
//! choose ──▶ ask ──answer──▶ check ──good──▶ done
//!             ▲ │               ├─ can be mended ──▶ ask the same model, once, with what is wrong
//!             │ └─failure──┐    └─ else ──▶ ask the next model; after the last: give it back as
//!             └────────────┴──────────────  it is, or fail where it does not fit the output schema
//! ```
//!
//! A failure is retried with the session's own backoff, then another model of the route is asked
//! that has not failed yet: a later one before an earlier one. The next model sees nothing of an
//! answer that was rejected.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mainspring_models::budget::BudgetPath;
use mainspring_models::{ModelReply, ModelRequest};
use mainspring_route::Decision;
use mainspring_session::{
    Answer, CallIndex, ErrorCode, Failure, FinishReason, Message, Moment, Problem, RetryAsked,
    model_retry_at,
};
use mainspring_wire::{CallIds, Delta, HttpFailure};
use tokio::time::Instant;

use super::Completer;
use super::choose::{self, Said};
use super::record::total_of;
use super::request::{Attempt, Completion, CompletionError, CompletionRequest, Piece, Streaming};
use super::route::ModelRoute;
use crate::agent::Agent;
use crate::check;

/// How long a completion waits for a model that is left alone, in milliseconds.
const LEFT_ALONE_MS_MAX: u64 = 5_000;

/// Checks whose findings a model can be asked to mend.
const MENDABLE: [&str; 6] =
    ["parse", "output_schema", "tool_unknown", "tool_arguments", "tool_count", "verify"];
/// Checks that no answer may fail: what they find is a failure of the completion.
const STRICT: [&str; 3] = ["parse", "output_schema", "verify"];

/// What is asked, and of whom.
pub(super) struct Asked<'a> {
    pub(super) route: &'a ModelRoute,
    pub(super) agent: &'a Agent,
    pub(super) request: &'a CompletionRequest,
    pub(super) decision: &'a Decision,
    /// Who pays, if anybody counts.
    pub(super) payer: Option<BudgetPath>,
}

/// A completion under way.
pub(super) struct Run<'a> {
    completer: &'a Completer,
    route: &'a ModelRoute,
    agent: &'a Agent,
    request: &'a CompletionRequest,
    decision: &'a Decision,
    payer: Option<BudgetPath>,
    /// Names the conversation, so that its calls go to the endpoint that has it in its cache.
    affinity: u64,
    deadline: Option<Instant>,
    on_piece: &'a mut dyn FnMut(Piece<'_>),
    attempts: Vec<Attempt>,
    /// What a repair adds to the conversation.
    amended: Vec<Message>,
    /// Models that failed and are not asked again.
    failed: Vec<usize>,
    repairs: u32,
    /// Whether pieces of the answer being made have gone out.
    sent: bool,
}

/// What a model said, and what was found wrong with it.
pub(super) struct Judged {
    tier: usize,
    answer: Answer,
    finish_reason: FinishReason,
    problems: Vec<Problem>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        completer: &'a Completer,
        asked: Asked<'a>,
        on_piece: &'a mut dyn FnMut(Piece<'_>),
    ) -> Self {
        let Asked { route, agent, request, decision, payer } = asked;
        Self {
            completer,
            route,
            agent,
            request,
            decision,
            payer,
            affinity: route.conversations.affinity(request),
            deadline: request.timeout.map(|timeout| Instant::now() + timeout),
            on_piece,
            attempts: Vec::with_capacity(1),
            amended: Vec::new(),
            failed: Vec::new(),
            repairs: 0,
            sent: false,
        }
    }

    /// The answer that counts, within the request's time.
    pub(super) async fn outcome(&mut self) -> Result<Judged, HttpFailure> {
        let (Some(timeout), Some(deadline)) = (self.request.timeout, self.deadline) else {
            return self.answer().await;
        };
        match tokio::time::timeout_at(deadline, self.answer()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(timed_out(self.route.name(), timeout).into()),
        }
    }

    /// The outcome as it is given back.
    pub(super) fn finish(
        self,
        outcome: Result<Judged, HttpFailure>,
    ) -> Result<Completion, CompletionError> {
        match outcome {
            Ok(judged) => Ok(self.completion(judged)),
            Err(HttpFailure { failure, retry_after_ms }) => {
                Err(CompletionError { failure, retry_after_ms, attempts: self.attempts })
            }
        }
    }

    async fn answer(&mut self) -> Result<Judged, HttpFailure> {
        let mut tier = self.decision.tier;
        loop {
            let judged = match self.ask(tier).await {
                Ok(reply) => self.judge(tier, reply).await,
                Err(error) => match self.after_failure(tier, &error.failure) {
                    Some(next) => {
                        tier = next;
                        continue;
                    }
                    None => return Err(error),
                },
            };
            if judged.problems.is_empty() || self.must_stand() {
                self.send_whole(&judged);
                return Ok(judged);
            }
            if self.may_mend(&judged) {
                self.mend(judged);
            } else if let Some(next) = self.next(tier) {
                self.hand_on();
                tier = next;
            } else if judged.problems.iter().any(|problem| is_in(&STRICT, problem)) {
                return Err(rejected(&judged).into());
            } else {
                self.send_whole(&judged);
                return Ok(judged);
            }
        }
    }

    /// Asks one model until it answers, its error stands, or no more calls are allowed.
    async fn ask(&mut self, tier: usize) -> Result<ModelReply, HttpFailure> {
        let mut attempt = 1;
        loop {
            let error = match self.call(tier, attempt).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let now = Moment { at_us: 0, seed: self.completer.seed() };
            let limits = &self.agent.spec.limits;
            let retry_after_ms = error.retry_after_ms;
            let has_next = self.other(tier).is_some();
            // Whoever waits for one answer is told, rather than kept for minutes.
            let is_far = retry_after_ms.is_some_and(|wait_ms| wait_ms > LEFT_ALONE_MS_MAX);
            let unmade = if is_far { u32::MAX } else { attempt };
            let asked = RetryAsked { attempt, retry_after_ms, has_next, unmade };
            let wait = model_retry_at(limits, &error.failure, asked, now);
            match wait.and_then(|us| u64::try_from(us).ok()) {
                Some(wait_us) if self.may_call() && !self.must_stand() => {
                    self.restart();
                    tokio::time::sleep(Duration::from_micros(wait_us)).await;
                }
                _ => return Err(error),
            }
            attempt += 1;
        }
    }

    async fn call(&mut self, tier: usize, attempt: u32) -> Result<ModelReply, HttpFailure> {
        let paid = match &self.payer {
            Some(payer) => {
                let budgets = &self.completer.budgets;
                Some(budgets.reserve(payer, self.request, self.agent, tier).await?)
            }
            None => None,
        };
        let request = self.model_request(tier, attempt);
        let through = self.streams_through(tier);
        let (on_piece, sent) = (&mut *self.on_piece, &mut self.sent);
        let model = &self.agent.spec.models[tier].name;
        let mut on_delta = |delta: Delta<'_>| {
            // Calls are passed on whole once they have their ids; what a constrained answer means
            // is known only at its end.
            if let (true, Delta::Text(_)) = (through, delta) {
                if !*sent {
                    *sent = true;
                    on_piece(Piece::Begin { tier, model });
                }
                on_piece(Piece::Delta(delta));
            }
        };
        let started = Instant::now();
        let call = std::panic::AssertUnwindSafe(self.completer.models.call(request, &mut on_delta));
        let result = call.catch_unwind().await.unwrap_or_else(|_| {
            let message = "the model call stopped at a broken invariant";
            Err(Failure::new(ErrorCode::INTERNAL, message).into())
        });
        if let Some(paid) = paid {
            paid.settle(&result);
        }
        self.note(tier, started, &result);
        result
    }

    fn model_request(&self, tier: usize, attempt: u32) -> ModelRequest {
        let (own, model) = (&self.agent.tiers[tier], &self.agent.spec.models[tier]);
        let mut history = Vec::new();
        for message in self.request.messages.iter().chain(&self.amended) {
            own.codec.encode_message(message, &mut history);
        }
        // What the request says of tools is meant for this answer, wherever the conversation is.
        let body = own.codec.opening_body(&history).into();
        let ids = CallIds { first: CallIndex(0) };
        let (endpoints, codec) = (own.endpoints.clone(), own.codec.clone());
        ModelRequest {
            tenant: Arc::clone(&self.request.tenant),
            affinity: self.affinity,
            deadline: self.deadline,
            attempt,
            ..ModelRequest::new(model, endpoints, codec, body, ids)
        }
    }

    fn note(&mut self, tier: usize, started: Instant, result: &Result<ModelReply, HttpFailure>) {
        let model = &self.agent.spec.models[tier];
        let mut attempt = Attempt {
            tier,
            model: model.name.clone(),
            total_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            first_token_us: None,
            usage: mainspring_session::Usage::default(),
            cost_usd: None,
            error: None,
            problems: Vec::new(),
        };
        match result {
            Ok(reply) => {
                attempt.first_token_us = reply.timing.first_token_us;
                attempt.usage = reply.usage;
                attempt.cost_usd = model.price.map(|price| price.of(reply.usage));
            }
            Err(error) => attempt.error = Some(error.failure.clone()),
        }
        self.attempts.push(attempt);
    }

    /// What the checks say of an answer.
    async fn judge(&mut self, tier: usize, reply: ModelReply) -> Judged {
        let ModelReply { mut answer, finish_reason, mut problems, notes, .. } = reply;
        check::normalise(&mut answer);
        if problems.is_empty() {
            problems = check::check(self.agent, &answer, finish_reason);
        }
        let allowed = self.completer.limits.tool_calls_max as usize;
        if answer.tool_calls.len() > allowed {
            let message =
                format!("{} tool calls in one answer, limit {allowed}", answer.tool_calls.len());
            problems.push(Problem { check: "tool_count".to_owned(), message, call: None });
        }
        // An answer that ends at the limit which the request set is what was asked for.
        if finish_reason == FinishReason::Length && self.request.output_tokens_max.is_some() {
            problems.retain(|problem| problem.check != "finish_reason");
        }
        if problems.is_empty() && self.next(tier).is_some() {
            let logprob_mean = notes.logprob_mean;
            let said = Said { tier, answer: &answer, finish_reason, logprob_mean };
            let verdict = choose::worth(self.route, self.request, self.decision, &said);
            if !verdict.accept {
                let message = verdict.reasons.join("; ");
                problems.push(Problem { check: "score".to_owned(), message, call: None });
            }
        }
        let mut judged = Judged { tier, answer, finish_reason, problems };
        if let (true, Some(verify)) = (judged.problems.is_empty(), &self.route.verify) {
            let draft = self.completion(judged);
            let rejection = verify.verify(&draft).await;
            let Completion { answer, finish_reason, .. } = draft;
            let problem = |message| Problem { check: "verify".to_owned(), message, call: None };
            let problems = rejection.map(problem).into_iter().collect();
            judged = Judged { tier, answer, finish_reason, problems };
        }
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.problems.clone_from(&judged.problems);
        }
        judged
    }

    /// An answer as it is given back.
    fn completion(&self, judged: Judged) -> Completion {
        let (usage, cost_usd) = total_of(&self.attempts);
        let Judged { tier, answer, finish_reason, problems } = judged;
        Completion {
            answer,
            finish_reason,
            tier,
            model: self.agent.spec.models[tier].name.clone(),
            usage,
            cost_usd,
            attempts: self.attempts.clone(),
            problems,
            decision: self.decision.clone(),
        }
    }

    /// Whether what has been streamed already can no longer be taken back.
    fn must_stand(&self) -> bool {
        self.sent && !self.request.may_restart
    }

    fn may_call(&self) -> bool {
        self.attempts.len() < self.completer.limits.calls_max as usize
    }

    /// The next stronger model that may be asked.
    fn next(&self, tier: usize) -> Option<usize> {
        let stronger = (tier + 1..self.agent.tiers.len()).find(|tier| !self.failed.contains(tier));
        stronger.filter(|_| self.may_call())
    }

    /// The model to ask in the place of one that fails: a stronger one, else one that was passed over.
    fn other(&self, tier: usize) -> Option<usize> {
        let asked = |tier: &usize| self.attempts.iter().any(|attempt| attempt.tier == *tier);
        let passed_over = (0..tier).rev().find(|tier| !asked(tier));
        self.next(tier).or(passed_over.filter(|_| self.may_call()))
    }

    /// The model to ask after one has failed: a stronger one, else one that was passed over.
    fn after_failure(&mut self, tier: usize, error: &Failure) -> Option<usize> {
        self.failed.push(tier);
        if !error.code.as_str().starts_with("model_") || self.must_stand() {
            return None;
        }
        let next = self.other(tier);
        if next.is_some() {
            self.hand_on();
        }
        next
    }

    fn may_mend(&self, judged: &Judged) -> bool {
        let mendable = judged.problems.iter().all(|problem| is_in(&MENDABLE, problem));
        mendable && self.repairs < self.completer.limits.repairs_max && self.may_call()
    }

    /// Sends an answer back with what is wrong with it.
    fn mend(&mut self, judged: Judged) {
        self.restart();
        self.repairs += 1;
        let Answer { text, tool_calls, reasoning } = judged.answer;
        let results: Vec<_> = tool_calls
            .iter()
            .map(|call| Message::Tool {
                call_id: call.id.clone(),
                name: call.name.clone(),
                text: "not run: the answer was rejected".to_owned(),
                is_error: true,
            })
            .collect();
        self.amended.push(Message::Assistant { text, tool_calls, reasoning });
        self.amended.extend(results);
        let told = list(&judged.problems);
        let told = format!("Your answer was rejected: {told}. Answer again.");
        self.amended.push(Message::user(told));
    }

    /// Another model is asked the same, and sees nothing of what was rejected.
    fn hand_on(&mut self) {
        self.restart();
        self.amended.clear();
        self.repairs = 0;
    }

    /// Another answer is to be made.
    fn restart(&mut self) {
        if self.sent {
            (self.on_piece)(Piece::Restart);
            self.sent = false;
        }
    }

    /// Whether what a model says goes out as it comes.
    fn streams_through(&self, tier: usize) -> bool {
        match self.request.streaming {
            Streaming::Off => false,
            Streaming::Immediate => true,
            Streaming::Accepted => self.next(tier).is_none() && self.route.verify.is_none(),
        }
    }

    /// What of an answer that counts has not gone out yet.
    fn send_whole(&mut self, judged: &Judged) {
        if self.request.streaming == Streaming::Off || self.sent {
            return;
        }
        let (tier, text) = (judged.tier, &judged.answer.text);
        (self.on_piece)(Piece::Begin { tier, model: &self.agent.spec.models[tier].name });
        if !text.is_empty() {
            (self.on_piece)(Piece::Delta(Delta::Text(text)));
        }
    }
}

fn is_in(checks: &[&str], problem: &Problem) -> bool {
    checks.contains(&problem.check.as_str())
}

fn rejected(judged: &Judged) -> Failure {
    let told = list(&judged.problems);
    let verified = judged.problems.iter().any(|problem| problem.check == "verify");
    let code = if verified { ErrorCode::ANSWER_REJECTED } else { ErrorCode::OUTPUT_INVALID };
    Failure::new(code, format!("no model of the route gave an answer that counts: {told}"))
        .with_hint("ask a stronger model, or for a simpler form")
}

fn timed_out(route: &str, timeout: Duration) -> Failure {
    let seconds = timeout.as_secs_f64();
    Failure::new(
        ErrorCode::MODEL_TIMEOUT,
        format!("route \"{route}\" gave no answer within {seconds} s, the time of the request"),
    )
    .with_hint("raise timeout_s, or ask a faster model")
}

fn list(problems: &[Problem]) -> String {
    let texts: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
    texts.join("; ")
}
