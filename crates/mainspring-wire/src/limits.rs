//! Bounds on what a model server may send. Every buffer that an answer fills has one here.

/// What one answer may hold. Past a limit the answer is refused as `model_bad_response`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireLimits {
    /// Bytes of one server-sent event. Default 16 MiB.
    pub sse_event_bytes_max: usize,
    /// Bytes of one answer: text and arguments of a stream, or the whole body. Default 32 MiB.
    pub answer_bytes_max: usize,
    /// Tool calls in one answer. Default 10,000.
    pub tool_calls_max: usize,
}

impl Default for WireLimits {
    fn default() -> Self {
        Self { sse_event_bytes_max: 16 << 20, answer_bytes_max: 32 << 20, tool_calls_max: 10_000 }
    }
}
