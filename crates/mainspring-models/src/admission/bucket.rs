//! What may be used in any minute, of requests or of tokens.
//!
//! Two rules hold together. A token bucket spreads use over the minute and lets a short burst
//! through; a sliding window sees that no minute, wherever it begins, holds more than the limit. So
//! a server is satisfied whether it counts by a bucket, by a sliding or by a fixed window.

use std::time::Duration;

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
/// How much of the minute's limit may be used at once, in seconds' worth of it.
const BURST_S: f64 = 5.0;
/// A slot of the window; what is used counts for up to one slot longer than a minute.
const SLOT: Duration = Duration::from_millis(250);
const SLOTS: usize = (MINUTE.as_millis() / SLOT.as_millis()) as usize + 1;
/// Limits of a minute that are believed when a server names them.
const LEARNT: std::ops::RangeInclusive<u64> = 1..=1_000_000_000_000;

/// Requests or tokens of one channel.
#[derive(Debug)]
pub(crate) struct Bucket {
    configured: Option<u64>,
    learnt: Option<u64>,
    level: f64,
    /// When `level` was true.
    at: Instant,
    window: Window,
    /// What others have used of the same key, so far as the server's headers told.
    others: f64,
}

/// What a use was when it began, to understand later what the server says of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    amount: f64,
    at: Instant,
    level: f64,
    others: f64,
}

impl Bucket {
    pub(crate) fn new(configured: Option<u64>, now: Instant) -> Self {
        let mut bucket = Self {
            configured,
            learnt: None,
            level: 0.0,
            at: now,
            window: Window::new(now),
            others: 0.0,
        };
        bucket.level = bucket.burst();
        bucket
    }

    /// The limit in force.
    pub(crate) fn limit(&self) -> Option<u64> {
        match (self.configured, self.learnt) {
            (Some(configured), Some(learnt)) => Some(configured.min(learnt)),
            (configured, learnt) => configured.or(learnt),
        }
    }

    /// Takes over what an agent says; the smallest of what several say holds.
    pub(crate) fn configure(&mut self, limit: Option<u64>) {
        let Some(limit) = limit else { return };
        if self.configured.is_none_or(|known| limit < known) {
            let was_free = self.limit().is_none();
            self.configured = Some(limit);
            self.level = if was_free { self.burst() } else { self.level.min(self.burst()) };
        }
    }

    /// When `amount` may be used, `after` what waits before it: at once if that is not after `now`.
    pub(crate) fn ready_at(&mut self, now: Instant, amount: f64, after: f64) -> Instant {
        let Some(limit) = self.limit() else { return now };
        self.fill(now);
        let rate = limit as f64 / MINUTE.as_secs_f64();
        // More than the bucket holds is let through when it is full, and leaves a debt.
        let need = after + amount.min(self.burst()) - self.level;
        let by_level = match need > 1e-9 {
            true => now + seconds(need / rate),
            false => now,
        };
        // A whole minute's worth waits for an empty window, and more than that as well.
        let room = limit as f64 - amount.min(limit as f64);
        by_level.max(self.window.ready_at(now, room - after))
    }

    /// Uses `amount`, whether it may be used or not.
    pub(crate) fn take(&mut self, now: Instant, amount: f64) -> Used {
        self.fill(now);
        self.level -= amount;
        self.window.add(now, now, amount);
        Used { amount, at: now, level: self.level, others: self.others }
    }

    /// What was used in fact.
    pub(crate) fn correct(&mut self, now: Instant, used: Used, amount: f64) {
        self.fill(now);
        let more = amount - used.amount;
        self.level = (self.level - more).min(self.burst());
        self.window.add(now, used.at, more);
    }

    /// Hears from the server what its limit is, and what remained when it had counted `used`.
    pub(crate) fn hear(
        &mut self,
        now: Instant,
        used: Used,
        limit: Option<u64>,
        remaining: Option<u64>,
    ) {
        self.fill(now);
        if let Some(limit) = limit.filter(|limit| LEARNT.contains(limit)) {
            let was_free = self.limit().is_none();
            self.learnt = Some(limit);
            self.level = if was_free { self.burst() } else { self.level.min(self.burst()) };
        }
        let (Some(limit), Some(remaining)) = (self.limit(), remaining) else { return };
        // What is missing beside our own use was used by others. Calls that were under way at the
        // same time tell of the same use, so what has been taken off since does not count again.
        let remaining = remaining.min(limit) as f64;
        let missing = used.level.floor() - remaining - (self.others - used.others);
        if missing > 0.0 {
            self.others += missing;
            self.level -= missing;
        }
    }

    /// The server said that nothing is left.
    pub(crate) fn empty(&mut self, now: Instant) {
        self.fill(now);
        self.level = self.level.min(0.0);
    }

    fn fill(&mut self, now: Instant) {
        let gone = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        if let Some(limit) = self.limit() {
            let gained = gone.as_secs_f64() * limit as f64 / MINUTE.as_secs_f64();
            self.level = (self.level + gained).min(self.burst());
        } else {
            self.level = 0.0;
        }
    }

    fn burst(&self) -> f64 {
        let limit = self.limit().unwrap_or(0) as f64;
        (limit * BURST_S / MINUTE.as_secs_f64()).max(1.0)
    }
}

/// What was used in the last minute, slot by slot.
#[derive(Debug)]
struct Window {
    began: Instant,
    /// Number of the newest slot since `began`.
    newest: u64,
    slots: Box<[f64; SLOTS]>,
    sum: f64,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { began: now, newest: 0, slots: Box::new([0.0; SLOTS]), sum: 0.0 }
    }

    fn slot_of(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.began).as_millis() / SLOT.as_millis()) as u64
    }

    fn advance(&mut self, now: Instant) {
        let newest = self.slot_of(now);
        if newest <= self.newest {
            return;
        }
        if newest - self.newest >= SLOTS as u64 {
            self.slots.fill(0.0);
            self.sum = 0.0;
        } else {
            for slot in self.newest + 1..=newest {
                self.slots[(slot % SLOTS as u64) as usize] = 0.0;
            }
            // Added up anew: what rounding leaves behind would grow for ever.
            self.sum = self.slots.iter().sum();
        }
        self.newest = newest;
    }

    /// Adds what was used at a time, if that is less than a minute ago.
    fn add(&mut self, now: Instant, at: Instant, amount: f64) {
        self.advance(now);
        let slot = self.slot_of(at);
        if self.newest - slot.min(self.newest) < SLOTS as u64 {
            self.slots[(slot % SLOTS as u64) as usize] += amount;
            self.sum += amount;
        }
    }

    /// When no more than `room` will have been used in the minute before.
    fn ready_at(&mut self, now: Instant, room: f64) -> Instant {
        self.advance(now);
        let mut sum = self.sum;
        if sum <= room + 1e-6 {
            return now;
        }
        let oldest = (self.newest + 1).saturating_sub(SLOTS as u64);
        for slot in oldest..=self.newest {
            sum -= self.slots[(slot % SLOTS as u64) as usize];
            if sum <= room + 1e-6 {
                return self.began + SLOT * u32::try_from(slot + SLOTS as u64).unwrap_or(u32::MAX);
            }
        }
        // What waits is more than a minute's worth: the window has nothing to add to the bucket.
        now + MINUTE
    }
}

/// A time span, at most a day long whatever the number.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0))
}
