//! The heads of the sessions that were written last, so that the fence needs no read.
//!
//! Two generations: when the younger one is full it becomes the older one, and the older one is
//! dropped. So the cache is bounded, and a session in use stays in it.

use std::collections::HashMap;

use mainspring_session::{Epoch, Seq, SessionId};

use crate::SessionStatus;

/// What the writer has to know of a session.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) key: i64,
    pub(super) last_row: i64,
    pub(super) epoch: Epoch,
    pub(super) next_seq: Seq,
    pub(super) status: SessionStatus,
}

/// See the module.
pub(super) struct HeadCache {
    younger: HashMap<SessionId, Head>,
    older: HashMap<SessionId, Head>,
    generation_max: usize,
}

impl HeadCache {
    /// An empty cache that never holds more than `heads_max` heads, or two.
    pub(super) fn new(heads_max: usize) -> Self {
        Self {
            younger: HashMap::new(),
            older: HashMap::new(),
            generation_max: (heads_max / 2).max(1),
        }
    }

    /// The head, if it is here.
    pub(super) fn get(&self, session: &SessionId) -> Option<Head> {
        self.younger.get(session).or_else(|| self.older.get(session)).copied()
    }

    /// Keeps a head; it replaces what was known of the session.
    pub(super) fn put(&mut self, session: &SessionId, head: Head) {
        if let Some(known) = self.younger.get_mut(session) {
            *known = head;
            return;
        }
        if self.younger.len() >= self.generation_max {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(session.clone(), head);
    }

    /// Forgets one session.
    pub(super) fn forget(&mut self, session: &SessionId) {
        self.younger.remove(session);
        self.older.remove(session);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.younger.clear();
        self.older.clear();
    }
}
