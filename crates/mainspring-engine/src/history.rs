//! What is sent of a conversation, in a provider's encoding, kept so that each message is encoded
//! once; and a hash of it after each message, by which `cache.rs` sees whether its beginning changed.

use mainspring_session::{Message, State};
use mainspring_wire::Codec;

use crate::cache;

/// Bytes before a message that its hash takes in: where results join one message, a result changes
/// the last bytes of the message before.
const OVERLAP_BYTES: usize = 32;

/// The encoded front part of what is sent.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Which encoding, and how often messages had been taken back.
    key: Option<(u64, u32)>,
    generation: u32,
    /// Messages of the conversation that are encoded, those left out included.
    pub(crate) count: usize,
    bytes: Vec<u8>,
    /// The hash of the bytes up to each message sent.
    chain: Vec<u64>,
    /// The hashes of what was encoded before, if that was thrown away.
    replaced: Vec<u64>,
}

impl History {
    /// Encodes what is new since the last call and returns the whole.
    pub(crate) fn update(&mut self, codec: &Codec, state: &State) -> &[u8] {
        let (key, generation) =
            (Some((codec.history_key(), state.route.rewinds)), state.context.view.generation);
        let kept = self.key == key && self.generation == generation;
        if kept && self.count <= state.messages.len() {
            for message in &state.messages[self.count..] {
                self.add(codec, message);
            }
        } else {
            let chain = std::mem::take(&mut self.chain);
            let replaced = if self.key == key { chain } else { Vec::new() };
            *self = Self { key, generation, replaced, ..Self::default() };
            for message in state.sent() {
                self.add(codec, message.as_ref());
            }
        }
        self.count = state.messages.len();
        &self.bytes
    }

    fn add(&mut self, codec: &Codec, message: &Message) {
        let before = self.bytes.len().saturating_sub(OVERLAP_BYTES);
        codec.encode_message(message, &mut self.bytes);
        let hash = self.chain.last().copied().unwrap_or(0);
        let new = &self.bytes[before.min(self.bytes.len())..];
        self.chain.push(cache::hash(hash, new));
    }

    /// The hash of the bytes up to each message sent.
    pub(crate) fn chain(&self) -> &[u64] {
        &self.chain
    }

    /// The first message, by position, that is not what it was before the history was encoded anew;
    /// none if it was not, or in another form.
    pub(crate) fn first_changed(&self) -> Option<u32> {
        let pairs = self.chain.iter().zip(&self.replaced);
        let same = pairs.take_while(|(new, old)| new == old).count();
        (same < self.replaced.len()).then(|| u32::try_from(same).unwrap_or(u32::MAX))
    }
}
