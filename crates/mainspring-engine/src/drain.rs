//! Shutting down without cutting anything short: nothing new is begun, each session is let go of
//! between two steps, and another process can take it up at once.

use mainspring_session::{ErrorCode, Failure, Phase};
use tokio::time::Instant;

use crate::live::{Key, Live};
use crate::mail::{DrainReport, Reply};
use crate::shard::Shard;
use crate::timers::Timer;

/// A drain under way.
pub(crate) struct Draining {
    report: DrainReport,
    reply: Option<Reply<DrainReport>>,
    over: bool,
}

impl Shard {
    /// Begins to drain, until the time is up at the latest.
    pub(crate) fn drain(&mut self, deadline: Instant, reply: Reply<DrainReport>) {
        if self.draining.is_some() {
            return reply(Err(draining()));
        }
        let report = DrainReport::default();
        self.draining = Some(Draining { report, reply: Some(reply), over: false });
        self.timers.set(deadline, Timer::Drain);
        for key in self.all_keys() {
            let between = self.lives.get(&key).is_some_and(|live| {
                let quiet = live.pending.is_none() && live.inbox.is_empty();
                quiet && matches!(live.state.phase, Phase::Backoff(..))
            });
            if between {
                self.park(key);
            }
        }
    }

    /// Lets go of a session that is between two steps.
    pub(crate) fn park(&mut self, key: Key) {
        if let Some(draining) = &mut self.draining {
            draining.report.parked += 1;
        }
        self.let_go(key);
    }

    fn let_go(&mut self, key: Key) {
        if let Some(live) = self.lives.get(&key) {
            self.releasing.push(live.id.clone());
        }
        self.abandon(key, &draining());
    }

    /// Counts a session that came to its end, or to a rest, during a drain.
    pub(crate) fn count_drained(&mut self, live: &Live) {
        if let Some(draining) = &mut self.draining {
            match live.state.is_open() {
                true => draining.report.parked += 1,
                false => draining.report.finished += 1,
            }
        }
    }

    /// The time is up: what still runs is dropped, and can be resumed.
    pub(crate) fn end_drain(&mut self) {
        let keys = self.all_keys();
        if let Some(draining) = &mut self.draining {
            draining.over = true;
            draining.report.cut += keys.len() as u64;
        }
        for key in keys {
            self.let_go(key);
        }
    }

    /// Answers a drain once nothing is left.
    pub(crate) fn report_drain(&mut self) {
        let nothing_left = self.lives.is_empty() && self.loading.is_empty();
        let Some(draining) = &mut self.draining else { return };
        if !(nothing_left || draining.over) || !self.releasing.is_empty() {
            return;
        }
        if let Some(reply) = draining.reply.take() {
            let report = draining.report;
            // After the releases that were handed in before: the loader works in order.
            self.config.loader.run(move |_| reply(Ok(report)));
        }
    }

    /// Refuses what begins something new during a drain.
    pub(crate) fn refuse_while_draining(&self) -> Result<(), Failure> {
        match self.draining {
            Some(_) => Err(draining()),
            None => Ok(()),
        }
    }
}

/// The error for what a drain refuses or lets go of.
pub(crate) fn draining() -> Failure {
    Failure::new(ErrorCode::ENGINE_DRAINING, "the engine is shutting down")
        .with_hint("the session's log is kept: another engine of the store can go on with it")
}
