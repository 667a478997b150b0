//! Streamed answers of Messages.
//!
//! A stream is complete with `message_stop`. `ping` and types of events that are not known are read
//! over, as the API asks its clients to do.

use std::collections::BTreeMap;

use mainspring_session::Failure;
use serde::Deserialize;

use crate::answer::{not_understood, told_error};
use crate::messages::answer::{Block, MessageJson, StopDetails, UsageJson, end};
use crate::stream::{Core, Delta};
use crate::value::{Count, Text};

/// An event of any type.
#[derive(Debug, Deserialize)]
struct Event<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(default)]
    index: Count,
    #[serde(borrow, default)]
    delta: Option<DeltaJson<'a>>,
    #[serde(borrow, default)]
    content_block: Option<Block<'a>>,
    #[serde(borrow, default)]
    message: Option<MessageJson<'a>>,
    #[serde(default)]
    usage: Option<UsageJson>,
}

/// What an event adds, to a block or to the message.
#[derive(Debug, Deserialize)]
struct DeltaJson<'a> {
    #[serde(borrow, default)]
    text: Text<'a>,
    #[serde(borrow, default)]
    partial_json: Text<'a>,
    #[serde(borrow, default)]
    thinking: Text<'a>,
    #[serde(borrow, default)]
    signature: Text<'a>,
    #[serde(borrow, default)]
    stop_reason: Text<'a>,
    #[serde(borrow, default)]
    stop_details: Option<StopDetails<'a>>,
}

/// What a content block has become.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Call(usize),
    Thought(usize),
}

/// What a streamed answer needs beyond its draft.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    slots: BTreeMap<u64, Slot>,
    usage: UsageJson,
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
        match &*event.kind.0 {
            "content_block_delta" => match event.delta {
                Some(delta) => self.piece(core, event.index.0, &delta, on_delta),
                None => Ok(()),
            },
            "content_block_start" => match event.content_block {
                Some(block) => self.block(core, event.index.0, &block, on_delta),
                None => Ok(()),
            },
            "message_start" => {
                core.begun = true;
                self.count(core, event.message.and_then(|message| message.usage));
                Ok(())
            }
            "message_delta" => {
                self.count(core, event.usage);
                if let Some(delta) = event.delta {
                    end(&mut core.draft, &delta.stop_reason.0, delta.stop_details.as_ref());
                }
                Ok(())
            }
            "message_stop" => {
                core.done = core.begun;
                Ok(())
            }
            "error" => told_error(&core.shared, data),
            _ => Ok(()),
        }
    }

    fn count(&mut self, core: &mut Core, usage: Option<UsageJson>) {
        if let Some(usage) = usage {
            self.usage.update(usage);
            core.draft.usage = self.usage.usage();
        }
    }

    fn block(
        &mut self,
        core: &mut Core,
        index: u64,
        block: &Block<'_>,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        core.begun = true;
        self.slots.remove(&index);
        match &*block.kind.0 {
            "text" => core.text(&block.text.0, on_delta),
            "tool_use" => {
                let at = core.begin_call()?;
                self.slots.insert(index, Slot::Call(at));
                core.call_piece(at, &block.id.0, &block.name.0, &block.input(), on_delta)
            }
            _ => {
                let after = core.draft.part_count();
                let Some(piece) = block.reasoning(&core.shared, after) else { return Ok(()) };
                // The block itself counts too, so that empty ones cannot pile up.
                core.thought(&piece.text, 1 + piece.data.len(), on_delta)?;
                self.slots.insert(index, Slot::Thought(core.draft.reasoning.len()));
                core.draft.reasoning.push(piece);
                Ok(())
            }
        }
    }

    fn piece(
        &mut self,
        core: &mut Core,
        index: u64,
        delta: &DeltaJson<'_>,
        on_delta: &mut dyn FnMut(Delta<'_>),
    ) -> Result<(), Failure> {
        match self.slots.get(&index) {
            Some(Slot::Call(at)) => core.call_piece(*at, "", "", &delta.partial_json.0, on_delta),
            Some(Slot::Thought(at)) => {
                let (thinking, signature) = (&*delta.thinking.0, &*delta.signature.0);
                core.thought(thinking, signature.len(), on_delta)?;
                let piece = &mut core.draft.reasoning[*at];
                piece.text.push_str(thinking);
                piece.signature.push_str(signature);
                Ok(())
            }
            None => core.text(&delta.text.0, on_delta),
        }
    }
}
