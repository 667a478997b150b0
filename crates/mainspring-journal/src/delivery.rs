//! Hands results back: every append that was taken gets exactly one result, whatever a sink does.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::JournalError;
use crate::{AckSink, Acked, Append, JournalStats};

/// Tells an append its result.
pub(crate) fn answer(append: Append, result: Result<(), JournalError>) {
    append.sink.acked(vec![Acked { token: append.token, result }]);
}

/// Tells a batch its results, one call for each sink.
///
/// A sink that panics loses this call; the other sinks and the caller go on.
pub(crate) fn answer_batch(
    batch: Vec<Append>,
    results: impl IntoIterator<Item = Result<(), JournalError>>,
) {
    let mut calls: Vec<(Arc<dyn AckSink>, Vec<Acked>)> = Vec::new();
    let mut call_by_sink: HashMap<usize, usize> = HashMap::new();
    for (append, result) in batch.into_iter().zip(results) {
        let acked = Acked { token: append.token, result };
        let address = Arc::as_ptr(&append.sink).cast::<()>().addr();
        let call = *call_by_sink.entry(address).or_insert_with(|| {
            calls.push((append.sink, Vec::new()));
            calls.len() - 1
        });
        calls[call].1.push(acked);
    }
    for (sink, acks) in calls {
        // The panic hook has reported it; what it broke is the sink owner's to mend.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            sink.acked(acks);
            drop(sink);
        }));
    }
}

/// Counts what was stored, from any thread.
#[derive(Default)]
pub(crate) struct Counters {
    commits: AtomicU64,
    appends: AtomicU64,
    events: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    /// Adds one commit.
    pub(crate) fn add(&self, stored: &JournalStats) {
        self.commits.fetch_add(stored.commits, Ordering::Relaxed);
        self.appends.fetch_add(stored.appends, Ordering::Relaxed);
        self.events.fetch_add(stored.events, Ordering::Relaxed);
        self.bytes.fetch_add(stored.bytes, Ordering::Relaxed);
    }

    /// The sums so far.
    pub(crate) fn read(&self) -> JournalStats {
        JournalStats {
            commits: self.commits.load(Ordering::Relaxed),
            appends: self.appends.load(Ordering::Relaxed),
            events: self.events.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

impl JournalStats {
    /// Adds one stored append.
    pub(crate) fn count(&mut self, append: &Append) {
        self.appends += 1;
        self.events += u64::from(append.count);
        self.bytes += append.bytes() as u64;
    }
}
