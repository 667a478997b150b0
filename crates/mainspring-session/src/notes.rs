//! What is known of a model call beside its answer: how it got its turn, and how sure the model was.

use serde::{Deserialize, Serialize};

/// What was noted about a model call that answered. Every field may be missing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallNotes {
    /// Mean log-probability of the answer's tokens, of tool arguments only where it has some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprob_mean: Option<f64>,
    /// How long the call waited to be admitted, in microseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub queued_us: u64,
    /// Which of the model's endpoints answered, from 0.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub endpoint: u32,
    /// The second call that was made because the first token was late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<HedgeNote>,
    /// Whether a budget of whoever pays had passed its soft limit when the call ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub budget_low: bool,
    /// A prompt cache that was lost without a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bust: Option<CacheBust>,
    /// Calls of `tool_call` in the answer stand for the tools that they name.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deferring: bool,
}

/// A second call beside one whose first token was late. One of the two answered, the other was
/// cancelled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HedgeNote {
    /// Which of the model's endpoints was asked, from 0.
    pub endpoint: u32,
    /// Whether it was the one that answered.
    pub won: bool,
    /// What the cancelled call is taken to have cost, in US dollars: its input at the model's
    /// price. None if the price is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd_estimate: Option<f64>,
}

/// How it was seen that a prompt cache was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheBustReason {
    /// The request began with other bytes than the one before.
    PrefixChanged,
    /// The request began with the same bytes, and the provider did not take them from its cache.
    NotCached,
}

/// A provider's prompt cache that could have been used and was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheBust {
    /// How it was seen.
    pub reason: CacheBustReason,
    /// The first message sent that differs, counted from 0 in the request; none if what comes before
    /// the messages differs (instructions, tools, parameters), or nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<u32>,
    /// Tokens that were read anew although they had been read before, estimated.
    pub lost_tokens: u64,
}

impl CallNotes {
    /// Whether nothing was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero_u32(count: &u32) -> bool {
    *count == 0
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
