//! Deadlines of one shard: a heap with lazy removal, so that setting one costs no allocation and
//! dropping one costs nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokio::time::Instant;

use crate::host::Ticket;
use crate::live::Key;

/// What happens at a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A session waited for this time, in microseconds since the epoch.
    Wake(Key, i64),
    /// A job has run as long as it may.
    Job(u64),
    /// A session's turn has taken as long as it may; the number says which turn.
    Turn(Key, u64),
    /// The lease must be looked at again, for what waits for it.
    Hold,
    /// Sessions without an owner may be claimed.
    Claim,
    /// Sessions that run elsewhere must be looked at, for those who follow them.
    Follow,
    /// A drain's time is up.
    Drain,
    /// What could not be let go of in the store is tried again.
    Release,
}

impl Timer {
    pub(crate) fn job(ticket: Ticket) -> Self {
        Timer::Job(ticket.0)
    }
}

/// The deadlines, soonest first.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Timer)>>,
    compact_at: usize,
}

impl Timers {
    const COMPACT_MIN: usize = 4096;

    /// Sets a deadline.
    pub(crate) fn set(&mut self, at: Instant, timer: Timer) {
        self.heap.push(Reverse((at, timer)));
    }

    /// The next deadline, stale or not.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the next timer that is due.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Timer> {
        let Reverse((at, _)) = self.heap.peek()?;
        if *at > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, timer))| timer)
    }

    /// Drops stale timers once they may be the greater part, so that the heap stays in proportion
    /// to what is alive.
    pub(crate) fn compact(&mut self, alive: impl Fn(&Timer) -> bool) {
        if self.heap.len() < self.compact_at.max(Self::COMPACT_MIN) {
            return;
        }
        self.heap.retain(|Reverse((_, timer))| alive(timer));
        self.compact_at = self.heap.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stale_timers_do_not_pile_up() {
        let mut timers = Timers::default();
        let now = Instant::now();
        for number in 0..100_000 {
            timers.set(now + Duration::from_secs(3600), Timer::Job(number));
            timers.compact(|timer| matches!(timer, Timer::Job(job) if *job + 10 > number));
        }
        assert!(timers.heap.len() <= 2 * Timers::COMPACT_MIN, "{}", timers.heap.len());
    }
}
