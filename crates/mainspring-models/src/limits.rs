//! Bounds on connections and bodies.

/// What one [`ModelClient`](crate::ModelClient) may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportLimits {
    /// Idle connections kept to one server. Default 8,192, above the number of calls that an
    /// engine has under way, so that a wave of calls finds its connections again.
    pub idle_connections_max: usize,
    /// Milliseconds that an idle connection is kept. Default 90 s.
    pub idle_ms_max: u64,
    /// Bytes of one response body, after decompression. Default 64 MiB.
    pub body_bytes_max: usize,
    /// Bytes read of an error's body. Default 64 KiB.
    pub error_body_bytes_max: usize,
    /// Different sets of connections (by connect deadline and way out) that are kept. Default 32.
    pub pools_max: usize,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            idle_connections_max: 8_192,
            idle_ms_max: 90_000,
            body_bytes_max: 64 << 20,
            error_body_bytes_max: 64 << 10,
            pools_max: 32,
        }
    }
}
