//! Which sessions a pruning removes, and what is left of one that forks still share. The same for
//! every store that keeps a fork's first events with its parent.
//!
//! A pruned session with living forks is *retired*: its id is free, nothing finds it any more, and
//! what lies behind its last fork point is gone. It goes when its last fork does.
//!
//! Invariant: sessions are pruned from the newest to the oldest. A fork is newer than its parent,
//! so that one pruning never meets a session again that it has retired.

use crate::{PruneQuery, PruneReport, SessionStatus};

/// Where sessions are kept, by key.
pub(crate) trait Shelf {
    /// Why it may fail.
    type Error;

    /// The largest number of events that a fork shares directly with a session; `None` without
    /// forks.
    fn fork_end(&mut self, key: i64) -> Result<Option<u64>, Self::Error>;

    /// The parent of a fork, if that has been retired.
    fn retired_parent(&mut self, key: i64) -> Result<Option<i64>, Self::Error>;

    /// Frees a session's id and hides it.
    fn retire(&mut self, key: i64) -> Result<(), Self::Error>;

    /// Removes a session's blocks that begin at a position or behind, and its snapshots of more
    /// than that. Returns how many events went.
    fn cut(&mut self, key: i64, end: u64) -> Result<u64, Self::Error>;

    /// Removes all there is of a session. Returns how many events of its own went.
    fn remove(&mut self, key: i64) -> Result<u64, Self::Error>;
}

/// Prunes one session, and the retired ones that only it has kept.
pub(crate) fn prune<S: Shelf>(
    shelf: &mut S,
    key: i64,
    report: &mut PruneReport,
) -> Result<(), S::Error> {
    report.sessions += 1;
    if let Some(end) = shelf.fork_end(key)? {
        report.kept_for_forks += 1;
        report.events += shelf.cut(key, end)?;
        return shelf.retire(key);
    }
    let mut key = key;
    loop {
        let parent = shelf.retired_parent(key)?;
        report.events += shelf.remove(key)?;
        let Some(parent) = parent else { return Ok(()) };
        if let Some(end) = shelf.fork_end(parent)? {
            report.events += shelf.cut(parent, end)?;
            return Ok(());
        }
        key = parent;
    }
}

impl PruneQuery {
    /// Whether a session may be pruned.
    pub(crate) fn matches(&self, status: SessionStatus, updated_us: i64, agent: &str) -> bool {
        let ended = !matches!(status, SessionStatus::Open | SessionStatus::Waiting);
        ended
            && self.statuses.contains(&status)
            && updated_us < self.before_us
            && self.agent.as_deref().is_none_or(|only| only == agent)
    }
}
