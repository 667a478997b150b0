//! The JSON of answers, whole and in chunks, read into borrowed structs.
//!
//! Unknown fields are skipped, and known ones take what servers really send: null for absent,
//! numbers as floats, content as text or as parts, arguments as text or as an object.

use std::borrow::Cow;
use std::fmt;

use mainspring_session::{ErrorCode, Failure, ToolCall, Usage};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::answer::{CallIds, Decoded, Draft, finish, finish_reason};
use crate::codec::Shared;
use crate::failure::error_of_body;

/// A chat completion, or one chunk of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Completion<'a> {
    #[serde(borrow, default)]
    pub(crate) choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    pub(crate) usage: Option<UsageJson>,
    #[serde(borrow, default)]
    pub(crate) error: Option<&'a RawValue>,
}

/// One of the answers; only the first counts.
#[derive(Debug, Deserialize)]
pub(crate) struct Choice<'a> {
    #[serde(default)]
    pub(crate) index: Count,
    #[serde(borrow, default)]
    pub(crate) message: Option<Said<'a>>,
    #[serde(borrow, default)]
    pub(crate) delta: Option<Said<'a>>,
    #[serde(borrow, default)]
    pub(crate) finish_reason: Text<'a>,
}

/// A message or a piece of one.
#[derive(Debug, Deserialize)]
pub(crate) struct Said<'a> {
    #[serde(borrow, default)]
    pub(crate) content: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) refusal: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) reasoning_content: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) reasoning: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) tool_calls: Option<Vec<CallJson<'a>>>,
}

/// A tool call or a piece of one.
#[derive(Debug, Deserialize)]
pub(crate) struct CallJson<'a> {
    #[serde(default)]
    pub(crate) index: Option<Count>,
    #[serde(borrow, default)]
    pub(crate) id: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) function: Option<FunctionJson<'a>>,
}

/// Name and arguments of a tool call.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct FunctionJson<'a> {
    #[serde(borrow, default)]
    pub(crate) name: Text<'a>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

impl<'a> FunctionJson<'a> {
    /// The arguments as text: what a string says, or the JSON of anything else.
    pub(crate) fn arguments(&self) -> Cow<'a, str> {
        let Some(raw) = self.arguments else {
            return Cow::Borrowed("");
        };
        match serde_json::from_str::<Text<'a>>(raw.get()) {
            Ok(Text(text)) if raw.get().starts_with('"') => text,
            _ => Cow::Borrowed(raw.get()),
        }
    }
}

/// The provider's count of tokens.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct UsageJson {
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
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct CompletionDetails {
    #[serde(default)]
    reasoning_tokens: Count,
}

impl From<UsageJson> for Usage {
    fn from(json: UsageJson) -> Self {
        Usage {
            input_tokens: json.prompt_tokens.0,
            output_tokens: json.completion_tokens.0,
            cached_tokens: json.prompt_tokens_details.map_or(0, |details| details.cached_tokens.0),
            reasoning_tokens: json
                .completion_tokens_details
                .map_or(0, |details| details.reasoning_tokens.0),
        }
    }
}

/// A text; null and absent are empty, an array of parts is their texts in a row.
#[derive(Debug, Default, Clone)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, null or an array of parts")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text)))
    }

    fn visit_unit<E: Error>(self) -> Result<Text<'de>, E> {
        Ok(Text::default())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(number.to_string())))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(number.to_string())))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(number.to_string())))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Text<'de>, E> {
        Ok(Text::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Text<'de>, A::Error> {
        let mut text = String::new();
        while let Some(Text(part)) = seq.next_element()? {
            text.push_str(&part);
        }
        Ok(Text(Cow::Owned(text)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text<'de>, A::Error> {
        let mut text = Text::default();
        while let Some(Text(key)) = map.next_key()? {
            if key == "text" || key == "refusal" {
                text = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(text)
    }
}

/// A count; null, negative and absent are zero.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Count(pub(crate) u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a count or null")
    }

    fn visit_u64<E: Error>(self, count: u64) -> Result<Count, E> {
        Ok(Count(count))
    }

    fn visit_i64<E: Error>(self, count: i64) -> Result<Count, E> {
        Ok(Count(u64::try_from(count).unwrap_or(0)))
    }

    fn visit_f64<E: Error>(self, count: f64) -> Result<Count, E> {
        // A float-to-integer cast saturates, and takes what is no number for zero.
        Ok(Count(count as u64))
    }

    fn visit_unit<E: Error>(self) -> Result<Count, E> {
        Ok(Count(0))
    }
}

/// Decodes the body of a whole answer.
pub(crate) fn decode(shared: &Shared, body: &[u8], ids: CallIds) -> Result<Decoded, Failure> {
    if body.len() > shared.limits.answer_bytes_max {
        return Err(too_long(shared, shared.limits.answer_bytes_max));
    }
    let completion: Completion<'_> =
        serde_json::from_slice(body).map_err(|error| not_understood(shared, &error, body))?;
    if completion.error.is_some() {
        let server = format!("model \"{}\"", shared.model);
        if let Some(error) = error_of_body(&server, body) {
            return Err(error.failure);
        }
    }
    let mut draft =
        Draft { usage: completion.usage.map(Usage::from).unwrap_or_default(), ..Draft::default() };
    let choice = completion.choices.into_iter().flatten().next();
    let Some(Choice { message: Some(said), finish_reason: reason, .. }) = choice else {
        return Err(bad_response(shared, format!("has no choices[0].message: {}", snippet(body))));
    };
    if !reason.0.is_empty() {
        draft.finish = Some(finish_reason(&reason.0));
    }
    let calls = said.tool_calls.unwrap_or_default();
    if calls.len() > shared.limits.tool_calls_max {
        return Err(too_many_calls(shared));
    }
    draft.calls = calls
        .into_iter()
        .map(|call| {
            let function = call.function.unwrap_or_default();
            let arguments = function.arguments().into_owned();
            ToolCall { id: call.id.0.into_owned(), name: function.name.0.into_owned(), arguments }
        })
        .collect();
    draft.text = said.content.0.into_owned();
    draft.refusal = said.refusal.0.into_owned();
    Ok(finish(shared, draft, ids))
}

/// `model_bad_response`: the answer of the model `problem`.
pub(crate) fn bad_response(shared: &Shared, problem: String) -> Failure {
    Failure::new(
        ErrorCode::MODEL_BAD_RESPONSE,
        format!("answer of model \"{}\" {problem}", shared.model),
    )
    .with_hint("check that base_url is the API of an OpenAI-compatible server")
}

/// The answer is no chat completion.
pub(crate) fn not_understood(shared: &Shared, error: &serde_json::Error, body: &[u8]) -> Failure {
    bad_response(shared, format!("is not a chat completion ({error}): {}", snippet(body)))
}

/// The answer is longer than its limit.
pub(crate) fn too_long(shared: &Shared, bytes_max: usize) -> Failure {
    Failure::new(
        ErrorCode::MODEL_BAD_RESPONSE,
        format!("answer of model \"{}\" is longer than {bytes_max} bytes", shared.model),
    )
}

/// The answer holds more calls than its limit.
pub(crate) fn too_many_calls(shared: &Shared) -> Failure {
    let allowed = shared.limits.tool_calls_max;
    Failure::new(
        ErrorCode::MODEL_BAD_RESPONSE,
        format!("answer of model \"{}\" has more than {allowed} tool calls", shared.model),
    )
}

/// The beginning of a body, for an error message.
fn snippet(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let shown: String = text.chars().take(100).collect();
    let more = if text.chars().count() > 100 { "..." } else { "" };
    format!("{shown:?}{more}")
}
