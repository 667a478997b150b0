//! Answers of Responses, read whole: output items, status and usage.

use mainspring_session::{
    ErrorCode, Failure, FinishReason, Reasoning, ReasoningKind, ToolCall, Usage,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::answer::{
    Draft, bad_response, finish_reason, not_understood, snippet, told_error, too_many_calls,
};
use crate::codec::Shared;
use crate::value::{Count, Text, text_or_json};

/// A response; its items are read one by one, where they are needed.
#[derive(Debug, Deserialize)]
pub(super) struct Response<'a> {
    #[serde(borrow, default)]
    pub(super) status: Text<'a>,
    #[serde(borrow, default)]
    pub(super) output: Option<&'a RawValue>,
    #[serde(default)]
    usage: Option<UsageJson>,
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    incomplete_details: Option<Incomplete<'a>>,
}

#[derive(Debug, Deserialize)]
struct Incomplete<'a> {
    #[serde(borrow, default)]
    reason: Text<'a>,
}

/// An output item of any type.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Item<'a> {
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Text<'a>,
    #[serde(borrow, default)]
    pub(super) id: Text<'a>,
    #[serde(borrow, default)]
    pub(super) call_id: Text<'a>,
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Option<Vec<Content<'a>>>,
    #[serde(borrow, default)]
    summary: Option<Vec<Content<'a>>>,
    #[serde(borrow, default)]
    encrypted_content: Text<'a>,
}

/// A piece of an item's content.
#[derive(Debug, Default, Deserialize)]
struct Content<'a> {
    #[serde(borrow, default)]
    text: Text<'a>,
    #[serde(borrow, default)]
    refusal: Text<'a>,
    #[serde(borrow, default)]
    logprobs: Option<&'a RawValue>,
}

/// The provider's count of tokens.
#[derive(Debug, Clone, Copy, Deserialize)]
struct UsageJson {
    #[serde(default)]
    input_tokens: Count,
    #[serde(default)]
    output_tokens: Count,
    #[serde(default)]
    input_tokens_details: Option<InputDetails>,
    #[serde(default)]
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct InputDetails {
    #[serde(default)]
    cached_tokens: Count,
    #[serde(default)]
    cache_write_tokens: Count,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct OutputDetails {
    #[serde(default)]
    reasoning_tokens: Count,
}

impl From<UsageJson> for Usage {
    fn from(json: UsageJson) -> Self {
        let read = json.input_tokens_details;
        Usage {
            input_tokens: json.input_tokens.0,
            output_tokens: json.output_tokens.0,
            cached_tokens: read.map_or(0, |details| details.cached_tokens.0),
            cache_write_tokens: read.map_or(0, |details| details.cache_write_tokens.0),
            reasoning_tokens: json
                .output_tokens_details
                .map_or(0, |details| details.reasoning_tokens.0),
        }
    }
}

impl Item<'_> {
    /// The arguments of a call.
    pub(super) fn arguments(&self) -> std::borrow::Cow<'_, str> {
        text_or_json(self.arguments)
    }

    /// What a message says, and what it says in place of an answer.
    pub(super) fn said(&self) -> impl Iterator<Item = (&str, &str)> {
        let content = self.content.iter().flatten();
        content.map(|piece| (&*piece.text.0, &*piece.refusal.0))
    }

    /// Reads the log-probabilities of a message.
    pub(super) fn read_logprobs(&self, shared: &Shared, draft: &mut Draft) {
        let pieces = self.content.iter().flatten().filter(|_| shared.logprobs);
        for logprobs in pieces.filter_map(|piece| piece.logprobs) {
            draft.tokens.read(logprobs);
        }
    }

    /// A reasoning item as it is kept; `after` parts of the answer.
    pub(super) fn reasoning(&self, shared: &Shared, after: u32) -> Reasoning {
        let joined = |pieces: &Option<Vec<Content<'_>>>| {
            let texts: Vec<&str> = pieces.iter().flatten().map(|piece| &*piece.text.0).collect();
            texts.join("\n\n")
        };
        let content = joined(&self.content);
        let (kind, text) = match content.is_empty() {
            true => (ReasoningKind::Summary, joined(&self.summary)),
            false => (ReasoningKind::Item, content),
        };
        Reasoning {
            kind,
            origin: shared.origin.clone(),
            after,
            text,
            signature: String::new(),
            data: self.encrypted_content.0.clone().into_owned(),
            id: self.id.0.clone().into_owned(),
        }
    }
}

/// Reads the body of a whole answer.
pub(crate) fn decode(shared: &Shared, body: &[u8]) -> Result<Draft, Failure> {
    let response: Response<'_> =
        serde_json::from_slice(body).map_err(|error| not_understood(shared, &error, body))?;
    if response.output.is_none() && response.error.is_none() {
        return Err(bad_response(shared, format!("has no output: {}", snippet(body))));
    }
    let mut draft = Draft::default();
    end(shared, &mut draft, &response, body)?;
    items(shared, &mut draft, response.output)?;
    Ok(draft)
}

/// Reads status, error and usage.
pub(super) fn end(
    shared: &Shared,
    draft: &mut Draft,
    response: &Response<'_>,
    body: &[u8],
) -> Result<(), Failure> {
    if response.error.is_some() {
        told_error(shared, body)?;
    }
    draft.usage = response.usage.map(Usage::from).unwrap_or_default();
    let reason = response.incomplete_details.as_ref().map_or("", |details| &*details.reason.0);
    draft.finish = Some(match &*response.status.0 {
        "incomplete" => finish_reason(reason),
        "failed" | "cancelled" => {
            let status = &response.status.0;
            let message = format!("model \"{}\" ended with the status {status}", shared.model);
            return Err(Failure::new(ErrorCode::MODEL_SERVER_ERROR, message));
        }
        "queued" | "in_progress" => {
            let status = &response.status.0;
            return Err(bad_response(shared, format!("is not finished, its status is {status}")));
        }
        _ => FinishReason::Stop,
    });
    Ok(())
}

/// Reads all output items.
pub(super) fn items(
    shared: &Shared,
    draft: &mut Draft,
    output: Option<&RawValue>,
) -> Result<(), Failure> {
    let Some(raw) = output else { return Ok(()) };
    let items: Option<Vec<Item<'_>>> = serde_json::from_str(raw.get())
        .map_err(|error| not_understood(shared, &error, raw.get().as_bytes()))?;
    for item in items.into_iter().flatten() {
        match &*item.kind.0 {
            "message" => {
                for (text, refusal) in item.said() {
                    draft.text.push_str(text);
                    draft.refusal.push_str(refusal);
                }
                item.read_logprobs(shared, draft);
            }
            "function_call" => {
                if draft.calls.len() >= shared.limits.tool_calls_max {
                    return Err(too_many_calls(shared));
                }
                let arguments = item.arguments().into_owned();
                let (id, name) = (item.call_id.0.into_owned(), item.name.0.into_owned());
                draft.calls.push(ToolCall { id, name, arguments });
            }
            "reasoning" => {
                let piece = item.reasoning(shared, draft.part_count());
                draft.reasoning.push(piece);
            }
            _ => {}
        }
    }
    Ok(())
}
