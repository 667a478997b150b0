//! A conversation in a provider's encoding, kept so that each message is encoded once.

use mainspring_session::Message;
use mainspring_wire::ChatCodec;

/// The encoded front part of a conversation.
#[derive(Debug, Default)]
pub(crate) struct History {
    key: Option<u64>,
    count: usize,
    bytes: Vec<u8>,
}

impl History {
    /// Encodes what is new since the last call and returns the whole.
    pub(crate) fn update(&mut self, codec: &ChatCodec, messages: &[Message]) -> &[u8] {
        let key = Some(codec.history_key());
        if self.key != key || self.count > messages.len() {
            *self = Self { key, ..Self::default() };
        }
        for message in &messages[self.count..] {
            codec.encode_message(message, &mut self.bytes);
        }
        self.count = messages.len();
        &self.bytes
    }
}
