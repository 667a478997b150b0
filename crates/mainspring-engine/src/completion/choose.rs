//! Which model of a route a request begins with, and what its answer is worth by cheap signs.
//!
//! A conversation that comes back, as every chat does, is known by how it began: the model that
//! has it in its prompt cache is the one to stay with. What is remembered of conversations is
//! bounded, and only an estimate: forgetting costs a prompt cache, never an answer.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mainspring_route::{
    Candidate, Decision, Evidence, Prices, Step, StepClass, Verdict, choose, score, signals,
};
use mainspring_session::{Ability, Answer, FinishReason, Message, ModelSpec, Part};
use tokio::time::Instant;

use super::request::CompletionRequest;
use super::route::ModelRoute;

/// Conversations that a route remembers the model of.
const CONVERSATIONS_MAX: usize = 10_000;
/// How long a provider keeps a prompt in its cache, by the shortest that is usual.
const CACHE_KEPT: Duration = Duration::from_secs(300);
/// Bytes of the last message that a decision looks at.
const TEXT_BYTES_MAX: usize = 4_096;
/// Bytes of a token, for estimates.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens of an answer, for estimates, where the request does not bound them lower.
const OUTPUT_TOKENS: u64 = 300;

/// The models that conversations were last answered by.
pub(crate) struct Conversations {
    state: RandomState,
    known: Mutex<HashMap<u64, Seen>>,
}

#[derive(Clone, Copy)]
struct Seen {
    tier: usize,
    input_tokens: u64,
    at: Instant,
}

impl Default for Conversations {
    fn default() -> Self {
        Self { state: RandomState::new(), known: Mutex::default() }
    }
}

impl Conversations {
    fn key(&self, request: &CompletionRequest) -> u64 {
        let first = request.messages.first().map(|message| text_of(message).0);
        self.state.hash_one((&request.tenant, &request.instructions, first))
    }

    /// A number for the conversation that a request goes on with.
    pub(crate) fn affinity(&self, request: &CompletionRequest) -> u64 {
        self.key(request).max(1)
    }

    fn get(&self, key: u64) -> Option<Seen> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key).copied().filter(|seen| seen.at.elapsed() < CACHE_KEPT)
    }

    /// Remembers who answered.
    pub(crate) fn answered(&self, request: &CompletionRequest, tier: usize, input_tokens: u64) {
        let key = self.key(request);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CONVERSATIONS_MAX && !known.contains_key(&key) {
            known.retain(|_, seen| seen.at.elapsed() < CACHE_KEPT);
            if known.len() >= CONVERSATIONS_MAX {
                known.clear();
            }
        }
        known.insert(key, Seen { tier, input_tokens, at: Instant::now() });
    }
}

/// What kind of step a request is, as far as it can be seen from outside.
pub(crate) fn class_of(request: &CompletionRequest) -> StepClass {
    if request.tool_choice.is_forced() {
        StepClass::ToolArgs
    } else if !request.tools.is_empty() {
        StepClass::Plan
    } else if request.output_schema.is_some() {
        StepClass::Extract
    } else {
        StepClass::Chat
    }
}

/// What else a decision hangs on.
pub(crate) struct Chances {
    /// US dollars that are left to spend; none where nothing bounds them.
    pub(crate) budget_usd: Option<f64>,
    /// Which models could be called now.
    pub(crate) ready: Vec<bool>,
    /// Decides whether another model than the best is tried.
    pub(crate) seed: u64,
}

/// Decides which model is asked first.
pub(crate) fn begin(
    route: &ModelRoute,
    request: &CompletionRequest,
    chances: &Chances,
) -> Decision {
    let models = route.models();
    if models.len() == 1 {
        let reason = "the only model".to_owned();
        return Decision { propensity: 1.0, reason, ..Decision::default() };
    }
    let seen = route.conversations.get(route.conversations.key(request));
    let seen = seen.filter(|seen| request.messages.len() > 1 && seen.tier < models.len());
    let candidates: Vec<_> = models
        .iter()
        .enumerate()
        .map(|(tier, model)| Candidate {
            name: &model.name,
            price: model.price.map(|price| Prices {
                input_usd: price.input_usd,
                output_usd: price.output_usd,
                cached_usd: price.cached_usd,
            }),
            context_tokens: model.context_tokens,
            capable: is_capable(model, request),
            ready: chances.ready.get(tier).copied().unwrap_or(true),
            cached_tokens: seen
                .filter(|seen| seen.tier == tier)
                .map_or(0, |seen| seen.input_tokens),
        })
        .collect();
    let step = Step {
        class: class_of(request),
        label: route.name(),
        text: question(request),
        input_tokens: input_tokens(request),
        output_tokens: request.output_tokens_max.unwrap_or(OUTPUT_TOKENS).min(OUTPUT_TOKENS),
        current: seen.map(|seen| seen.tier),
        in_tools: matches!(request.messages.last(), Some(Message::Tool { .. })),
        boundary: false,
        budget_usd: chances.budget_usd,
        seed: chances.seed,
    };
    choose(&route.policy, route.weights.as_deref(), &candidates, &step)
}

/// What an answer is worth, by signs that cost no call.
pub(crate) fn worth(
    route: &ModelRoute,
    request: &CompletionRequest,
    decision: &Decision,
    said: &Said<'_>,
) -> Verdict {
    let class = class_of(request);
    let context: Vec<&str> = request
        .messages
        .iter()
        .map(|message| text_of(message).0)
        .chain([request.instructions.as_str()])
        .collect();
    let arguments: Vec<&str> =
        said.answer.tool_calls.iter().map(|call| call.arguments.as_str()).collect();
    let evidence = Evidence {
        class,
        question: question(request),
        context: &context,
        answer: &said.answer.text,
        arguments: &arguments,
        cut_off: said.finish_reason == FinishReason::Length && request.output_tokens_max.is_none(),
        refused: said.finish_reason == FinishReason::ContentFilter,
        logprob_mean: said.logprob_mean,
        p_before: decision.candidates.get(said.tier).and_then(|model| model.p_ok),
        ..Evidence::default()
    };
    score(&route.policy, route.weights.as_deref(), class, &signals(&evidence))
}

/// An answer as it is weighed.
pub(crate) struct Said<'a> {
    pub(crate) tier: usize,
    pub(crate) answer: &'a Answer,
    pub(crate) finish_reason: FinishReason,
    pub(crate) logprob_mean: Option<f64>,
}

/// Whether nothing is known that the model lacks; one whose abilities are not listed may do all.
fn is_capable(model: &ModelSpec, request: &CompletionRequest) -> bool {
    let lacks = |ability| model.can(ability) == Some(false);
    let shows = |message: &Message| {
        let Message::User { content } = message else { return false };
        content.iter().any(|part| matches!(part, Part::Image { .. }))
    };
    let needs_tools = !request.tools.is_empty();
    !(needs_tools && lacks(Ability::Tools)
        || lacks(Ability::Images) && request.messages.iter().any(shows))
}

/// What is asked: the end of the last thing the user said.
fn question(request: &CompletionRequest) -> &str {
    let mut users = request.messages.iter().rev();
    let last = users.find(|message| matches!(message, Message::User { .. }));
    let (text, _) = last.map_or(("", 0), text_of);
    let mut start = text.len().saturating_sub(TEXT_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn input_tokens(request: &CompletionRequest) -> u64 {
    let messages: usize = request.messages.iter().map(|message| text_of(message).1).sum();
    let tools: usize = request
        .tools
        .iter()
        .map(|tool| tool.name.len() + tool.description.len() + tool.parameters.get().len())
        .sum();
    (request.instructions.len() + messages + tools) as u64 / BYTES_PER_TOKEN
}

/// A message's last text, and the bytes of all it says.
fn text_of(message: &Message) -> (&str, usize) {
    match message {
        Message::User { content } => {
            content.iter().fold(("", 0), |(last, bytes), part| match part {
                Part::Text { text } => (text.as_str(), bytes + text.len()),
                // About what a picture of usual size counts.
                Part::Image { .. } => (last, bytes + 4_000),
            })
        }
        Message::Assistant { text, tool_calls, .. } => {
            let arguments: usize = tool_calls.iter().map(|call| call.arguments.len()).sum();
            (text, text.len() + arguments)
        }
        Message::Tool { text, .. } => (text, text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> CompletionRequest {
        CompletionRequest { messages: vec![Message::user(text)], ..CompletionRequest::default() }
    }

    #[test]
    fn a_conversation_is_known_by_how_it_began() {
        let known = Conversations::default();
        known.answered(&asked("first"), 1, 500);
        let mut goes_on = asked("first");
        goes_on.messages.push(Message::user("second"));
        let seen = known.get(known.key(&goes_on)).map(|seen| (seen.tier, seen.input_tokens));
        assert_eq!(seen, Some((1, 500)));
        let other_tenant = CompletionRequest { tenant: "other".into(), ..asked("first") };
        assert!(known.get(known.key(&other_tenant)).is_none());
        assert!(known.get(known.key(&asked("other"))).is_none());
    }

    #[test]
    fn no_more_conversations_are_kept_than_the_limit_allows() {
        let known = Conversations::default();
        for idx in 0..=CONVERSATIONS_MAX {
            known.answered(&asked(&idx.to_string()), 0, 1);
        }
        assert!(known.known.lock().unwrap().len() <= CONVERSATIONS_MAX);
        assert!(known.get(known.key(&asked(&CONVERSATIONS_MAX.to_string()))).is_some());
    }

    #[test]
    fn the_question_is_the_end_of_the_last_thing_the_user_said() {
        let mut request = asked(&format!("{}end", "\u{e9}".repeat(TEXT_BYTES_MAX)));
        assert!(question(&request).ends_with("end") && question(&request).len() <= TEXT_BYTES_MAX);
        let call_id = "c".to_owned();
        let name = "f".to_owned();
        let text = "a result".to_owned();
        request.messages.push(Message::Tool { call_id, name, text, is_error: false });
        assert!(question(&request).ends_with("end"));
        assert_eq!(question(&CompletionRequest::default()), "");
    }
}
