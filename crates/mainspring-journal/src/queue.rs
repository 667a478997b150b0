//! What waits to be written. Taking in never waits for the disk; the writer takes out as much as
//! one commit may hold. Once ended, everything that comes is refused.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::Append;
use crate::delivery;
use crate::error::JournalError;
use crate::limits::JournalLimits;

/// See the module.
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

struct State {
    waiting: VecDeque<Append>,
    waiting_bytes: usize,
    writer_waits: bool,
    /// Whether the writer has something else to do.
    woken: bool,
    /// What later appends are refused with.
    ended: Option<JournalError>,
}

impl Queue {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            writer_waits: false,
            woken: false,
            ended: None,
        };
        Self { state: Mutex::new(state), arrived: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an append in, or answers it with a refusal.
    pub(crate) fn push(&self, append: Append, limits: &JournalLimits) {
        let bytes = append.bytes();
        let mut state = self.lock();
        let refusal = match &state.ended {
            Some(error) => Some(error.clone()),
            None if state.waiting.is_empty() => None,
            None => {
                let total = state.waiting_bytes.saturating_add(bytes);
                let max = limits.queue_bytes_max;
                (total > max).then(|| JournalError::overloaded(state.waiting_bytes, max))
            }
        };
        if let Some(error) = refusal {
            drop(state);
            return delivery::answer(append, Err(error));
        }
        state.waiting_bytes += bytes;
        state.waiting.push_back(append);
        let wake = std::mem::take(&mut state.writer_waits);
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
    }

    /// Waits for appends and takes out what one commit may hold: at least one, unless the queue was
    /// woken. `None` once the queue has ended and is empty.
    pub(crate) fn take(&self, limits: &JournalLimits) -> Option<Vec<Append>> {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            if state.ended.is_some() {
                return None;
            }
            if state.woken {
                break;
            }
            state.writer_waits = true;
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.woken = false;
        let mut batch = Vec::new();
        let (mut events, mut bytes) = (0_u64, 0_usize);
        while let Some(next) = state.waiting.front() {
            events += u64::from(next.count);
            bytes += next.bytes();
            let full =
                events > u64::from(limits.batch_events_max) || bytes > limits.batch_bytes_max;
            if full && !batch.is_empty() {
                break;
            }
            state.waiting_bytes -= next.bytes();
            batch.extend(state.waiting.pop_front());
        }
        Some(batch)
    }

    /// Makes the next taking out return at once, even with nothing.
    pub(crate) fn wake(&self) {
        let mut state = self.lock();
        state.woken = true;
        state.writer_waits = false;
        drop(state);
        self.arrived.notify_one();
    }

    /// Refuses everything that comes from now on. What waits is still taken out.
    pub(crate) fn end(&self, error: JournalError) {
        let mut state = self.lock();
        state.ended.get_or_insert(error);
        state.writer_waits = false;
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes out everything, for a writer that cannot go on.
    pub(crate) fn drain(&self) -> Vec<Append> {
        let mut state = self.lock();
        state.waiting_bytes = 0;
        state.waiting.drain(..).collect()
    }
}
