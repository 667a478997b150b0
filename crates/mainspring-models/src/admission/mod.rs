//! Admission: which call may be made when, and with which key.
//!
//! All calls of an engine pass through one [`Admission`]. What belongs together in limits and health
//! is a channel: one key of one model at one server. A call chooses a channel of its model, goes at
//! once if that is ready and nobody waits there, and otherwise waits in the channel's queue, where
//! tenants take turns. A waiting call is nothing but its future. The one that leads the queue keeps
//! the time for all: when it wakes, or when a call ends, everybody who can go is let in.
//!
//! One lock guards everything and is held for well under a microsecond, except where many waiting
//! calls move to other channels at once. Time is tokio's, so that tests can stop it. Reading starts
//! at [`Admission::admit`]; `state.rs` and `turns.rs` hold
//! what is decided under the lock.

mod allowance;
mod breaker;
mod bucket;
mod channel;
mod headers;
mod limits;
mod pace;
mod permit;
mod quantiles;
mod queue;
mod refusal;
mod report;
mod state;
mod turns;
mod wait;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainspring_session::{ErrorCode, Failure};
use mainspring_wire::HttpFailure;
use tokio::time::Instant;

use crate::client::ModelRequest;
use crate::endpoint_set::EndpointSet;

pub(crate) use channel::Ended;
pub(crate) use headers::Rates;
pub use limits::AdmissionLimits;
pub(crate) use permit::Permit;
pub use report::{ChannelReport, Readiness};
use state::{Caller, Entry, State};
use wait::Waiting;

/// Decides when calls may be made; shared by all that call models in one engine.
#[derive(Debug)]
pub struct Admission {
    state: Mutex<State>,
}

impl Admission {
    /// Knows nothing of any model yet.
    ///
    /// # Errors
    /// `agent_invalid` if a limit is zero, or a share is not between 0 and 1.
    pub fn new(limits: AdmissionLimits) -> Result<Arc<Self>, Failure> {
        let counts = [limits.queue_max, limits.channels_max, limits.concurrency_max as usize];
        if counts.contains(&0) {
            let message = "a limit of admission is 0, at least 1 is needed";
            return Err(Failure::new(ErrorCode::AGENT_INVALID, message));
        }
        let shares = [limits.breaker_share, limits.retry_share, limits.hedge_share];
        if let Some(share) = shares.iter().find(|share| !(0.0..=1.0).contains(*share)) {
            let message = format!("a share of admission is {share}, must be from 0 to 1");
            return Err(Failure::new(ErrorCode::AGENT_INVALID, message));
        }
        Ok(Arc::new(Self { state: Mutex::new(State::new(limits)) }))
    }

    /// Waits until the call may be made. Dropping the future gives the place up.
    ///
    /// # Errors
    /// `model_unavailable` if no endpoint may be asked at all, `model_overloaded` if too many wait
    /// or the call cannot have its turn before its deadline.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        request: &ModelRequest,
    ) -> Result<Permit, HttpFailure> {
        let now = Instant::now();
        let entry = self.lock().enter(now, Caller::of(request))?;
        match entry {
            Entry::Admitted(placed) => Ok(Permit::new(self, request, placed, Duration::ZERO)),
            Entry::Waits(number) => {
                let waiting = Box::pin(Waiting::new(self, number, request.deadline));
                let placed = waiting.await?;
                Ok(Permit::new(self, request, placed, now.elapsed()))
            }
        }
    }

    /// A permit for a second call beside one that has one, if that may be made at once.
    pub(crate) fn hedge(
        self: &Arc<Self>,
        request: &ModelRequest,
        first: &Permit,
    ) -> Option<Permit> {
        let now = Instant::now();
        let placed = self.lock().hedge(now, Caller::of(request), first.placed())?;
        Some(Permit::new(self, request, placed, Duration::ZERO))
    }

    /// When the first token of a call is late; none where that cannot be told yet.
    pub(crate) fn late_after(&self, permit: &Permit) -> Option<Duration> {
        self.lock().late_after(permit.placed())
    }

    /// How soon a model could take a call. Takes a microsecond, and changes nothing.
    pub fn readiness(&self, endpoints: &EndpointSet) -> Readiness {
        self.lock().readiness(Instant::now(), endpoints)
    }

    /// What is known of every key of every model, in the order of their first use.
    pub fn report(&self) -> Vec<ChannelReport> {
        self.lock().report(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
