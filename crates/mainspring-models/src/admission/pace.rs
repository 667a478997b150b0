//! How many calls a channel has under way at once, and when it rests.
//!
//! Additive increase, multiplicative decrease: a refusal halves the number that may be under way,
//! and a window of successes adds one. After a pause one call goes first, and each success lets one
//! more in beside the next, so that those who waited do not come as a herd.

use std::time::Duration;

use tokio::time::Instant;

use super::limits::AdmissionLimits;

/// Doublings of the pause of a server that does not say how long.
const DOUBLINGS_MAX: u32 = 6;

/// Concurrency and pauses of one channel.
#[derive(Debug)]
pub(crate) struct Pace {
    max: u32,
    limit: f64,
    in_flight: u32,
    /// Most calls under way since the last cut.
    peak: u32,
    /// What a pause left, until it has grown past `limit`.
    ramp: Option<u32>,
    cut_at: Option<Instant>,
    paused_until: Option<Instant>,
    /// Refusals since the last success.
    refusals: u32,
}

impl Pace {
    pub(crate) fn new(max: u32) -> Self {
        Self {
            max,
            limit: f64::from(max),
            in_flight: 0,
            peak: 0,
            ramp: None,
            cut_at: None,
            paused_until: None,
            refusals: 0,
        }
    }

    /// Takes over what an agent says; the smallest of what several say holds.
    pub(crate) fn configure(&mut self, max: Option<u32>) {
        self.max = self.max.min(max.unwrap_or(u32::MAX));
        self.limit = self.limit.min(f64::from(self.max));
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Calls that may be under way now.
    pub(crate) fn limit(&self) -> u32 {
        let limit = self.limit as u32;
        self.ramp.map_or(limit, |ramp| ramp.min(limit)).max(1)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.in_flight < self.limit()
    }

    /// The end of the pause, if there is one.
    pub(crate) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    pub(crate) fn begin(&mut self) {
        self.in_flight += 1;
        self.peak = self.peak.max(self.in_flight);
    }

    pub(crate) fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(crate) fn succeeded(&mut self) {
        self.refusals = 0;
        self.limit = (self.limit + 1.0 / self.limit).min(f64::from(self.max));
        if let Some(ramp) = self.ramp {
            let grown = ramp.saturating_add(1);
            self.ramp = (f64::from(grown) < self.limit).then_some(grown);
        }
    }

    /// Halves concurrency for a call that began after the last time.
    pub(crate) fn cut(&mut self, now: Instant, began: Instant, limits: &AdmissionLimits) {
        let is_old = |at: Instant| began <= at || now < at + limits.cut_every;
        if self.cut_at.is_some_and(is_old) {
            return;
        }
        self.cut_at = Some(now);
        // What is under way just now says little: a pause may have let it run dry.
        self.limit = (self.limit.min(f64::from(self.peak)) / 2.0).max(1.0);
        self.peak = self.in_flight;
    }

    /// Rests for as long as the server asked, or longer with each refusal.
    pub(crate) fn pause(
        &mut self,
        now: Instant,
        asked: Option<Duration>,
        seed: u64,
        limits: &AdmissionLimits,
    ) {
        // Refusals of calls that were under way together are one.
        if self.paused_until(now).is_none() {
            self.refusals = self.refusals.saturating_add(1);
        }
        let wait = asked.unwrap_or_else(|| {
            let doubled = limits.pause * (1 << (self.refusals.max(1) - 1).min(DOUBLINGS_MAX));
            doubled / 2 + doubled.mul_f64((seed % 1024) as f64 / 2048.0)
        });
        let until = now + wait.min(limits.pause_max);
        self.paused_until = Some(self.paused_until.map_or(until, |known| known.max(until)));
        self.start_gently();
    }

    /// One call goes first.
    pub(crate) fn start_gently(&mut self) {
        self.ramp = Some(1);
    }
}
