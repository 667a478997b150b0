//! The sessions that this journal's process owns, by key. There is no lease: a process that writes
//! a file is the only one, so this set is all there is to know.
//!
//! A session enters the set before the commit that makes it this process's, and leaves it after
//! the one that gives it up: in between nobody else can claim it.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Default)]
pub(super) struct Owned {
    keys: Mutex<HashSet<i64>>,
}

/// A session's key, and whether an append leaves the session owned.
pub(super) type Change = (i64, bool);

impl Owned {
    /// The set itself, for a claim: nothing enters or leaves meanwhile.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashSet<i64>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a commit: what may enter enters. Returns what was not in before.
    pub(super) fn enter(&self, changes: &[Change]) -> Vec<i64> {
        let mut keys = self.lock();
        let entering = changes.iter().filter(|(_, owned)| *owned);
        entering.map(|&(key, _)| key).filter(|&key| keys.insert(key)).collect()
    }

    /// After a commit: every session is as its last append has left it.
    pub(super) fn settle(&self, changes: &[Change]) {
        let mut keys = self.lock();
        for &(key, owned) in changes {
            let _ = if owned { keys.insert(key) } else { keys.remove(&key) };
        }
    }

    /// Takes sessions out.
    pub(super) fn leave(&self, leaving: &[i64]) {
        let mut keys = self.lock();
        for key in leaving {
            keys.remove(key);
        }
    }
}
