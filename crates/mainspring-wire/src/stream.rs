//! An answer that comes as a stream of events: text and argument fragments put back together.
//!
//! The result is the same however the bytes were cut. What an API's events mean stands with the
//! API; here is what all have in common, with the limits on what they gather.

use std::sync::Arc;

use mainspring_session::{Api, ErrorCode, Failure, ToolCall};
use serde::de::IgnoredAny;

use crate::answer::{CallIds, Decoded, Draft, bad_response, finish, too_long, too_many_calls};
use crate::codec::{Form, Shared};
use crate::sse::{SseParser, SseTooLong};
use crate::{chat, messages, responses};

/// A piece of an answer, as it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta<'a> {
    /// Text of the answer.
    Text(&'a str),
    /// Raw JSON of a constrained answer: calls or a final answer, known only at the end.
    Constrained(&'a str),
    /// What the model thinks before it answers.
    Reasoning(&'a str),
    /// A tool call began.
    ToolCall {
        /// Its position in the answer.
        idx: u32,
        /// The tool's name.
        name: &'a str,
    },
    /// A piece of a tool call's arguments.
    ToolArguments {
        /// The call's position in the answer.
        idx: u32,
        /// The piece.
        fragment: &'a str,
    },
}

/// Decodes one streamed answer.
#[derive(Debug)]
pub struct StreamDecoder {
    parser: SseParser,
    core: Core,
    reader: Reader,
    ids: CallIds,
}

/// What is known of the events of an API.
#[derive(Debug)]
enum Reader {
    Chat(chat::Stream),
    Responses(responses::Stream),
    Messages(messages::Stream),
}

/// What the streams of all APIs gather.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) draft: Draft,
    /// Whether the stream has shown to be an answer.
    pub(crate) begun: bool,
    /// Whether the rest of the stream need not be waited for.
    pub(crate) done: bool,
    answer_bytes: usize,
    received_any: bool,
    saw_token: bool,
}

/// Why a push ended early.
enum Stop {
    TooLong(SseTooLong),
    Failed(Failure),
}

impl From<SseTooLong> for Stop {
    fn from(error: SseTooLong) -> Self {
        Stop::TooLong(error)
    }
}

impl StreamDecoder {
    pub(crate) fn new(shared: Arc<Shared>, ids: CallIds) -> Self {
        let parser = SseParser::new(shared.limits.sse_event_bytes_max);
        let reader = match shared.api {
            Api::ChatCompletions | Api::Host => Reader::Chat(chat::Stream::default()),
            Api::Responses => Reader::Responses(responses::Stream::default()),
            Api::Messages => Reader::Messages(messages::Stream::default()),
        };
        let core = Core {
            shared,
            draft: Draft::default(),
            begun: false,
            done: false,
            answer_bytes: 0,
            received_any: false,
            saw_token: false,
        };
        Self { parser, core, reader, ids }
    }

    /// Takes the next bytes and reports what they add to the answer.
    ///
    /// # Errors
    /// `model_bad_response` if the bytes are no answer of the API or break a limit; the error that
    /// the stream reports, if it reports one. The decoder is of no further use then.
    pub fn push(
        &mut self,
        bytes: &[u8],
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        let Self { parser, core, reader, .. } = self;
        core.received_any |= !bytes.is_empty();
        let pushed = parser.push(bytes, &mut |data: &[u8]| {
            reader.event(core, data, on_delta).map_err(Stop::Failed)
        });
        pushed.map_err(|stop| match stop {
            Stop::Failed(failure) => failure,
            Stop::TooLong(error) => too_long(&self.core.shared, error.bytes_max),
        })
    }

    /// Whether the model has begun to write: text, reasoning or a tool call.
    #[must_use]
    pub fn saw_token(&self) -> bool {
        self.core.saw_token
    }

    /// Whether the answer is complete, so that the rest of the stream need not be waited for.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.core.done
    }

    /// Takes the end of the stream.
    ///
    /// # Errors
    /// `model_interrupted` if the answer is not complete; `model_bad_response` if there was none.
    pub fn finish(self) -> Result<Decoded, Failure> {
        let Self { parser, mut core, mut reader, ids } = self;
        if let Some(rest) = parser.finish() {
            // Half an event is what an interrupted stream ends with: only a whole one counts.
            let whole = rest == b"[DONE]" || serde_json::from_slice::<IgnoredAny>(&rest).is_ok();
            if whole {
                reader.event(&mut core, &rest, &mut |_| {})?;
            }
        }
        if reader.is_complete(&core) {
            reader.finish(&mut core);
            return Ok(finish(&core.shared, core.draft, ids));
        }
        if core.begun || !core.received_any {
            return Err(Failure::new(
                ErrorCode::MODEL_INTERRUPTED,
                format!(
                    "model \"{}\" ended the stream before its answer was complete",
                    core.shared.model
                ),
            ));
        }
        let missing = match core.shared.api {
            Api::ChatCompletions | Api::Host => "choices",
            Api::Responses | Api::Messages => "an answer",
        };
        Err(bad_response(&core.shared, format!("is a stream without {missing}")))
    }
}

impl Reader {
    fn event(
        &mut self,
        core: &mut Core,
        data: &[u8],
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        if core.done || data.is_empty() {
            return Ok(());
        }
        match self {
            Reader::Chat(stream) => stream.event(core, data, on_delta),
            Reader::Responses(stream) => stream.event(core, data, on_delta),
            Reader::Messages(stream) => stream.event(core, data, on_delta),
        }
    }

    fn is_complete(&self, core: &Core) -> bool {
        match self {
            Reader::Chat(_) => chat::Stream::is_complete(core),
            Reader::Responses(_) | Reader::Messages(_) => core.done,
        }
    }

    fn finish(self, core: &mut Core) {
        match self {
            Reader::Chat(stream) => stream.finish(core),
            Reader::Responses(_) | Reader::Messages(_) => {}
        }
    }
}

impl Core {
    /// Adds text to the answer.
    pub(crate) fn text(
        &mut self,
        text: &str,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        if text.is_empty() {
            return Ok(());
        }
        self.count(text.len())?;
        self.draft.text.push_str(text);
        on_delta(match self.shared.form {
            Form::Native => Delta::Text(text),
            Form::Envelope { .. } => Delta::Constrained(text),
        });
        Ok(())
    }

    /// Adds to what the model said in place of an answer.
    pub(crate) fn refusal(
        &mut self,
        text: &str,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        if !text.is_empty() {
            self.count(text.len())?;
            self.draft.refusal.push_str(text);
            on_delta(Delta::Text(text));
        }
        Ok(())
    }

    /// Reports reasoning, which the API gathers: `text` that can be read, and `more` bytes.
    pub(crate) fn thought(
        &mut self,
        text: &str,
        more: usize,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        self.count(text.len() + more)?;
        if !text.is_empty() {
            on_delta(Delta::Reasoning(text));
        }
        Ok(())
    }

    /// Begins a tool call and gives its position.
    pub(crate) fn begin_call(&mut self) -> Result<usize, Failure> {
        let at = self.draft.calls.len();
        if at >= self.shared.limits.tool_calls_max {
            return Err(too_many_calls(&self.shared));
        }
        let empty = String::new;
        self.draft.calls.push(ToolCall { id: empty(), name: empty(), arguments: empty() });
        self.saw_token = true;
        Ok(at)
    }

    /// Adds to a tool call.
    pub(crate) fn call_piece(
        &mut self,
        at: usize,
        id: &str,
        name: &str,
        arguments: &str,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        self.count(id.len() + name.len() + arguments.len())?;
        let idx = u32::try_from(at).unwrap_or(u32::MAX);
        let call = &mut self.draft.calls[at];
        if call.id.is_empty() {
            call.id.push_str(id);
        }
        // Some servers repeat the name in every piece; others cut it up.
        if !name.is_empty() && call.name != name {
            call.name.push_str(name);
            on_delta(Delta::ToolCall { idx, name: &call.name });
        }
        if !arguments.is_empty() {
            call.arguments.push_str(arguments);
            on_delta(Delta::ToolArguments { idx, fragment: arguments });
        }
        Ok(())
    }

    /// Counts bytes that the model wrote and the answer keeps.
    pub(crate) fn count(&mut self, bytes: usize) -> Result<(), Failure> {
        self.saw_token = true;
        self.keep(bytes)
    }

    /// Counts bytes that are kept.
    pub(crate) fn keep(&mut self, bytes: usize) -> Result<(), Failure> {
        self.answer_bytes += bytes;
        let bytes_max = self.shared.limits.answer_bytes_max;
        if self.answer_bytes > bytes_max {
            return Err(too_long(&self.shared, bytes_max));
        }
        Ok(())
    }
}
