//! Carries out what the context of a model call needs: summaries of the oldest part of a conversation,
//! searches for deferred tools, and the watch over prompt caches.

use std::sync::Arc;

use futures_util::FutureExt;
use mainspring_models::{ModelReply, ModelRequest};
use mainspring_session::{
    ActiveModelCall, ActiveSummary, AgentSpec, CallIndex, ErrorCode, Fact, Failure, Message,
    SUMMARY_INSTRUCTIONS, Summary,
};
use mainspring_wire::{CallIds, Codec, HttpFailure};
use tokio::time::Instant;

use crate::budgets::{Paid, within};
use crate::cache::Beginning;
use crate::live::{Key, Live};
use crate::mail::Mail;
use crate::shard::Shard;

impl Shard {
    /// Has a model make a summary: a call of its own, without tools and without the conversation.
    pub(crate) fn summarise(&mut self, key: Key, summary: ActiveSummary) {
        let paid = self.paid_summary(key, &summary);
        let Some(live) = self.lives.get_mut(&key) else { return };
        let step = summary.step;
        let request = match summary_request(live, &summary, paid.as_ref()) {
            Ok(request) => request,
            Err(error) => {
                let outcome = Err(error);
                return self.tell(key, Fact::SummaryEnded { step, outcome });
            }
        };
        let models = Arc::clone(&self.config.models);
        let post = self.config.post.clone();
        let task = tokio::task::spawn_local(async move {
            let mut on_delta = |_: mainspring_wire::Delta<'_>| {};
            let call =
                std::panic::AssertUnwindSafe(within(paid, models.call(request, &mut on_delta)));
            let result = call.catch_unwind().await.unwrap_or_else(|_| {
                let message = "the making of a summary stopped at a broken invariant";
                Err(Failure::new(ErrorCode::INTERNAL, message).into())
            });
            let _ = post.send(Mail::Summary { key, step, result });
        });
        live.model = Some(task.abort_handle());
    }

    pub(crate) fn summary_ended(
        &mut self,
        key: Key,
        step: u32,
        result: Result<ModelReply, HttpFailure>,
    ) {
        let Some(live) = self.lives.get_mut(&key) else { return };
        live.model = None;
        let outcome = match result {
            Ok(reply) => {
                Ok(Summary { text: reply.answer.text, usage: reply.usage, timing: reply.timing })
            }
            Err(error) => Err(error.failure),
        };
        self.tell(key, Fact::SummaryEnded { step, outcome });
    }

    /// Answers a call of `tool_search`.
    pub(crate) fn search_tools(&mut self, key: Key, call: CallIndex, attempt: u32) {
        let Some(live) = self.lives.get(&key) else { return };
        let Some(current) = live.state.call(call) else { return };
        let began = Instant::now();
        let text = live.agent.find_tools(&current.call.arguments);
        let duration_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(0);
        self.tell(key, Fact::ToolReturned { call, attempt, text, duration_us });
    }
}

impl Shard {
    /// Fails a call of `tool_call` that stands for nothing; its check has said so before.
    pub(crate) fn refuse_stand_in(&mut self, key: Key, call: CallIndex, attempt: u32) {
        let error = Failure::new(ErrorCode::TOOL_UNKNOWN, "the call names no tool");
        self.tell(key, Fact::ToolFailed { call, attempt, error });
    }
}

impl Live {
    /// Notes what a call begins with.
    pub(crate) fn watch_cache(&mut self, call: ActiveModelCall) {
        let Some(tier) = self.agent.tiers.get(call.tier as usize) else { return };
        let beginning = Beginning {
            agent: &self.agent.fingerprint,
            generation: self.state.context.view.generation,
            head: tier.head,
            history: &self.history,
        };
        self.cache.sent(call, &beginning, Instant::now());
    }
}

fn summary_request(
    live: &Live,
    summary: &ActiveSummary,
    paid: Option<&Paid>,
) -> Result<ModelRequest, Failure> {
    let at = summary.tier as usize;
    let (Some(model), Some(tier)) = (live.agent.spec.models.get(at), live.agent.tiers.get(at))
    else {
        let message = format!("the agent has no model at position {at}");
        return Err(Failure::new(ErrorCode::MODEL_NOT_FOUND, message));
    };
    let bare = AgentSpec {
        name: live.agent.spec.name.clone(),
        instructions: SUMMARY_INSTRUCTIONS.to_owned(),
        models: vec![model.clone()],
        ..AgentSpec::default()
    };
    let codec = Codec::new(&bare, model, false)?;
    let mut history = Vec::new();
    let text = live.state.to_summarise(summary);
    codec.encode_message(&Message::user(text), &mut history);
    let (endpoints, body) = (Arc::clone(&tier.endpoints), codec.body(&history).into());
    let ids = CallIds { first: CallIndex(live.state.tool_call_count) };
    Ok(ModelRequest {
        tenant: Arc::from(live.state.spending.funding.tenant.as_str()),
        deadline: live.turn_ends,
        second: paid.map(Paid::second),
        ..ModelRequest::new(model, endpoints, Arc::new(codec), body, ids)
    })
}
