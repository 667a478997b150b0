//! What the writer does between two commits of appends, for callers that wait: prunings, a few
//! sessions at a time, and compactions.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::prune::Pruning;
use crate::error::JournalError;
use crate::{CompactReport, PruneReport};

/// One piece of work, and where its result goes. A job that is dropped tells its caller that the
/// journal is closed.
pub(super) enum Job {
    Prune(Box<Pruning>, Sender<Result<PruneReport, JournalError>>),
    Compact(Sender<Result<CompactReport, JournalError>>),
}

/// The jobs that wait, oldest first.
pub(super) struct Jobs {
    /// `None` once nobody takes them out any more.
    waiting: Mutex<Option<VecDeque<Job>>>,
}

impl Jobs {
    /// No jobs yet.
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::new(Some(VecDeque::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<Job>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a job in; nothing will come back if the jobs have ended.
    pub(super) fn push<T>(
        &self,
        job: impl FnOnce(Sender<Result<T, JournalError>>) -> Job,
    ) -> Receiver<Result<T, JournalError>> {
        let (sender, receiver) = channel();
        if let Some(waiting) = self.lock().as_mut() {
            waiting.push_back(job(sender));
        }
        receiver
    }

    /// Takes the oldest out.
    pub(super) fn pop(&self) -> Option<Job> {
        self.lock().as_mut().and_then(VecDeque::pop_front)
    }

    /// Drops what waits and whatever comes.
    pub(super) fn end(&self) {
        *self.lock() = None;
    }
}
