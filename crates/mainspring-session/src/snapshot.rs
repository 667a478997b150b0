//! What a session amounts to, in pieces that only add up: each snapshot holds the messages since the
//! one before and the whole of the rest, so that a long session's snapshots grow in proportion to
//! its log and not with its square.
//!
//! Invariant: a state restored from snapshots and the events after them equals the state folded
//! from all events. A snapshot that cannot be read is no loss: the events are the truth.

use serde::{Deserialize, Serialize};

use crate::message::Message;
use crate::state::State;

/// Version of the form of snapshots. One of another version is not read.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    first_message: usize,
    messages: &'a [Message],
    state: &'a State,
}

#[derive(Deserialize)]
struct Read {
    version: u32,
    first_message: usize,
    messages: Vec<Message>,
    state: State,
}

impl State {
    /// The snapshot that adds what has happened since the conversation had so many messages. The
    /// first one of a fork that edits a message must begin with that message or before it.
    ///
    /// # Panics
    /// If the conversation has fewer.
    #[must_use]
    pub fn snapshot(&self, first_message: usize) -> Vec<u8> {
        let messages = &self.messages[first_message..];
        let written = Written { version: VERSION, first_message, messages, state: self };
        serde_json::to_vec(&written).expect("a state has string keys only, so it encodes")
    }

    /// The state that these snapshots add up to, oldest first; none if there is none, or if one of
    /// them is damaged, missing or of another version.
    #[must_use]
    pub fn restore<'a>(snapshots: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut messages: Vec<Message> = Vec::new();
        let mut last = None;
        for body in snapshots {
            let read: Read = serde_json::from_slice(body).ok()?;
            if read.version != VERSION || read.first_message > messages.len() {
                return None;
            }
            messages.truncate(read.first_message);
            messages.extend(read.messages);
            last = Some(read.state);
        }
        last.map(|state| State { messages, ..state })
    }
}
