//! Extra calls as a share of ordinary ones: retries, and hedges.

use tokio::time::Instant;

/// Most that is saved up, in extra calls.
const SAVED_MAX: f64 = 200.0;
/// Extra calls a second that come back to a reserve.
const RESERVE_PER_S: f64 = 5.0;

/// What is left of an allowance.
#[derive(Debug)]
pub(crate) struct Allowance {
    share: f64,
    reserve: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    pub(crate) fn new(share: f64, reserve: f64, now: Instant) -> Self {
        Self { share, reserve, left: reserve, at: now }
    }

    /// An ordinary call was made.
    pub(crate) fn earn(&mut self) {
        self.left = (self.left + self.share).min(SAVED_MAX.max(self.reserve));
    }

    /// Whether an extra call may be made now.
    pub(crate) fn has(&mut self, now: Instant) -> bool {
        let gone = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        if self.left < self.reserve {
            self.left = (self.left + gone * RESERVE_PER_S).min(self.reserve);
        }
        // A share added up many times is a little less than the whole.
        self.left >= 1.0 - 1e-9
    }

    /// An extra call is made.
    pub(crate) fn spend(&mut self) {
        self.left = (self.left - 1.0).max(0.0);
    }

    /// It was not made after all.
    pub(crate) fn give_back(&mut self) {
        self.left += 1.0;
    }
}
