//! When to try again: exponential backoff with jitter, from a seed that arrives with the fact.

use crate::decide::Moment;
use crate::error::{ErrorCode, Failure};
use crate::limits::Limits;
use crate::spec::ToolSpec;

const MODEL_BASE_MS: u64 = 500;
const MODEL_WAIT_MS_MAX: u64 = 30_000;
const TOOL_BASE_MS: u64 = 100;
const TOOL_WAIT_MS_MAX: u64 = 10_000;
/// How often a step waits for a model that is left alone, before that is its error.
const LEFT_ALONE_MAX: u32 = 20;
/// Longest wait before another attempt at anything.
pub const WAIT_MS_MAX: u64 = RETRY_AFTER_MS_MAX / 10 * 11;
/// A server that asks for more patience than this is treated as one that does not come back.
const RETRY_AFTER_MS_MAX: u64 = 600_000;

/// What is asked about a failed model call.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The attempt that failed, from 1.
    pub attempt: u32,
    /// How long the server asked to wait.
    pub retry_after_ms: Option<u64>,
    /// Whether another model takes over if the error stands.
    pub has_next: bool,
    /// How many attempts at the step say nothing of the model: they were not made at all, or ended
    /// with their process.
    pub unmade: u32,
}

/// When to make the next attempt at a model call, in microseconds since the epoch, or none if the
/// error stands.
#[must_use]
pub fn model_retry_at(limits: &Limits, error: &Failure, asked: Asked, now: Moment) -> Option<i64> {
    let Asked { attempt, retry_after_ms, has_next, unmade } = asked;
    // A model that is left alone is not worth waiting for where another one can be asked.
    let stands = match error.code == ErrorCode::MODEL_UNAVAILABLE {
        true => has_next || unmade >= LEFT_ALONE_MAX,
        false => attempt >= limits.model_attempts_max,
    };
    if !error.retryable || stands {
        return None;
    }
    let wait_us = match retry_after_ms {
        Some(asked) if asked > RETRY_AFTER_MS_MAX => return None,
        // A tenth on top, spread at random, so that callers told the same do not return at once.
        Some(asked) => asked * 1000 + asked * 100 * (now.seed % 1024) / 1024,
        None => backoff_us(MODEL_BASE_MS, MODEL_WAIT_MS_MAX, attempt, now.seed),
    };
    Some(now.at_us.saturating_add(i64::try_from(wait_us).unwrap_or(i64::MAX)))
}

/// Longest wait, in milliseconds, from a failed attempt at a model call to the next; none if the
/// server asks for more patience than there is.
#[must_use]
pub fn model_wait_ms_max(attempt: u32, retry_after_ms: Option<u64>) -> Option<u64> {
    match retry_after_ms {
        Some(asked) if asked > RETRY_AFTER_MS_MAX => None,
        Some(asked) => Some(asked / 10 * 11 + 1),
        None => {
            let doublings = attempt.saturating_sub(1).min(20);
            Some((MODEL_BASE_MS << doublings).min(MODEL_WAIT_MS_MAX))
        }
    }
}

/// When to make the next attempt at a tool call, or none if the error stands.
pub(crate) fn tool_retry_at(
    tool: &ToolSpec,
    attempt: u32,
    error: &Failure,
    now: Moment,
) -> Option<i64> {
    let lasting = [ErrorCode::TOOL_ARGUMENTS_INVALID, ErrorCode::TOOL_RESULT_INVALID];
    if attempt >= tool.attempts_max || !tool.effect.repeatable() || lasting.contains(&error.code) {
        return None;
    }
    let wait_us = backoff_us(TOOL_BASE_MS, TOOL_WAIT_MS_MAX, attempt, now.seed);
    Some(now.at_us.saturating_add(i64::try_from(wait_us).unwrap_or(i64::MAX)))
}

/// Half to all of `base * 2^(attempt - 1)`, at most `wait_ms_max`, in microseconds.
fn backoff_us(base_ms: u64, wait_ms_max: u64, attempt: u32, seed: u64) -> u64 {
    let doublings = attempt.saturating_sub(1).min(20);
    let full_us = (base_ms << doublings).min(wait_ms_max) * 1000;
    full_us / 2 + full_us / 2 * (seed % 1024) / 1024
}
