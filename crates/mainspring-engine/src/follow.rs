//! Waiting for sessions that are not alive here: parked ones that wait for a person, and those that
//! another process runs. Who waits is answered when the session ends, wherever that is.

use std::time::Duration;

use mainspring_journal::{SessionHead, SessionStatus};
use mainspring_session::{ErrorCode, Failure, Seq, SessionId};
use tokio::time::Instant;

use crate::live::{Key, Live};
use crate::loader;
use crate::mail::{Mail, Reply};
use crate::outcome::SessionReport;
use crate::shard::Shard;
use crate::timers::Timer;
use crate::watch::WatchBatch;

/// How often sessions that run elsewhere are looked at.
const EVERY: Duration = Duration::from_millis(200);

/// Somebody who waits for a session.
pub(crate) enum Followed {
    /// For its end.
    End(Reply<SessionReport>),
    /// For what comes at and after a position.
    Events(Seq, Reply<WatchBatch>),
}

impl Shard {
    /// Looks a session up that is not alive here, and answers, or waits.
    pub(crate) fn ask_elsewhere(&self, id: SessionId, who: Followed) {
        let post = self.config.post.clone();
        self.config.loader.run(move |journal| {
            let head = journal.head(&id).map_err(|error| error.failure());
            let _ = post.send(Mail::Found(id, head, who));
        });
    }

    pub(crate) fn found(
        &mut self,
        id: SessionId,
        head: Result<Option<SessionHead>, Failure>,
        who: Followed,
    ) {
        if self.keys.contains_key(&id) || self.loading.contains(&id) {
            return self.wait_for(id, who);
        }
        let head = match head {
            Ok(Some(head)) => head,
            Ok(None) => return who.fail(loader::not_found(&id)),
            Err(error) => return who.fail(error),
        };
        if !self.goes_on_elsewhere(&head) {
            return self.answer_at_rest(id, who);
        }
        match who {
            Followed::Events(from, reply) if head.next_seq > from => {
                self.read_events(&id, from, reply);
            }
            who => self.wait_for(id, who),
        }
    }

    /// Whether a session that is not alive here will go on without anybody here resuming it.
    fn goes_on_elsewhere(&self, head: &SessionHead) -> bool {
        match head.status {
            SessionStatus::Waiting => true,
            SessionStatus::Open => self.config.journal.is_shared() || self.claiming_anywhere(),
            _ => false,
        }
    }

    fn wait_for(&mut self, id: SessionId, who: Followed) {
        if self.config.journal.is_shared() {
            self.follow_on();
        }
        self.followed.entry(id.clone()).or_default().push(who);
        self.follow_here(&id);
    }

    /// Sets the time for the next look at the followed sessions, unless one is due anyway.
    fn follow_on(&mut self) {
        if !self.follow_due {
            self.follow_due = true;
            self.timers.set(Instant::now() + EVERY, Timer::Follow);
        }
    }

    fn answer_at_rest(&self, id: SessionId, who: Followed) {
        self.config.loader.run(move |journal| match who {
            Followed::End(reply) => reply(loader::report(journal, &id)),
            Followed::Events(from, reply) => reply(loader::watch(journal, &id, from, false)),
        });
    }

    /// Hands those who wait over to a session that is alive here now.
    pub(crate) fn follow_here(&mut self, id: &SessionId) {
        if !self.keys.contains_key(id) {
            return;
        }
        for who in self.followed.remove(id).unwrap_or_default() {
            match who {
                Followed::End(reply) => self.wait(id.clone(), reply),
                Followed::Events(from, reply) => self.watch(id.clone(), from, reply),
            }
        }
    }

    /// Keeps those who wait for a session that is no longer alive here but goes on.
    pub(crate) fn follow_elsewhere(&mut self, live: &mut Live) {
        for who in take_followers(live) {
            self.wait_for(live.id.clone(), who);
        }
    }

    /// Drops a session whose append was refused. Where another process may have it now, those who
    /// wait for its end go on waiting.
    pub(crate) fn lose(&mut self, key: Key, error: &Failure) {
        let elsewhere =
            [ErrorCode::JOURNAL_CONFLICT, ErrorCode::LEASE_LOST, ErrorCode::named("session_owned")];
        let Some(live) = self.lives.get_mut(&key) else { return };
        let id = live.id.clone();
        if error.retryable || elsewhere.contains(&error.code) {
            // The store may still say that this process runs it. What cannot help to try again
            // stays here for a person to look at.
            self.releasing.push(id.clone());
        }
        if self.config.journal.is_shared() && elsewhere.contains(&error.code) {
            let all = take_followers(live);
            self.abandon(key, error);
            all.into_iter().for_each(|who| self.ask_elsewhere(id.clone(), who));
            return;
        }
        if error.retryable {
            // Whoever claims sessions may try again: the disk may have room, the store be there.
            self.releasing.push(live.id.clone());
        }
        self.abandon(key, error);
    }

    /// Asks the store how the followed sessions stand.
    pub(crate) fn look_after_followed(&self) {
        let ids: Vec<_> = self.followed.keys().cloned().collect();
        let post = self.config.post.clone();
        self.config.loader.run(move |journal| {
            let heads = ids.into_iter().filter_map(|id| {
                // A store that cannot be read now may be again in a moment.
                let head = journal.head(&id).ok()?;
                Some((id, head))
            });
            let _ = post.send(Mail::Heads(heads.collect()));
        });
    }

    pub(crate) fn looked_after(&mut self, heads: Vec<(SessionId, Option<SessionHead>)>) {
        self.follow_due = false;
        for (id, head) in heads {
            for who in self.followed.remove(&id).unwrap_or_default() {
                self.found(id.clone(), Ok(head.clone()), who);
            }
        }
        if !self.followed.is_empty() {
            self.follow_on();
        }
    }

    /// Tells everybody who still waits that the engine ends.
    pub(crate) fn fail_followed(&mut self, error: &Failure) {
        let all = std::mem::take(&mut self.followed);
        all.into_values().flatten().for_each(|who| who.fail(error.clone()));
    }
}

fn take_followers(live: &mut Live) -> Vec<Followed> {
    let ends = live.waiting.drain(..).map(Followed::End);
    let events = live.watch.take_waiting().into_iter();
    ends.chain(events.map(|(from, reply)| Followed::Events(from, reply))).collect()
}

impl Followed {
    fn fail(self, error: Failure) {
        match self {
            Followed::End(reply) => reply(Err(error)),
            Followed::Events(_, reply) => reply(Err(error)),
        }
    }
}
