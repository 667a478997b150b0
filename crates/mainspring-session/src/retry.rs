//! When to try again: exponential backoff with jitter, from a seed that arrives with the fact.

use crate::decide::Moment;
use crate::error::{ErrorCode, Failure};
use crate::limits::Limits;
use crate::spec::ToolSpec;

const MODEL_BASE_MS: u64 = 500;
const MODEL_WAIT_MS_MAX: u64 = 30_000;
const TOOL_BASE_MS: u64 = 100;
const TOOL_WAIT_MS_MAX: u64 = 10_000;
/// Longest wait before another attempt at anything.
pub const WAIT_MS_MAX: u64 = RETRY_AFTER_MS_MAX / 10 * 11;
/// A server that asks for more patience than this is treated as one that does not come back.
const RETRY_AFTER_MS_MAX: u64 = 600_000;

/// When to make the next attempt at a model call, or none if the error stands.
pub(crate) fn model_retry_at(
    limits: &Limits,
    attempt: u32,
    error: &Failure,
    retry_after_ms: Option<u64>,
    now: Moment,
) -> Option<i64> {
    if !error.retryable || attempt >= limits.model_attempts_max {
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
