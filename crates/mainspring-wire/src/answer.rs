//! From what a model wrote to a neutral answer: the last step for streams and whole bodies alike.
//!
//! Every call of the result has an id of its own within its answer, and a constrained answer that
//! cannot be read keeps its raw text beside a problem that a model can act on.

use std::collections::BTreeSet;

use mainspring_session::{
    Answer, Api, CallIndex, CallNotes, ErrorCode, Failure, FinishReason, Problem, Reasoning,
    ToolCall, Usage,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::codec::{Form, Shared};
use crate::failure::error_of_body;
use crate::logprobs::Tokens;

/// How calls are named that a provider gave no usable id: `c{n}`, by position in the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallIds {
    /// The index that the answer's first call will have.
    pub first: CallIndex,
}

/// An answer, decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// What the model said.
    pub answer: Answer,
    /// Why it stopped.
    pub finish_reason: FinishReason,
    /// Tokens, as the provider counted them; zeros if it did not say.
    pub usage: Usage,
    /// What else the provider said of the call.
    pub notes: CallNotes,
    /// What is wrong with the form of a constrained answer (`check` is `parse`).
    pub problems: Vec<Problem>,
}

/// What has been read so far of an answer.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) text: String,
    pub(crate) refusal: String,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) finish: Option<FinishReason>,
    pub(crate) usage: Usage,
    pub(crate) reasoning: Vec<Reasoning>,
    pub(crate) tokens: Tokens,
}

impl Draft {
    /// How many parts of the answer are there: its text counts as one, then its calls.
    pub(crate) fn part_count(&self) -> u32 {
        let text = u32::from(!self.text.is_empty());
        text.saturating_add(u32::try_from(self.calls.len()).unwrap_or(u32::MAX))
    }
}

/// The neutral name of a provider's finish reason.
pub(crate) fn finish_reason(name: &str) -> FinishReason {
    let is = |known: &[&str]| known.iter().any(|known| name.eq_ignore_ascii_case(known));
    if is(&["stop", "eos", "end_turn", "stop_sequence"]) {
        FinishReason::Stop
    } else if is(&["length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"]) {
        FinishReason::Length
    } else if is(&["tool_calls", "tool_use", "function_call"]) {
        FinishReason::ToolCalls
    } else if is(&["content_filter", "safety", "refusal"]) {
        FinishReason::ContentFilter
    } else {
        FinishReason::Other
    }
}

/// Finishes a draft: ids, empty arguments, the envelope of constrained answers, refusals.
pub(crate) fn finish(shared: &Shared, draft: Draft, ids: CallIds) -> Decoded {
    let Draft { text, refusal, calls, finish, usage, reasoning, tokens } = draft;
    let mut decoded = Decoded {
        answer: Answer { text, tool_calls: calls, reasoning },
        finish_reason: finish.unwrap_or(FinishReason::Other),
        usage,
        notes: CallNotes::default(),
        problems: Vec::new(),
    };
    if !refusal.is_empty() {
        decoded.finish_reason = FinishReason::ContentFilter;
        if decoded.answer.text.is_empty() {
            decoded.answer.text = refusal;
        }
    }
    let is_constrained = decoded.answer.tool_calls.is_empty()
        && decoded.finish_reason != FinishReason::ContentFilter
        && !decoded.answer.text.trim().is_empty();
    if is_constrained {
        match shared.form {
            Form::Envelope { typed } => open_envelope(shared, typed, &mut decoded),
            Form::Native if shared.typed => check_value(&mut decoded),
            Form::Native => {}
        }
    }
    let has_calls = !decoded.answer.tool_calls.is_empty();
    if has_calls && decoded.finish_reason == FinishReason::Stop {
        decoded.finish_reason = FinishReason::ToolCalls;
    }
    let arguments = decoded.answer.tool_calls.iter().map(|call| call.arguments.as_str());
    decoded.notes.logprob_mean = tokens.mean(arguments);
    name_calls(&mut decoded.answer.tool_calls, ids);
    decoded
}

/// Keeps ids that pair a call with its result without doubt, and makes the others.
fn name_calls(calls: &mut [ToolCall], ids: CallIds) {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for call in &mut *calls {
        if call.arguments.trim().is_empty() {
            call.arguments = "{}".to_owned();
        }
        if !call.id.is_empty() && !taken.insert(call.id.clone()) {
            call.id.clear();
        }
    }
    for (idx, call) in (ids.first.0..).zip(calls) {
        if call.id.is_empty() {
            let mut id = format!("c{idx}");
            while !taken.insert(id.clone()) {
                id.push('_');
            }
            call.id = id;
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    tool_calls: Option<Vec<EnvelopeCall<'a>>>,
    #[serde(borrow, default)]
    answer: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct EnvelopeCall<'a> {
    name: String,
    #[serde(borrow)]
    arguments: &'a RawValue,
}

impl EnvelopeCall<'_> {
    fn into_call(self) -> ToolCall {
        let arguments = self.arguments.get().to_owned();
        ToolCall { id: String::new(), name: self.name, arguments }
    }
}

fn open_envelope(shared: &Shared, typed: bool, decoded: &mut Decoded) {
    let text = without_fence(&decoded.answer.text);
    let problem = match serde_json::from_str::<Envelope<'_>>(text) {
        Ok(Envelope { tool_calls: Some(calls), .. }) if !calls.is_empty() => {
            let calls = calls.into_iter().map(EnvelopeCall::into_call).collect();
            decoded.answer.text.clear();
            decoded.answer.tool_calls = calls;
            return;
        }
        Ok(Envelope { answer: Some(answer), .. }) => {
            decoded.answer.text = match serde_json::from_str::<String>(answer.get()) {
                Ok(text) if !typed => text,
                _ => answer.get().to_owned(),
            };
            return;
        }
        Ok(_) => match bare_call(shared, text) {
            Some(call) => {
                decoded.answer.text.clear();
                decoded.answer.tool_calls = vec![call];
                return;
            }
            None => "it has neither \"tool_calls\" nor \"answer\"".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    let forms = match shared.tools.is_empty() {
        true => "{\"answer\":...}",
        false => "{\"tool_calls\":[{\"name\":...,\"arguments\":{...}}]} or {\"answer\":...}",
    };
    decoded
        .problems
        .push(parse_problem(format!("the answer is not JSON of the form {forms}: {problem}")));
}

/// A call that a model wrote without the list around it, as models trained on tool calls do where
/// a server does not hold them to the schema.
fn bare_call(shared: &Shared, text: &str) -> Option<ToolCall> {
    let call: EnvelopeCall<'_> = serde_json::from_str(text).ok()?;
    shared.tools.contains(&call.name).then(|| call.into_call())
}

/// A final answer under an output schema is a JSON value; only its form is checked here.
fn check_value(decoded: &mut Decoded) {
    let text = without_fence(&decoded.answer.text);
    match serde_json::from_str::<&RawValue>(text) {
        Ok(_) if text.len() == decoded.answer.text.len() => {}
        Ok(_) => decoded.answer.text = text.to_owned(),
        Err(error) => {
            let problem = parse_problem(format!("the answer is not a JSON value: {error}"));
            decoded.problems.push(problem);
        }
    }
}

fn parse_problem(message: String) -> Problem {
    Problem { check: "parse".to_owned(), message, call: None }
}

/// The text inside a Markdown code fence, if the whole text is one.
fn without_fence(text: &str) -> &str {
    let trimmed = text.trim();
    let inner = trimmed.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    match inner.and_then(|inner| inner.split_once('\n')) {
        Some((_language, inner)) => inner.trim(),
        None => trimmed,
    }
}

/// The error that the body of an answer tells; nothing if it tells none.
pub(crate) fn told_error(shared: &Shared, body: &[u8]) -> Result<(), Failure> {
    let server = format!("model \"{}\"", shared.model);
    error_of_body(&server, body).map_or(Ok(()), |error| Err(error.failure))
}

/// `model_bad_response`: the answer of the model `problem`.
pub(crate) fn bad_response(shared: &Shared, problem: String) -> Failure {
    let kind = match shared.api {
        Api::ChatCompletions | Api::Host => "an OpenAI-compatible server",
        Api::Responses => "a server with OpenAI's Responses API",
        Api::Messages => "a server with Anthropic's Messages API",
    };
    Failure::new(
        ErrorCode::MODEL_BAD_RESPONSE,
        format!("answer of model \"{}\" {problem}", shared.model),
    )
    .with_hint(format!("check that base_url is the API of {kind}"))
}

/// The answer is none of the API.
pub(crate) fn not_understood(shared: &Shared, error: &serde_json::Error, body: &[u8]) -> Failure {
    let what = match shared.api {
        Api::ChatCompletions | Api::Host => "a chat completion",
        Api::Responses => "a response",
        Api::Messages => "a message",
    };
    bad_response(shared, format!("is not {what} ({error}): {}", snippet(body)))
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
pub(crate) fn snippet(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let shown: String = text.chars().take(100).collect();
    let more = if text.chars().count() > 100 { "..." } else { "" };
    format!("{shown:?}{more}")
}
