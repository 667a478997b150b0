//! An answer that comes as a stream of chunks: text and argument fragments put back together.
//!
//! The result is the same however the bytes were cut. A stream counts as complete once it has said
//! `[DONE]` or a finish reason; one that ends before that was interrupted.

use std::sync::Arc;

use mainspring_session::{ErrorCode, Failure, ToolCall, Usage};

use crate::answer::{CallIds, Decoded, Draft, finish, finish_reason};
use crate::codec::Shared;
use crate::encode::Form;
use crate::failure::error_of_body;
use crate::response::{self, CallJson, Completion, Said};
use crate::sse::{SseParser, SseTooLong};

/// A piece of an answer, as it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta<'a> {
    /// Text of the answer.
    Text(&'a str),
    /// Raw JSON of a constrained answer: calls or a final answer, known only at the end.
    Constrained(&'a str),
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
    state: State,
}

#[derive(Debug)]
struct State {
    shared: Arc<Shared>,
    ids: CallIds,
    draft: Draft,
    /// The provider's index of each call of the draft.
    indices: Vec<u64>,
    answer_bytes: usize,
    received_any: bool,
    saw_choice: bool,
    saw_token: bool,
    done: bool,
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
        let state = State {
            shared,
            ids,
            draft: Draft::default(),
            indices: Vec::new(),
            answer_bytes: 0,
            received_any: false,
            saw_choice: false,
            saw_token: false,
            done: false,
        };
        Self { parser, state }
    }

    /// Takes the next bytes and reports what they add to the answer.
    ///
    /// # Errors
    /// `model_bad_response` if the bytes are no chat completion or break a limit; the error that
    /// the stream reports, if it reports one. The decoder is of no further use then.
    pub fn push(
        &mut self,
        bytes: &[u8],
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        let state = &mut self.state;
        state.received_any |= !bytes.is_empty();
        let pushed = self
            .parser
            .push(bytes, &mut |data: &[u8]| state.event(data, on_delta).map_err(Stop::Failed));
        pushed.map_err(|stop| match stop {
            Stop::Failed(failure) => failure,
            Stop::TooLong(error) => response::too_long(&self.state.shared, error.bytes_max),
        })
    }

    /// Whether the model has begun to write: text, reasoning or a tool call.
    #[must_use]
    pub fn saw_token(&self) -> bool {
        self.state.saw_token
    }

    /// Whether the answer is complete, so that the rest of the stream need not be waited for.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state.done
    }

    /// Takes the end of the stream.
    ///
    /// # Errors
    /// `model_interrupted` if the answer is not complete; `model_bad_response` if there was none.
    pub fn finish(self) -> Result<Decoded, Failure> {
        let Self { parser, mut state } = self;
        if let Some(rest) = parser.finish() {
            // Half an event is what an interrupted stream ends with: only a whole one counts.
            let whole =
                rest == b"[DONE]" || serde_json::from_slice::<Completion<'_>>(&rest).is_ok();
            if whole {
                state.event(&rest, &mut |_| {})?;
            }
        }
        if state.saw_choice && (state.done || state.draft.finish.is_some()) {
            return Ok(finish(&state.shared, state.draft, state.ids));
        }
        if state.saw_choice || !state.received_any {
            return Err(Failure::new(
                ErrorCode::MODEL_INTERRUPTED,
                format!(
                    "model \"{}\" ended the stream before its answer was complete",
                    state.shared.model
                ),
            ));
        }
        Err(response::bad_response(&state.shared, "is a stream without choices".to_owned()))
    }
}

impl State {
    fn event(&mut self, data: &[u8], on_delta: &mut dyn FnMut(Delta<'_>)) -> Result<(), Failure> {
        if self.done || data.is_empty() {
            return Ok(());
        }
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Completion<'_> = serde_json::from_slice(data)
            .map_err(|error| response::not_understood(&self.shared, &error, data))?;
        if chunk.error.is_some() {
            let server = format!("model \"{}\"", self.shared.model);
            if let Some(error) = error_of_body(&server, data) {
                return Err(error.failure);
            }
        }
        if let Some(usage) = chunk.usage {
            self.draft.usage = Usage::from(usage);
        }
        for choice in chunk.choices.into_iter().flatten() {
            if choice.index.0 != 0 {
                continue;
            }
            self.saw_choice = true;
            if let Some(said) = choice.delta.or(choice.message) {
                self.said(said, on_delta)?;
            }
            if !choice.finish_reason.0.is_empty() {
                self.draft.finish = Some(finish_reason(&choice.finish_reason.0));
            }
        }
        Ok(())
    }

    fn said(&mut self, said: Said<'_>, on_delta: &mut dyn FnMut(Delta<'_>)) -> Result<(), Failure> {
        let (content, refusal) = (&*said.content.0, &*said.refusal.0);
        if !content.is_empty() {
            self.count(content.len())?;
            self.draft.text.push_str(content);
            on_delta(match self.shared.form {
                Form::Native => Delta::Text(content),
                Form::Envelope { .. } => Delta::Constrained(content),
            });
        }
        if !refusal.is_empty() {
            self.count(refusal.len())?;
            self.draft.refusal.push_str(refusal);
            on_delta(Delta::Text(refusal));
        }
        for call in said.tool_calls.into_iter().flatten() {
            self.call(call, on_delta)?;
        }
        self.saw_token |= !said.reasoning_content.0.is_empty() || !said.reasoning.0.is_empty();
        Ok(())
    }

    fn call(
        &mut self,
        call: CallJson<'_>,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        let function = call.function.unwrap_or_default();
        let (id, name, arguments) = (&*call.id.0, &*function.name.0, function.arguments());
        self.count(id.len() + name.len() + arguments.len())?;
        let at = match self.slot(call.index.map(|index| index.0), id, name) {
            Some(at) => at,
            None => {
                if self.draft.calls.len() >= self.shared.limits.tool_calls_max {
                    return Err(response::too_many_calls(&self.shared));
                }
                let at = self.draft.calls.len();
                self.indices.push(call.index.map_or(at as u64, |index| index.0));
                self.draft.calls.push(ToolCall {
                    id: String::new(),
                    name: String::new(),
                    arguments: String::new(),
                });
                at
            }
        };
        self.saw_token = true;
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
            call.arguments.push_str(&arguments);
            on_delta(Delta::ToolArguments { idx, fragment: &arguments });
        }
        Ok(())
    }

    /// The call that a piece belongs to; none if it begins a new one.
    ///
    /// A piece with a new id and a name begins a call even under an index that is taken or absent:
    /// some servers number every parallel call 0, or none of them.
    fn slot(&self, index: Option<u64>, id: &str, name: &str) -> Option<usize> {
        let at = match index {
            Some(index) => self.indices.iter().rposition(|known| *known == index)?,
            None => self.draft.calls.len().checked_sub(1)?,
        };
        let known = &self.draft.calls[at];
        let begins = !id.is_empty() && !name.is_empty() && !known.id.is_empty() && known.id != id;
        if begins { None } else { Some(at) }
    }

    fn count(&mut self, bytes: usize) -> Result<(), Failure> {
        self.saw_token = true;
        self.answer_bytes += bytes;
        let bytes_max = self.shared.limits.answer_bytes_max;
        if self.answer_bytes > bytes_max {
            return Err(response::too_long(&self.shared, bytes_max));
        }
        Ok(())
    }
}
