//! What a server's headers say of its limits.
//!
//! Nothing in them is believed beyond what is harmless: a number that is none, is negative, or is
//! out of all proportion counts as not said, and what is left over is never more than the limit.

use reqwest::header::HeaderMap;

/// Largest number that is believed.
const NUMBER_MAX: f64 = 1e12;
/// Longest time until a limit's renewal that is waited for, in milliseconds.
const HOLD_MS_MAX: u64 = 60_000;

/// What was said of requests or of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rate {
    /// In a minute.
    pub(crate) limit: Option<u64>,
    /// Of that, what is left.
    pub(crate) remaining: Option<u64>,
    /// Milliseconds until there is more, of a server that counts by windows and has nothing left.
    pub(crate) hold_ms: Option<u64>,
}

/// What was said of both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) requests: Rate,
    pub(crate) tokens: Rate,
}

impl Rates {
    /// Reads the headers of an answer; none if they say nothing of limits.
    ///
    /// # Source
    /// OpenAI API reference, "Rate limits", headers `x-ratelimit-*`; Anthropic API reference,
    /// "Rate limits", headers `anthropic-ratelimit-*`; draft-ietf-httpapi-ratelimit-headers, the
    /// single fields of version 06 and the structured ones of version 10.
    pub(crate) fn read(headers: &HeaderMap, now_unix_s: u64) -> Option<Self> {
        let mut rates = Self::default();
        let mut reset_ms = None;
        let mut is_any = false;
        for (name, value) in headers {
            let name = name.as_str();
            if !name.contains("ratelimit") {
                continue;
            }
            let Ok(text) = value.to_str() else { continue };
            is_any = true;
            match name {
                "x-ratelimit-limit-requests" | "anthropic-ratelimit-requests-limit" => {
                    rates.requests.limit = number(text);
                }
                "x-ratelimit-remaining-requests" | "anthropic-ratelimit-requests-remaining" => {
                    rates.requests.remaining = number(text);
                }
                "x-ratelimit-limit-tokens" | "anthropic-ratelimit-tokens-limit" => {
                    rates.tokens.limit = number(text);
                }
                "x-ratelimit-remaining-tokens" | "anthropic-ratelimit-tokens-remaining" => {
                    rates.tokens.remaining = number(text);
                }
                "ratelimit-limit" | "x-ratelimit-limit" => {
                    rates.requests.limit = rates.requests.limit.or(number(text));
                }
                "ratelimit-remaining" | "x-ratelimit-remaining" => {
                    rates.requests.remaining = rates.requests.remaining.or(number(text));
                }
                "ratelimit-reset" => reset_ms = until(text, now_unix_s),
                "ratelimit" => {
                    rates.requests.remaining = parameter(text, "r").and_then(number);
                    reset_ms = parameter(text, "t").and_then(|text| until(text, now_unix_s));
                }
                "ratelimit-policy" => rates.requests.limit = of_policy(text),
                _ => {}
            }
        }
        if rates.requests.remaining == Some(0) {
            rates.requests.hold_ms = reset_ms;
        }
        is_any.then_some(rates)
    }
}

fn number(text: &str) -> Option<u64> {
    let number: f64 = text.split([',', ';']).next()?.trim().parse().ok()?;
    (0.0..=NUMBER_MAX).contains(&number).then_some(number as u64)
}

/// Milliseconds until a time that is given as seconds from now, or as a moment.
fn until(text: &str, now_unix_s: u64) -> Option<u64> {
    let seconds = number(text)?;
    let seconds = match seconds > 1_000_000_000 {
        true => seconds.saturating_sub(now_unix_s),
        false => seconds,
    };
    Some(seconds.saturating_mul(1000).min(HOLD_MS_MAX))
}

/// The limit of a policy for a minute or less, brought to a minute. What is counted over a longer
/// time says nothing about a minute.
fn of_policy(text: &str) -> Option<u64> {
    let quota = number(parameter(text, "q")?)?;
    let window_s = parameter(text, "w").map_or(Some(60), number)?;
    (1..=60).contains(&window_s).then(|| quota.saturating_mul(60) / window_s)
}

/// A parameter of a structured field, such as `30` for `t` in `"default";r=50;t=30`.
fn parameter<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let first = text.split(',').next()?;
    let mut parts = first.split(';').map(str::trim);
    parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}
