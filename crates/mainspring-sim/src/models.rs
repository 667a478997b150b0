//! Models that answer at random, but the same for the same request: steps of parallel tool calls,
//! some of them wrong, and failures of every kind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use mainspring_engine::Models;
use mainspring_models::{EndpointSet, ModelReply, ModelRequest, Readiness};
use mainspring_session::{
    Answer, CallNotes, ErrorCode, Failure, FinishReason, Timing, ToolCall, Usage,
};
use mainspring_wire::{Delta, HttpFailure};

use crate::agents::TOOLS;
use crate::process::Process;
use crate::rng::{Rng, hash};
use crate::world::{World, lock};

/// Tokens that a model of the simulation reads at most, so that many a conversation outgrows it:
/// tools alone take 300.
pub(crate) const WINDOW_TOKENS: u64 = 700;
/// Bytes of a request that it makes one token of.
const BYTES_PER_TOKEN: u64 = 4;

/// How often each request has been made, in any process.
pub(crate) type Asked = Mutex<BTreeMap<u64, u64>>;

/// The models as one process reaches them.
pub(crate) struct SimModels {
    pub(crate) process: Arc<Process>,
    pub(crate) asked: Arc<Asked>,
}

impl Models for SimModels {
    fn call<'a>(
        &'a self,
        request: ModelRequest,
        on_delta: &'a mut dyn FnMut(Delta<'_>),
    ) -> LocalBoxFuture<'a, Result<ModelReply, HttpFailure>> {
        let world = Arc::clone(&self.process.world);
        let key = hash(world.seed, &request.body);
        let times = {
            let mut asked = lock(&self.asked);
            let times = asked.entry(key).or_insert(0);
            *times += 1;
            *times
        };
        Box::pin(async move {
            let mut rng = Rng::new(key.wrapping_add(times));
            let slow = !world.is_calm() && rng.chance(world.faults.model_slow);
            let takes = if slow { rng.between_ms(2_000, 15_000) } else { rng.between_ms(10, 400) };
            tokio::time::sleep(takes / 2).await;
            if rng.chance(300) {
                on_delta(Delta::Text("a part "));
            }
            tokio::time::sleep(takes / 2).await;
            if !self.process.reach("a model's answer") {
                return std::future::pending().await;
            }
            answer(&world, &mut rng, &request, takes)
        })
    }

    fn readiness(&self, _: &EndpointSet) -> Readiness {
        Readiness::default()
    }
}

fn answer(
    world: &World,
    rng: &mut Rng,
    request: &ModelRequest,
    took: Duration,
) -> Result<ModelReply, HttpFailure> {
    if !world.is_calm() && rng.chance(world.faults.model_failed) {
        return Err(fail(rng));
    }
    if request.codec.model() == "judge" {
        return Ok(judged(rng, took));
    }
    let body = String::from_utf8_lossy(&request.body);
    let input_tokens = request.body.len() as u64 / BYTES_PER_TOKEN;
    if input_tokens > WINDOW_TOKENS {
        let message = "the simulated model reads no more than its window";
        let failure = Failure::new(ErrorCode::MODEL_CONTEXT_OVERFLOW, message);
        return Err(HttpFailure { failure, retry_after_ms: None });
    }
    let turn = body.rsplit("\"role\":\"user\"").next().unwrap_or_default();
    let steps = turn.matches("\"role\":\"assistant\"").count() as u64;
    let done = steps >= rng.below(5) || (world.is_calm() && steps > 2);
    let first = request.ids.first.0;
    let tool_calls = match done {
        true => Vec::new(),
        false => (0..1 + rng.below(4)).map(|at| tool_call(rng, first + at)).collect(),
    };
    let empty = !world.is_calm() && rng.chance(30);
    let text = if empty || !tool_calls.is_empty() { "" } else { "done" };
    let finish_reason = match (tool_calls.is_empty(), rng.chance(15)) {
        (_, true) => FinishReason::Length,
        (true, _) => FinishReason::Stop,
        (false, _) => FinishReason::ToolCalls,
    };
    Ok(reply(
        Answer { text: text.to_owned(), tool_calls, reasoning: Vec::new() },
        finish_reason,
        took,
        input_tokens,
    ))
}

fn reply(
    answer: Answer,
    finish_reason: FinishReason,
    took: Duration,
    input_tokens: u64,
) -> ModelReply {
    ModelReply {
        answer,
        finish_reason,
        usage: Usage { input_tokens, output_tokens: 5, ..Usage::default() },
        timing: Timing {
            first_token_us: None,
            total_us: u64::try_from(took.as_micros()).unwrap_or(0),
        },
        notes: CallNotes::default(),
        problems: Vec::new(),
    }
}

/// A judge that accepts most answers, refuses some, and at times says nothing that can be read.
fn judged(rng: &mut Rng, took: Duration) -> ModelReply {
    let text = match rng.below(10) {
        0 => "well",
        1..4 => r#"{"reason":"it is wrong","right":false}"#,
        _ => r#"{"reason":"it is right","right":true}"#,
    };
    let answer = Answer { text: text.to_owned(), ..Answer::default() };
    reply(answer, FinishReason::Stop, took, 10)
}

fn tool_call(rng: &mut Rng, at: u64) -> ToolCall {
    let name = match rng.pick(&TOOLS) {
        Some(tool) if !rng.chance(30) => tool.name,
        _ => "nothing",
    };
    let arguments = match rng.below(40) {
        0 => r#"{"n":"many"}"#.to_owned(),
        1 => "{\"n\":".to_owned(),
        2 => String::new(),
        n => format!("{{\"n\":{n}}}"),
    };
    ToolCall { id: format!("c{at}"), name: name.to_owned(), arguments }
}

fn fail(rng: &mut Rng) -> HttpFailure {
    let (code, retry_after_ms) = match rng.below(6) {
        0 => (ErrorCode::MODEL_RATE_LIMITED, Some(rng.below(5_000))),
        1 => (ErrorCode::MODEL_RATE_LIMITED, None),
        2 => (ErrorCode::MODEL_AUTH, None),
        3 => (ErrorCode::MODEL_TIMEOUT, None),
        _ => (ErrorCode::MODEL_SERVER_ERROR, None),
    };
    HttpFailure { failure: Failure::new(code, "the simulated model fails"), retry_after_ms }
}
