//! Answers of Messages, read whole: content blocks, stop reason and usage.

use mainspring_session::{Failure, Reasoning, ReasoningKind, ToolCall, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::answer::{
    Draft, bad_response, finish_reason, not_understood, snippet, told_error, too_many_calls,
};
use crate::codec::Shared;
use crate::value::{Count, Text, text_or_json};

/// A message.
#[derive(Debug, Deserialize)]
pub(super) struct MessageJson<'a> {
    #[serde(borrow, default)]
    content: Option<Vec<Block<'a>>>,
    #[serde(borrow, default)]
    pub(super) stop_reason: Text<'a>,
    #[serde(borrow, default)]
    pub(super) stop_details: Option<StopDetails<'a>>,
    #[serde(default)]
    pub(super) usage: Option<UsageJson>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// Why a model refused.
#[derive(Debug, Deserialize)]
pub(super) struct StopDetails<'a> {
    #[serde(borrow, default)]
    pub(super) explanation: Text<'a>,
}

/// A content block of any type.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Block<'a> {
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Text<'a>,
    #[serde(borrow, default)]
    pub(super) text: Text<'a>,
    #[serde(borrow, default)]
    pub(super) thinking: Text<'a>,
    #[serde(borrow, default)]
    pub(super) signature: Text<'a>,
    #[serde(borrow, default)]
    pub(super) data: Text<'a>,
    #[serde(borrow, default)]
    pub(super) id: Text<'a>,
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
}

/// The provider's count of tokens; in a stream, what has changed.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct UsageJson {
    #[serde(default)]
    input_tokens: Option<Count>,
    #[serde(default)]
    cache_creation_input_tokens: Option<Count>,
    #[serde(default)]
    cache_read_input_tokens: Option<Count>,
    #[serde(default)]
    output_tokens: Option<Count>,
    #[serde(default)]
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct OutputDetails {
    #[serde(default)]
    thinking_tokens: Count,
}

impl UsageJson {
    /// Takes what a later count says.
    pub(super) fn update(&mut self, later: UsageJson) {
        self.input_tokens = later.input_tokens.or(self.input_tokens);
        self.cache_creation_input_tokens =
            later.cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.cache_read_input_tokens =
            later.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.output_tokens = later.output_tokens.or(self.output_tokens);
        self.output_tokens_details = later.output_tokens_details.or(self.output_tokens_details);
    }

    /// The neutral count: tokens read include those of the cache.
    pub(super) fn usage(self) -> Usage {
        let count = |count: Option<Count>| count.unwrap_or_default().0;
        let cached = count(self.cache_read_input_tokens);
        let stored = count(self.cache_creation_input_tokens);
        let fresh = count(self.input_tokens);
        Usage {
            input_tokens: fresh.saturating_add(cached).saturating_add(stored),
            output_tokens: count(self.output_tokens),
            cached_tokens: cached,
            cache_write_tokens: stored,
            reasoning_tokens: self
                .output_tokens_details
                .map_or(0, |details| details.thinking_tokens.0),
        }
    }
}

impl Block<'_> {
    /// The arguments of a call that came whole; empty where there are none yet.
    pub(super) fn input(&self) -> std::borrow::Cow<'_, str> {
        let is_empty = |text: &str| text.trim_matches(['{', '}', ' ', '\t', '\r', '\n']).is_empty();
        text_or_json(self.input.filter(|raw| !is_empty(raw.get())))
    }

    /// A block of thinking as it is kept, `after` parts of the answer; none for other blocks.
    pub(super) fn reasoning(&self, shared: &Shared, after: u32) -> Option<Reasoning> {
        let kind = match &*self.kind.0 {
            "thinking" => ReasoningKind::Thinking,
            "redacted_thinking" => ReasoningKind::Redacted,
            _ => return None,
        };
        Some(Reasoning {
            kind,
            origin: shared.origin.clone(),
            after,
            text: self.thinking.0.clone().into_owned(),
            signature: self.signature.0.clone().into_owned(),
            data: self.data.0.clone().into_owned(),
            id: String::new(),
        })
    }
}

/// Reads the body of a whole answer.
pub(crate) fn decode(shared: &Shared, body: &[u8]) -> Result<Draft, Failure> {
    let message: MessageJson<'_> =
        serde_json::from_slice(body).map_err(|error| not_understood(shared, &error, body))?;
    if message.error.is_some() {
        told_error(shared, body)?;
    }
    let Some(blocks) = message.content else {
        return Err(bad_response(shared, format!("has no content: {}", snippet(body))));
    };
    let usage = message.usage.unwrap_or_default().usage();
    let mut draft = Draft { usage, ..Draft::default() };
    for block in blocks {
        match &*block.kind.0 {
            "text" => draft.text.push_str(&block.text.0),
            "tool_use" => {
                if draft.calls.len() >= shared.limits.tool_calls_max {
                    return Err(too_many_calls(shared));
                }
                let arguments = block.input().into_owned();
                let (id, name) = (block.id.0.into_owned(), block.name.0.into_owned());
                draft.calls.push(ToolCall { id, name, arguments });
            }
            _ => {
                let piece = block.reasoning(shared, draft.part_count());
                draft.reasoning.extend(piece);
            }
        }
    }
    end(&mut draft, &message.stop_reason.0, message.stop_details.as_ref());
    Ok(draft)
}

/// Reads why the model stopped.
pub(super) fn end(draft: &mut Draft, reason: &str, details: Option<&StopDetails<'_>>) {
    if reason.is_empty() {
        return;
    }
    draft.finish = Some(finish_reason(reason));
    if reason == "refusal" && draft.refusal.is_empty() {
        let told = details.map_or("", |details| &*details.explanation.0);
        let told = if told.is_empty() { "the model refused to answer" } else { told };
        draft.refusal.push_str(told);
    }
}
