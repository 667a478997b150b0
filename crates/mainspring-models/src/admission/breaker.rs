//! The circuit breaker of a channel: leaves a server alone that fails.
//!
//! | state | on | becomes |
//! |---|---|---|
//! | closed | enough failures, as a share of the calls of the last minute | open |
//! | open | its time is up | half open |
//! | half open | a call is let in | half open, probing |
//! | half open, probing | the call succeeds | closed |
//! | half open, probing | the call fails | open, for twice as long |
//! | half open, probing | the call is dropped | half open |

use std::time::Duration;

use tokio::time::Instant;

use super::limits::AdmissionLimits;

const SLOT: Duration = Duration::from_secs(6);
const SLOTS: usize = 10;

/// Counts what became of calls, and says whether another may be made.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// How often it has opened since a call last succeeded.
    opened: u32,
    /// How long it was opened for the last time.
    open_for: Duration,
    began: Instant,
    newest: u64,
    slots: [Counts; SLOTS],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { probing: bool },
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    calls: u32,
    failures: u32,
}

/// What a breaker says to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// It may be made.
    Closed,
    /// It may be made, as the one that finds out.
    Probe,
    /// It may not; a time at which that may be different.
    Open(Instant),
}

impl Breaker {
    pub(crate) fn new(now: Instant) -> Self {
        let slots = [Counts::default(); SLOTS];
        Self {
            state: State::Closed,
            opened: 0,
            open_for: Duration::ZERO,
            began: now,
            newest: 0,
            slots,
        }
    }

    pub(crate) fn gate(&mut self, now: Instant) -> Gate {
        if matches!(self.state, State::Open { until } if until <= now) {
            self.state = State::HalfOpen { probing: false };
        }
        match self.state {
            State::Closed => Gate::Closed,
            State::Open { until } => Gate::Open(until),
            State::HalfOpen { probing: false } => Gate::Probe,
            // The probe decides, and nobody knows when.
            State::HalfOpen { probing: true } => Gate::Open(now + self.open_for),
        }
    }

    /// A call is made; true if it is the probe.
    pub(crate) fn begin(&mut self) -> bool {
        let is_probe = self.state == State::HalfOpen { probing: false };
        if is_probe {
            self.state = State::HalfOpen { probing: true };
        }
        is_probe
    }

    /// A call succeeded; true if that closed the breaker.
    pub(crate) fn succeeded(&mut self, now: Instant) -> bool {
        self.count(now, 0);
        let closes = matches!(self.state, State::HalfOpen { .. });
        if closes {
            self.state = State::Closed;
            self.slots = [Counts::default(); SLOTS];
        }
        if self.state == State::Closed {
            self.opened = 0;
        }
        closes
    }

    /// A call failed; true if that opened the breaker.
    pub(crate) fn failed(
        &mut self,
        now: Instant,
        is_probe: bool,
        limits: &AdmissionLimits,
    ) -> bool {
        self.count(now, 1);
        let (calls, failures) = self.sums();
        let too_many = calls >= limits.breaker_count_min
            && f64::from(failures) >= f64::from(calls) * limits.breaker_share;
        match self.state {
            State::Closed if too_many => self.open(now, limits),
            State::HalfOpen { .. } if is_probe => self.open(now, limits),
            _ => return false,
        }
        true
    }

    /// Opens at once: the server said that no call of this key will succeed.
    pub(crate) fn trip(&mut self, now: Instant, limits: &AdmissionLimits) {
        self.opened = u32::MAX;
        self.open(now, limits);
    }

    /// Opens for so long, whatever else was seen: the server said when it can be asked again.
    pub(crate) fn leave(&mut self, now: Instant, wait: Duration) {
        self.open_for = wait;
        self.state = State::Open { until: now + wait };
    }

    /// The probe was dropped without an outcome.
    pub(crate) fn probe_dropped(&mut self) {
        if self.state == (State::HalfOpen { probing: true }) {
            self.state = State::HalfOpen { probing: false };
        }
    }

    /// The state's name, for reports.
    pub(crate) fn name(&self, now: Instant) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { until } if until > now => "open",
            State::Open { .. } | State::HalfOpen { .. } => "half_open",
        }
    }

    fn open(&mut self, now: Instant, limits: &AdmissionLimits) {
        let doubled = limits.breaker_open.saturating_mul(1 << self.opened.min(16));
        self.opened = self.opened.saturating_add(1);
        self.open_for = doubled.min(limits.breaker_open_max);
        self.state = State::Open { until: now + self.open_for };
    }

    fn count(&mut self, now: Instant, failures: u32) {
        let newest = now.saturating_duration_since(self.began).as_secs() / SLOT.as_secs();
        for slot in (self.newest + 1..=newest).take(SLOTS) {
            self.slots[(slot % SLOTS as u64) as usize] = Counts::default();
        }
        if newest > self.newest + SLOTS as u64 {
            self.slots = [Counts::default(); SLOTS];
        }
        self.newest = self.newest.max(newest);
        let slot = &mut self.slots[(self.newest % SLOTS as u64) as usize];
        slot.calls = slot.calls.saturating_add(1);
        slot.failures = slot.failures.saturating_add(failures);
    }

    fn sums(&self) -> (u32, u32) {
        self.slots.iter().fold((0_u32, 0_u32), |(calls, failures), slot| {
            (calls.saturating_add(slot.calls), failures.saturating_add(slot.failures))
        })
    }
}
