//! How long first tokens take: a histogram that forgets.
//!
//! Buckets grow by a fifth, from a tenth of a millisecond to more than an hour, so a quantile is
//! right to a fifth. Old times fade: when there are enough, all counts are halved.

const BUCKETS: usize = 100;
const FIRST_US: f64 = 100.0;
const GROWTH: f64 = 1.2;
const HALVE_AT: u32 = 2_048;

/// Times that were seen.
#[derive(Debug)]
pub(crate) struct Quantiles {
    counts: Box<[u16; BUCKETS]>,
    total: u32,
    seen: u32,
}

impl Quantiles {
    pub(crate) fn new() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, seen: 0 }
    }

    pub(crate) fn add(&mut self, us: u64) {
        let steps = (us as f64 / FIRST_US).max(1.0).ln() / GROWTH.ln();
        self.counts[(steps.ceil() as usize).min(BUCKETS - 1)] += 1;
        self.total += 1;
        self.seen = self.seen.saturating_add(1);
        if self.total >= HALVE_AT {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().map(|count| u32::from(*count)).sum();
        }
    }

    /// How many times were seen, ever.
    pub(crate) fn seen(&self) -> u32 {
        self.seen
    }

    /// The time that this share of the calls stayed below, in microseconds; none if none was seen.
    pub(crate) fn at(&self, share: f64) -> Option<u64> {
        let wanted = (f64::from(self.total) * share).ceil().max(1.0) as u32;
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += u32::from(*count);
            below >= wanted
        })?;
        Some((FIRST_US * GROWTH.powi(bucket as i32)) as u64)
    }
}
