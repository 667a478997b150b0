//! The right to make one call on one channel, and the duty to say how it ended.

use std::sync::Arc;
use std::time::Duration;

use mainspring_session::Failure;
use tokio::time::Instant;

use super::channel::Ended;
use super::headers::Rates;
use super::state::Placed;
use super::{Admission, ModelRequest};
use crate::endpoint_set::EndpointSet;

/// A call that may be made. Dropped without a word, it counts as given up.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    endpoints: Arc<EndpointSet>,
    placed: Placed,
    queued: Duration,
    is_open: bool,
}

impl Permit {
    pub(super) fn new(
        admission: &Arc<Admission>,
        request: &ModelRequest,
        placed: Placed,
        queued: Duration,
    ) -> Self {
        let endpoints = Arc::clone(&request.endpoints);
        Self { admission: Arc::clone(admission), endpoints, placed, queued, is_open: true }
    }

    /// Which endpoint of the set is to be called.
    pub(crate) fn endpoint_idx(&self) -> usize {
        self.placed.member
    }

    /// How long the call waited for its turn.
    pub(crate) fn queued(&self) -> Duration {
        self.queued
    }

    pub(super) fn placed(&self) -> &Placed {
        &self.placed
    }

    /// Passes on what an answer's headers say of limits.
    pub(crate) fn hear(&self, rates: &Rates) {
        self.admission.lock().hear(Instant::now(), &self.placed, rates);
    }

    /// Whether others wait for what the answer's headers say, or that they say nothing.
    pub(crate) fn is_scout(&self) -> bool {
        self.placed.begun.is_scout
    }

    /// Says how the call ended.
    pub(crate) fn end(mut self, ended: &Ended<'_>) {
        self.is_open = false;
        self.admission.lock().end(Instant::now(), &self.placed, ended, &self.endpoints);
    }

    /// Says that the call failed; true if another endpoint of the model could take it now.
    pub(crate) fn fail(
        mut self,
        failure: &Failure,
        retry_after_ms: Option<u64>,
        is_overload: bool,
    ) -> bool {
        self.is_open = false;
        let ended = Ended::Failed { failure, retry_after_ms, is_overload };
        let now = Instant::now();
        let mut state = self.admission.lock();
        state.end(now, &self.placed, &ended, &self.endpoints);
        state.has_other(now, &self.placed, &self.endpoints)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_open {
            let mut state = self.admission.lock();
            state.end(Instant::now(), &self.placed, &Ended::Dropped, &self.endpoints);
        }
    }
}
