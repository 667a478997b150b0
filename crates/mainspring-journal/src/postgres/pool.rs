//! The connections beside the writer's and the lease's: for reads, and for the few writes that are
//! no appends. They are made when they are needed, and their number is bounded.
//!
//! Invariant: a piece of work is tried again on a new connection until it is done or the store has
//! been away for as long as its limit allows. So work must be such that doing it twice does no
//! harm; where that takes care, the work itself takes it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::link::{Link, Trouble};
use super::outage::Outage;
use super::place::Place;
use crate::error::JournalError;

/// See the module.
pub(super) struct Pool {
    place: Arc<Place>,
    links_max: usize,
    outage: Duration,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Link>,
    made: usize,
    closed: bool,
}

impl Pool {
    /// A pool that begins with one connection.
    pub(super) fn new(place: Arc<Place>, links_max: u32, outage: Duration, first: Link) -> Self {
        let state = State { idle: vec![first], made: 1, closed: false };
        Self {
            place,
            links_max: links_max.max(1) as usize,
            outage,
            state: Mutex::new(state),
            freed: Condvar::new(),
        }
    }

    /// Does a piece of work; see the module.
    pub(super) fn run<T: Send>(
        &self,
        doing: &str,
        work: impl FnMut(&mut Link) -> Result<T, Trouble> + Send,
    ) -> Result<T, JournalError> {
        apart(|| self.run_here(doing, work))
    }

    fn run_here<T>(
        &self,
        doing: &str,
        mut work: impl FnMut(&mut Link) -> Result<T, Trouble>,
    ) -> Result<T, JournalError> {
        let mut outage = Outage::new(self.outage);
        loop {
            let mut taken = self.take()?;
            let done = taken.link(&self.place, &outage).and_then(&mut work);
            drop(taken);
            match done {
                Ok(value) => return Ok(value),
                Err(trouble) => outage
                    .wait_after(trouble)
                    .map_err(|trouble| trouble.into_error(&self.place.name, doing))?,
            }
        }
    }

    /// Ends every connection; what is under way ends first.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        self.freed.notify_all();
        for link in idle {
            link.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Result<Taken<'_>, JournalError> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(JournalError::closed(&self.place.name));
            }
            let link = state.idle.pop();
            if link.is_some() || state.made < self.links_max {
                state.made += usize::from(link.is_none());
                return Ok(Taken { pool: self, link });
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The right to one connection.
struct Taken<'a> {
    pool: &'a Pool,
    link: Option<Link>,
}

impl Taken<'_> {
    fn link(&mut self, place: &Place, outage: &Outage) -> Result<&mut Link, Trouble> {
        let within = outage.attempt();
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::connect(place, within)?,
        };
        link.allow(within);
        Ok(self.link.insert(link))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        match self.link.take() {
            Some(link) if link.is_sound() && !state.closed => state.idle.push(link),
            link => {
                state.made -= 1;
                drop(link);
            }
        }
        drop(state);
        self.pool.freed.notify_one();
    }
}

/// Does work that uses connections, on a thread where that is allowed: one that runs a runtime of
/// its own must not wait within another.
pub(super) fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if tokio::runtime::Handle::try_current().is_err() {
        return work();
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
