//! Streamed answers of Responses.
//!
//! Fragments are taken as they come; an item that is done says once more what it holds, which
//! counts where no fragments came and for what only it says. A stream is complete once its response
//! is.

use std::collections::BTreeMap;

use mainspring_session::Failure;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::answer::{Draft, not_understood, told_error};
use crate::responses::answer::{Item, Response, end, items};
use crate::stream::{Core, Delta};
use crate::value::{Count, Text};

/// An event of any type.
#[derive(Debug, Deserialize)]
struct Event<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(default)]
    output_index: Count,
    #[serde(borrow, default)]
    delta: Text<'a>,
    #[serde(borrow, default)]
    logprobs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    item: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
}

/// What an output item has become.
#[derive(Debug, Clone, Copy)]
enum Slot {
    /// Text, and whether any has come.
    Text { has_come: bool },
    /// The call at this position, and whether arguments have come.
    Call { at: usize, has_come: bool },
    /// Reasoning that began after so many parts of the answer.
    Thought { after: u32 },
}

/// What a streamed answer needs beyond its draft.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    slots: BTreeMap<u64, Slot>,
}

impl Stream {
    /// Takes the data of one event.
    pub(crate) fn event(
        &mut self,
        core: &mut Core,
        data: &[u8],
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        // Not of this API, but some servers end every stream with it.
        if data == b"[DONE]" {
            return Ok(());
        }
        let event: Event<'_> = serde_json::from_slice(data)
            .map_err(|error| not_understood(&core.shared, &error, data))?;
        let index = event.output_index.0;
        match &*event.kind.0 {
            "response.output_text.delta" => {
                self.slots.insert(index, Slot::Text { has_come: true });
                read_logprobs(core, event.logprobs)?;
                core.text(&event.delta.0, on_delta)
            }
            "response.refusal.delta" => {
                self.slots.insert(index, Slot::Text { has_come: true });
                core.refusal(&event.delta.0, on_delta)
            }
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                core.thought(&event.delta.0, 0, on_delta)
            }
            "response.function_call_arguments.delta" => {
                self.arguments(core, index, &event.delta.0, on_delta)
            }
            "response.output_item.added" => self.item(core, index, event.item, false, on_delta),
            "response.output_item.done" => self.item(core, index, event.item, true, on_delta),
            "response.created" => {
                core.begun = true;
                Ok(())
            }
            "response.completed" | "response.incomplete" | "response.failed" => {
                ended(core, event.response)
            }
            "error" => stopped(core, data),
            _ => Ok(()),
        }
    }

    fn arguments(
        &mut self,
        core: &mut Core,
        index: u64,
        fragment: &str,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        let at = match self.slots.get(&index) {
            Some(Slot::Call { at, .. }) => *at,
            _ => core.begin_call()?,
        };
        self.slots.insert(index, Slot::Call { at, has_come: true });
        core.call_piece(at, "", "", fragment, on_delta)
    }

    fn item(
        &mut self,
        core: &mut Core,
        index: u64,
        raw: Option<&RawValue>,
        is_done: bool,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        let Some(raw) = raw else { return Ok(()) };
        let item: Item<'_> = serde_json::from_str(raw.get())
            .map_err(|error| not_understood(&core.shared, &error, raw.get().as_bytes()))?;
        core.begun = true;
        // The item itself counts too, so that empty ones cannot pile up.
        core.keep(1)?;
        let slot = self.slots.get(&index).copied();
        match &*item.kind.0 {
            "function_call" => self.call(core, index, &item, is_done, on_delta),
            "message" => {
                let has_come = matches!(slot, Some(Slot::Text { has_come: true }));
                if is_done && !has_come {
                    for (text, refusal) in item.said() {
                        core.text(text, on_delta)?;
                        core.refusal(refusal, on_delta)?;
                    }
                    item.read_logprobs(&core.shared, &mut core.draft);
                }
                self.slots.insert(index, Slot::Text { has_come: has_come || is_done });
                Ok(())
            }
            "reasoning" => {
                let after = match slot {
                    Some(Slot::Thought { after }) => after,
                    _ => core.draft.part_count(),
                };
                self.slots.insert(index, Slot::Thought { after });
                if is_done {
                    let piece = item.reasoning(&core.shared, after);
                    core.thought("", piece.data.len(), on_delta)?;
                    core.draft.reasoning.push(piece);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn call(
        &mut self,
        core: &mut Core,
        index: u64,
        item: &Item<'_>,
        is_done: bool,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        let (at, has_come) = match self.slots.get(&index) {
            Some(Slot::Call { at, has_come }) => (*at, *has_come),
            _ => (core.begin_call()?, false),
        };
        let arguments = item.arguments();
        let arguments = if is_done && !has_come { &*arguments } else { "" };
        let has_come = has_come || !arguments.is_empty();
        self.slots.insert(index, Slot::Call { at, has_come });
        core.call_piece(at, &item.call_id.0, &item.name.0, arguments, on_delta)
    }
}

fn read_logprobs(core: &mut Core, logprobs: Option<&RawValue>) -> Result<(), Failure> {
    if let Some(raw) = logprobs.filter(|_| core.shared.logprobs) {
        core.count(raw.get().len())?;
        core.draft.tokens.read(raw);
    }
    Ok(())
}

/// The response has ended, one way or another. Its items count if none came before.
fn ended(core: &mut Core, raw: Option<&RawValue>) -> Result<(), Failure> {
    let raw = raw.map_or("{}", RawValue::get);
    let response: Response<'_> = serde_json::from_str(raw)
        .map_err(|error| not_understood(&core.shared, &error, raw.as_bytes()))?;
    core.begun = true;
    core.done = true;
    let Draft { text, refusal, calls, .. } = &core.draft;
    let is_empty = text.is_empty() && refusal.is_empty() && calls.is_empty();
    end(&core.shared, &mut core.draft, &response, raw.as_bytes())?;
    if is_empty {
        core.draft.reasoning.clear();
        items(&core.shared, &mut core.draft, response.output)?;
    }
    Ok(())
}

/// The stream reports an error, as an object of its own or with the fields of one.
fn stopped(core: &Core, data: &[u8]) -> Result<(), Failure> {
    told_error(&core.shared, data)?;
    let wrapped = [b"{\"error\":", data, b"}"].concat();
    told_error(&core.shared, &wrapped)
}
