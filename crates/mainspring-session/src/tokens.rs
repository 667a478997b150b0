//! How many tokens a call will have: what the provider counted of the last call is exact, and only
//! what is new since is estimated, with a ratio of bytes to tokens that is learnt for each model.
//!
//! Invariant: whole numbers only, so that a restored state and a replayed one agree to the bit.

use serde::{Deserialize, Serialize};

use crate::message::{Message, Part};

/// Tokens that every message has beside its text: role and separators.
const MESSAGE_TOKENS: u64 = 4;
/// Tokens that a tool call has beside its name and arguments.
const CALL_TOKENS: u64 = 8;
/// Tokens of a picture. Providers scale pictures down; one of the largest size they keep has about
/// this many (Anthropic: width times height / 750, at most 1,568 by 1,568 scaled; OpenAI: 85 + 170 a
/// tile, 765 to 1,445).
const IMAGE_TOKENS: u64 = 1_600;
/// What is assumed before anything has been learnt: 4 bytes a token. Plain English has 4.5, JSON and
/// code have 3 to 4. No higher, since what would have fitted must not be cut; a call that does not fit
/// is refused, and that teaches.
const PRIOR_BYTES: u64 = 2_000;
const PRIOR_TOKENS: u64 = 500;
/// Growth of the conversation that teaches nothing: rounding would be most of it.
const LEARN_BYTES_MIN: u64 = 200;
/// A first call teaches only if it is much longer than instructions and tools usually are.
const LEARN_FIRST_BYTES_MIN: u64 = 20_000;
/// Beyond this, what was learnt counts half, so that a change of language or content is followed.
const LEARNT_BYTES_MAX: u64 = 400_000;

/// How much text there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weight {
    /// Bytes of text.
    pub bytes: u64,
    /// Tokens that do not depend on text: those of roles, separators, pictures.
    pub fixed: u64,
}

impl Weight {
    /// The weight of a message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        let mut weight = Self { bytes: 0, fixed: MESSAGE_TOKENS };
        match message {
            Message::User { content } => {
                for part in content {
                    match part {
                        Part::Text { text } => weight.bytes += text.len() as u64,
                        Part::Image { .. } => weight.fixed += IMAGE_TOKENS,
                    }
                }
            }
            Message::Assistant { text, tool_calls, reasoning } => {
                weight.bytes += text.len() as u64;
                for call in tool_calls {
                    weight.bytes += (call.name.len() + call.arguments.len()) as u64;
                    weight.fixed += CALL_TOKENS;
                }
                let thoughts = reasoning.iter().map(|it| it.text.len() + it.data.len());
                weight.bytes += thoughts.sum::<usize>() as u64;
            }
            Message::Tool { text, .. } => {
                weight.bytes += text.len() as u64;
                weight.fixed += CALL_TOKENS;
            }
        }
        weight
    }

    /// Text of so many bytes.
    #[must_use]
    pub fn text(bytes: usize) -> Self {
        Self { bytes: bytes as u64, fixed: 0 }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, fixed: self.fixed + other.fixed }
    }

    /// What this has more than the other.
    #[must_use]
    pub fn beyond(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            fixed: self.fixed.saturating_sub(other.fixed),
        }
    }
}

/// What is known of a model's tokens in one session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meter {
    /// Bytes whose tokens were counted.
    learnt_bytes: u64,
    /// Their tokens.
    learnt_tokens: u64,
    /// The last call that was counted; none yet.
    counted: Option<Counted>,
    /// Tokens that the smallest call that was refused as too long was estimated to have.
    refused_at: Option<u64>,
}

/// A call whose tokens the provider has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    /// The view it had.
    generation: u32,
    /// The weight of its messages.
    weight: Weight,
    /// Its tokens, instructions and tools included.
    tokens: u64,
}

impl Meter {
    /// Of a model that has not been called.
    pub(crate) const NEW: Self =
        Self { learnt_bytes: 0, learnt_tokens: 0, counted: None, refused_at: None };

    /// A call was answered, and the provider said how many tokens it had read.
    pub(crate) fn learn(&mut self, generation: u32, weight: Weight, tokens: u64) {
        if tokens == 0 {
            return;
        }
        let before = self.counted.filter(|counted| counted.generation == generation);
        match before {
            Some(before) => {
                self.take(weight.beyond(before.weight), tokens.saturating_sub(before.tokens))
            }
            None if weight.bytes >= LEARN_FIRST_BYTES_MIN => self.take(weight, tokens),
            None => {}
        }
        self.counted = Some(Counted { generation, weight, tokens });
    }

    fn take(&mut self, grown: Weight, tokens: u64) {
        let tokens = tokens.saturating_sub(grown.fixed);
        // A picture's tokens are a guess, so growth that has one says nothing of text.
        if grown.bytes < LEARN_BYTES_MIN || grown.fixed >= IMAGE_TOKENS || tokens == 0 {
            return;
        }
        self.learnt_bytes += grown.bytes;
        self.learnt_tokens += tokens;
        while self.learnt_bytes > LEARNT_BYTES_MAX {
            self.learnt_bytes /= 2;
            self.learnt_tokens /= 2;
        }
    }

    /// A call of so many estimated tokens was refused as too long.
    pub(crate) fn refuse(&mut self, tokens: u64) {
        self.refused_at = Some(self.refused_at.map_or(tokens, |before| before.min(tokens)));
    }

    /// Tokens that a call must stay below, as far as refusals tell.
    pub(crate) fn refused_at(&self) -> Option<u64> {
        self.refused_at
    }

    /// Estimated tokens of a text or a message.
    #[must_use]
    pub fn tokens(&self, weight: Weight) -> u64 {
        let (bytes, tokens) = (PRIOR_BYTES + self.learnt_bytes, PRIOR_TOKENS + self.learnt_tokens);
        let text = u128::from(weight.bytes) * u128::from(tokens) / u128::from(bytes);
        u64::try_from(text).unwrap_or(u64::MAX).saturating_add(weight.fixed)
    }

    /// Whether no call has been counted yet.
    pub(crate) fn is_new(&self) -> bool {
        self.counted.is_none()
    }

    /// Tokens of a call beside its messages: what was counted of the last one less what its messages
    /// are estimated to have, or the estimate of what is always sent if no call was counted yet.
    pub(crate) fn base(&self, always: Weight) -> i128 {
        match self.counted {
            Some(counted) => i128::from(counted.tokens) - i128::from(self.tokens(counted.weight)),
            None => i128::from(self.tokens(always)),
        }
    }

    /// The last call of a view that was counted: its tokens, and the weight of its messages.
    pub(crate) fn counted(&self, generation: u32) -> Option<(u64, Weight)> {
        let counted = self.counted.filter(|counted| counted.generation == generation)?;
        Some((counted.tokens, counted.weight))
    }

    /// Of the tokens of a call with messages of this weight, those that were counted; 0 if the view
    /// is another one.
    pub(crate) fn exact(&self, generation: u32) -> u64 {
        let counted = self.counted.filter(|counted| counted.generation == generation);
        counted.map_or(0, |counted| counted.tokens)
    }
}
