//! Bounds and constants of admission.

use std::time::Duration;

/// What one [`Admission`](super::Admission) may hold, and how it reacts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdmissionLimits {
    /// Calls that may wait for one key of one model. Default 100,000, as many as sessions on a
    /// shard.
    pub queue_max: usize,
    /// Keys of models whose limits and health are remembered; the ones unused for longest are
    /// forgotten. Default 4,096.
    pub channels_max: usize,
    /// Calls under way at once with one key, where nothing else is said. Default 100,000.
    pub concurrency_max: u32,
    /// Longest pause that a server can ask for; for more it is left alone for so long, and calls are
    /// refused at once. Default 10 minutes.
    pub pause_max: Duration,
    /// Pause after the first refusal of a server that does not say how long; it doubles with each.
    /// Default 1 s.
    pub pause: Duration,
    /// How long a call waits for the endpoint of its session while another one is free. Default 1 s.
    pub stick: Duration,
    /// How long the first call with a key goes alone, so that its answer can tell the limits, unless
    /// the server is on this machine. Default 1 s.
    pub scout: Duration,
    /// Time in which concurrency is halved at most once. Default 1 s.
    pub cut_every: Duration,
    /// Calls in the last minute from which on a breaker may open. Default 10.
    pub breaker_count_min: u32,
    /// Share of failed calls at which it opens. Default 0.5.
    pub breaker_share: f64,
    /// How long it stays open the first time; it doubles with each. Default 1 s.
    pub breaker_open: Duration,
    /// How long it stays open at most. Default 60 s.
    pub breaker_open_max: Duration,
    /// Repeated attempts as a share of first ones. Default 0.2.
    pub retry_share: f64,
    /// Repeated attempts beyond the share; used up, they come back at five a second. Default 50.
    pub retry_reserve: f64,
    /// Second calls for late first tokens, as a share of all calls. Default 0.05.
    pub hedge_share: f64,
    /// Observed first tokens from which on a late one can be told. Default 20.
    pub hedge_count_min: u32,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            queue_max: 100_000,
            channels_max: 4_096,
            concurrency_max: 100_000,
            pause_max: Duration::from_secs(600),
            pause: Duration::from_secs(1),
            stick: Duration::from_secs(1),
            scout: Duration::from_secs(1),
            cut_every: Duration::from_secs(1),
            breaker_count_min: 10,
            breaker_share: 0.5,
            breaker_open: Duration::from_secs(1),
            breaker_open_max: Duration::from_secs(60),
            retry_share: 0.2,
            retry_reserve: 50.0,
            hedge_share: 0.05,
            hedge_count_min: 20,
        }
    }
}
