//! Answers of Chat Completions, whole and in chunks, read into borrowed structs.
//!
//! A stream counts as complete once it has said `[DONE]` or a finish reason.

use std::collections::BTreeMap;

use mainspring_session::{Failure, Reasoning, ReasoningKind, ToolCall, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::answer::{
    Draft, bad_response, finish_reason, not_understood, snippet, told_error, too_many_calls,
};
use crate::codec::Shared;
use crate::stream::{Core, Delta};
use crate::value::{Count, Text, text_or_json};

/// A chat completion, or one chunk of it.
#[derive(Debug, Deserialize)]
struct Completion<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<UsageJson>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// One of the answers; only the first counts.
#[derive(Debug, Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: Count,
    #[serde(borrow, default)]
    message: Option<Said<'a>>,
    #[serde(borrow, default)]
    delta: Option<Said<'a>>,
    #[serde(borrow, default)]
    finish_reason: Text<'a>,
    #[serde(borrow, default)]
    logprobs: Option<&'a RawValue>,
}

/// A message or a piece of one.
#[derive(Debug, Deserialize)]
struct Said<'a> {
    #[serde(borrow, default)]
    content: Text<'a>,
    #[serde(borrow, default)]
    refusal: Text<'a>,
    #[serde(borrow, default)]
    reasoning_content: Text<'a>,
    #[serde(borrow, default)]
    reasoning: Text<'a>,
    #[serde(borrow, default)]
    reasoning_details: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<CallJson<'a>>>,
}

/// A tool call or a piece of one.
#[derive(Debug, Deserialize)]
struct CallJson<'a> {
    #[serde(default)]
    index: Option<Count>,
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    function: Option<FunctionJson<'a>>,
}

/// Name and arguments of a tool call.
#[derive(Debug, Default, Deserialize)]
struct FunctionJson<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct LogprobsJson<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

/// The provider's count of tokens.
#[derive(Debug, Clone, Copy, Deserialize)]
struct UsageJson {
    #[serde(default)]
    prompt_tokens: Count,
    #[serde(default)]
    completion_tokens: Count,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Count,
    #[serde(default)]
    cache_write_tokens: Count,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct CompletionDetails {
    #[serde(default)]
    reasoning_tokens: Count,
}

impl From<UsageJson> for Usage {
    fn from(json: UsageJson) -> Self {
        let read = json.prompt_tokens_details;
        let written = json.completion_tokens_details;
        Usage {
            input_tokens: json.prompt_tokens.0,
            output_tokens: json.completion_tokens.0,
            cached_tokens: read.map_or(0, |details| details.cached_tokens.0),
            cache_write_tokens: read.map_or(0, |details| details.cache_write_tokens.0),
            reasoning_tokens: written.map_or(0, |details| details.reasoning_tokens.0),
        }
    }
}

/// Reads the body of a whole answer.
pub(crate) fn decode(shared: &Shared, body: &[u8]) -> Result<Draft, Failure> {
    let completion: Completion<'_> =
        serde_json::from_slice(body).map_err(|error| not_understood(shared, &error, body))?;
    if completion.error.is_some() {
        told_error(shared, body)?;
    }
    let mut draft =
        Draft { usage: completion.usage.map(Usage::from).unwrap_or_default(), ..Draft::default() };
    let choice = completion.choices.into_iter().flatten().next();
    let Some(Choice { message: Some(said), finish_reason: reason, logprobs, .. }) = choice else {
        return Err(bad_response(shared, format!("has no choices[0].message: {}", snippet(body))));
    };
    if !reason.is_empty() {
        draft.finish = Some(finish_reason(&reason.0));
    }
    read_logprobs(shared, &mut draft, logprobs);
    let mut thoughts = Thoughts::default();
    thoughts.add(&said);
    draft.reasoning = thoughts.finish(shared);
    let calls = said.tool_calls.unwrap_or_default();
    if calls.len() > shared.limits.tool_calls_max {
        return Err(too_many_calls(shared));
    }
    let made = calls.into_iter().map(|call| {
        let function = call.function.unwrap_or_default();
        let arguments = text_or_json(function.arguments).into_owned();
        ToolCall { id: call.id.0.into_owned(), name: function.name.0.into_owned(), arguments }
    });
    draft.calls = made.collect();
    draft.text = said.content.0.into_owned();
    draft.refusal = said.refusal.0.into_owned();
    Ok(draft)
}

fn read_logprobs(shared: &Shared, draft: &mut Draft, logprobs: Option<&RawValue>) {
    if let Some(raw) = logprobs.filter(|_| shared.logprobs)
        && let Ok(LogprobsJson { content: Some(content) }) = serde_json::from_str(raw.get())
    {
        draft.tokens.read(content);
    }
}

/// Reasoning in the three fields in which servers give it, some of them in several at once.
#[derive(Debug, Default)]
struct Thoughts {
    content: String,
    plain: String,
    details: Vec<Map<String, Value>>,
}

impl Thoughts {
    fn add(&mut self, said: &Said<'_>) {
        self.content.push_str(&said.reasoning_content.0);
        self.plain.push_str(&said.reasoning.0);
        let elements: Option<Vec<Map<String, Value>>> =
            said.reasoning_details.and_then(|raw| serde_json::from_str(raw.get()).ok());
        for element in elements.into_iter().flatten() {
            self.add_detail(element);
        }
    }

    /// Pieces of one element come one after the other and have its type and index.
    fn add_detail(&mut self, element: Map<String, Value>) {
        let same = |known: &&mut Map<String, Value>| {
            ["type", "index"].iter().all(|key| known.get(*key) == element.get(*key))
                && known.get("index").is_some_and(Value::is_number)
        };
        let Some(known) = self.details.last_mut().filter(same) else {
            self.details.push(element);
            return;
        };
        for (key, value) in element {
            match (known.get_mut(&key), value) {
                (_, Value::Null) => {}
                (Some(Value::String(text)), Value::String(more))
                    if matches!(&*key, "text" | "summary" | "data") =>
                {
                    text.push_str(&more);
                }
                (_, value) => {
                    known.insert(key, value);
                }
            }
        }
    }

    fn finish(self, shared: &Shared) -> Vec<Reasoning> {
        let piece = |kind, text, data| Reasoning {
            kind,
            origin: shared.origin.clone(),
            after: 0,
            text,
            signature: String::new(),
            data,
            id: String::new(),
        };
        if !self.details.is_empty() {
            let details = self.details.into_iter().map(|element| {
                let said = ["text", "summary"].iter().find_map(|key| element.get(*key)?.as_str());
                let text = said.unwrap_or("").to_owned();
                piece(ReasoningKind::Detail, text, Value::Object(element).to_string())
            });
            return details.collect();
        }
        let (kind, text) = match self.content.is_empty() {
            false => (ReasoningKind::Content, self.content),
            true => (ReasoningKind::Plain, self.plain),
        };
        if text.is_empty() { Vec::new() } else { vec![piece(kind, text, String::new())] }
    }
}

/// What a streamed answer needs beyond its draft.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The newest call under each of the provider's indices.
    indices: BTreeMap<u64, usize>,
    thoughts: Thoughts,
}

impl Stream {
    /// Takes the data of one event.
    pub(crate) fn event(
        &mut self,
        core: &mut Core,
        data: &[u8],
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        if data == b"[DONE]" {
            core.done = true;
            return Ok(());
        }
        let chunk: Completion<'_> = serde_json::from_slice(data)
            .map_err(|error| not_understood(&core.shared, &error, data))?;
        if chunk.error.is_some() {
            told_error(&core.shared, data)?;
        }
        if let Some(usage) = chunk.usage {
            core.draft.usage = Usage::from(usage);
        }
        for choice in chunk.choices.into_iter().flatten() {
            if choice.index.0 != 0 {
                continue;
            }
            core.begun = true;
            if let Some(raw) = choice.logprobs.filter(|_| core.shared.logprobs) {
                core.count(raw.get().len())?;
                read_logprobs(&core.shared, &mut core.draft, Some(raw));
            }
            if let Some(said) = choice.delta.or(choice.message) {
                self.said(core, said, on_delta)?;
            }
            if !choice.finish_reason.is_empty() {
                core.draft.finish = Some(finish_reason(&choice.finish_reason.0));
            }
        }
        Ok(())
    }

    /// Whether the answer is complete where the stream ends.
    pub(crate) fn is_complete(core: &Core) -> bool {
        core.begun && (core.done || core.draft.finish.is_some())
    }

    /// Hands over what was gathered.
    pub(crate) fn finish(self, core: &mut Core) {
        core.draft.reasoning = self.thoughts.finish(&core.shared);
    }

    fn said(
        &mut self,
        core: &mut Core,
        said: Said<'_>,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        core.text(&said.content.0, on_delta)?;
        core.refusal(&said.refusal.0, on_delta)?;
        let thought = match said.reasoning_content.is_empty() {
            false => &*said.reasoning_content.0,
            true => &*said.reasoning.0,
        };
        if !thought.is_empty() || said.reasoning_details.is_some() {
            let details = said.reasoning_details.map_or(0, |raw| raw.get().len());
            core.thought(thought, details, on_delta)?;
            self.thoughts.add(&said);
        }
        for call in said.tool_calls.into_iter().flatten() {
            self.call(core, call, on_delta)?;
        }
        Ok(())
    }

    fn call(
        &mut self,
        core: &mut Core,
        call: CallJson<'_>,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        let function = call.function.unwrap_or_default();
        let (id, name) = (&*call.id.0, &*function.name.0);
        let index = call.index.map(|index| index.0);
        let at = match self.slot(core, index, id, name) {
            Some(at) => at,
            None => {
                let at = core.begin_call()?;
                self.indices.insert(index.unwrap_or(at as u64), at);
                at
            }
        };
        core.call_piece(at, id, name, &text_or_json(function.arguments), on_delta)
    }

    /// The call that a piece belongs to; none if it begins a new one.
    ///
    /// A piece with a new id and a name begins a call even under an index that is taken or absent:
    /// some servers number every parallel call 0, or none of them.
    fn slot(&self, core: &Core, index: Option<u64>, id: &str, name: &str) -> Option<usize> {
        let at = match index {
            Some(index) => *self.indices.get(&index)?,
            None => core.draft.calls.len().checked_sub(1)?,
        };
        let known = &core.draft.calls[at];
        let begins = !id.is_empty() && !name.is_empty() && !known.id.is_empty() && known.id != id;
        if begins { None } else { Some(at) }
    }
}
