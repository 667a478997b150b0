//! The limits of one run: every loop and every text a model reads has a bound with a name.

use serde::{Deserialize, Serialize};

/// What one turn of a session may use. A turn lasts from a user's input to its final answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Model steps in a turn; a repair or an escalation counts as one. Default 50.
    pub steps_max: u32,
    /// Tokens read and written by all model calls of a turn. Default 2,000,000.
    pub tokens_max: u64,
    /// Tool calls that one answer may ask for; the ones past it fail with a message to the model.
    /// Default 64.
    pub tool_calls_per_step_max: u32,
    /// Attempts at one model call before its error stands. Default 5.
    pub model_attempts_max: u32,
    /// Times a rejected answer is sent back to the strongest model to be mended. Default 2.
    pub repairs_max: u32,
    /// Wall time of a turn in milliseconds; time spent while no process runs it does not count.
    /// Default 1 hour.
    pub turn_ms_max: u64,
    /// Bytes of one tool result that the model gets to read; the rest is cut out of the middle
    /// and named. Default 100,000.
    pub tool_result_bytes_max: u64,
    /// Bytes of one input. Default 1,000,000.
    pub input_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            steps_max: 50,
            tokens_max: 2_000_000,
            tool_calls_per_step_max: 64,
            model_attempts_max: 5,
            repairs_max: 2,
            turn_ms_max: 3_600_000,
            tool_result_bytes_max: 100_000,
            input_bytes_max: 1_000_000,
        }
    }
}
