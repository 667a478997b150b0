//! What admission tells of itself: reports for people, and readiness for the routing core.

use serde::Serialize;

/// How soon a model could take a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Whether the breakers of all its endpoints are open: a call would fail at once.
    pub breaker_open: bool,
    /// Milliseconds that a call would wait for its turn; 0 if it would go at once.
    pub wait_ms: u64,
}

/// What is known of one key of one model. Holds nothing of the key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChannelReport {
    /// Host and port of the server.
    pub host: String,
    /// The model's name there.
    pub model: String,
    /// Tells keys of one model at one host apart, from 1 in the order of their first use.
    pub key: u32,
    /// Requests in a minute, configured or learnt; none if no limit is known.
    pub requests_per_minute: Option<u64>,
    /// Tokens in a minute, configured or learnt; none if no limit is known.
    pub tokens_per_minute: Option<u64>,
    /// Calls that may be under way at once now.
    pub concurrency: u32,
    /// Calls under way.
    pub in_flight: u32,
    /// Calls that wait for their turn.
    pub queued: usize,
    /// `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// Milliseconds for which the channel still rests because the server asked for it.
    pub paused_ms: u64,
    /// Calls made.
    pub calls: u64,
    /// Calls that the server refused because there were too many (status 429).
    pub refused: u64,
    /// Calls that failed, the refused ones included.
    pub failed: u64,
    /// Second calls made because a first token was late.
    pub hedged: u64,
    /// Time to the first token that half of the calls stayed below, in milliseconds; without
    /// streaming, time to the answer. None before the first answer.
    pub first_token_p50_ms: Option<f64>,
    /// The same for 95 of 100 calls.
    pub first_token_p95_ms: Option<f64>,
}
