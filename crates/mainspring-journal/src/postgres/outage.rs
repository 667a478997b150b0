//! How long a piece of work is tried again while the store cannot be reached.

use std::time::{Duration, Instant};

use super::link::Trouble;

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// One try gets this part of the time, so that a connection that has gone silent is noticed while
/// there is time for another.
const TRIES_MIN: u32 = 4;

/// A limit of centuries is none.
const LENGTH_MAX: Duration = Duration::from_secs(365 * 86_400);

/// The tries of one piece of work.
#[derive(Clone, Copy)]
pub(super) struct Outage {
    length: Duration,
    ends: Instant,
    pause: Duration,
}

impl Outage {
    /// Work that begins now.
    pub(super) fn new(length: Duration) -> Self {
        let length = length.min(LENGTH_MAX);
        Self { length, ends: Instant::now() + length, pause: PAUSE_MIN }
    }

    /// How long one try may take.
    pub(super) fn attempt(&self) -> Duration {
        self.length / TRIES_MIN
    }

    /// How much time is left in all.
    pub(super) fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Waits before the next try, longer each time.
    ///
    /// # Errors
    /// The trouble itself, if another try does not help or comes too late.
    pub(super) fn wait_after(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        if matches!(trouble, Trouble::Refused(_)) || self.left() < self.pause {
            return Err(trouble);
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}
