//! What the shared store holds: logs, heads, owners, leases. The fence is the journal's own; owners
//! and leases follow the contract of `Journal` as a store that several processes share keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mainspring_journal::fence::{self, ForkPoint};
use mainspring_journal::{
    Append, AppendMode, JournalError, SessionHead, SessionQuery, SessionStatus, Snapshot,
};
use mainspring_session::{
    Amount, BlobHash, Epoch, ErrorCode, Failure, Record, SCHEMA_VERSION, Seq, SessionId,
};
use serde_json::value::RawValue;
use tokio::time::Instant;

/// How long a lease lasts without a beat.
pub(crate) const LEASE: Duration = Duration::from_millis(3_000);

/// One stored event.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) json: Arc<str>,
    pub(crate) at_us: i64,
    pub(crate) epoch: Epoch,
}

/// One session as stored. A fork shares its parent's events by reference.
pub(crate) struct Log {
    pub(crate) head: SessionHead,
    pub(crate) events: Vec<Stored>,
    pub(crate) snapshots: Vec<Arc<Snapshot>>,
    /// The row of the lease under which it is owned.
    pub(crate) owner: Option<u64>,
    created: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Truth {
    pub(crate) logs: BTreeMap<SessionId, Log>,
    blobs: BTreeMap<BlobHash, Arc<[u8]>>,
    /// The live leases and until when each lasts.
    leases: BTreeMap<u64, (String, Instant)>,
    last_lease: u64,
    pub(crate) reaped: BTreeSet<u64>,
    /// What was charged to each account.
    pub(crate) accounts: BTreeMap<Arc<str>, Amount>,
}

fn conflict(what: &str) -> JournalError {
    JournalError::of(Failure::new(ErrorCode::JOURNAL_CONFLICT, what))
}

pub(crate) fn not_found(session: &SessionId) -> JournalError {
    let message = format!("session \"{session}\" is not in the journal");
    JournalError::of(Failure::new(ErrorCode::SESSION_NOT_FOUND, message))
}

impl Truth {
    /// Registers a process as an owner of sessions.
    pub(crate) fn register(&mut self, name: &str) -> u64 {
        self.last_lease += 1;
        let until = Instant::now() + LEASE;
        self.leases.insert(self.last_lease, (name.to_owned(), until));
        self.last_lease
    }

    pub(crate) fn is_live(&self, row: u64) -> bool {
        self.leases.contains_key(&row)
    }

    /// Prolongs a lease; false if there is none any more.
    pub(crate) fn beat(&mut self, row: u64) -> bool {
        let lease = self.leases.get_mut(&row);
        lease.map(|(_, until)| *until = Instant::now() + LEASE).is_some()
    }

    /// Ends the leases that have run out, and lets go of their sessions.
    pub(crate) fn reap(&mut self) {
        let now = Instant::now();
        let dead: Vec<u64> = self
            .leases
            .iter()
            .filter(|(_, (_, until))| *until < now)
            .map(|(row, _)| *row)
            .collect();
        dead.into_iter().for_each(|row| self.sign_off(row));
    }

    /// Ends a lease and lets go of its sessions.
    pub(crate) fn sign_off(&mut self, row: u64) {
        self.leases.remove(&row);
        self.reaped.insert(row);
        for log in self.logs.values_mut().filter(|log| log.owner == Some(row)) {
            log.owner = None;
        }
    }

    /// Stores an append of a process, or refuses it.
    pub(crate) fn store(&mut self, row: u64, append: &Append) -> Result<(), JournalError> {
        if !self.is_live(row) {
            return Err(conflict("the process has no lease"));
        }
        if let AppendMode::Fork { parent, .. } = &append.mode {
            let exists = self.logs.contains_key(&append.session);
            let point = self.logs.get(parent).map(|log| ForkPoint {
                next_seq: log.head.next_seq,
                epoch: log.event(append.expected_seq.0.wrapping_sub(1)).map(|event| event.epoch),
            });
            fence::check_fork(append, parent, exists, point)?;
        } else {
            let held = self.logs.get(&append.session);
            fence::check(append, held.map(|log| (log.head.epoch, log.head.next_seq)))?;
            self.check_owner(row, append)?;
        }
        self.extend(row, append);
        Ok(())
    }

    fn check_owner(&self, row: u64, append: &Append) -> Result<(), JournalError> {
        let Some(log) = self.logs.get(&append.session) else { return Ok(()) };
        let open = log.head.status == SessionStatus::Open;
        match (&append.mode, log.owner) {
            (_, Some(owner)) if owner == row => Ok(()),
            (AppendMode::TakeOver, Some(_)) => {
                let code = ErrorCode::named("session_owned");
                Err(JournalError::of(Failure::new(code, "another process runs the session")))
            }
            (AppendMode::Continue, Some(_)) => Err(conflict("another process owns the session")),
            (AppendMode::Continue, None) if open => Err(conflict("nobody owns the session")),
            _ => Ok(()),
        }
    }

    fn extend(&mut self, row: u64, append: &Append) {
        self.last_lease += 1;
        let created = self.last_lease;
        let owner = self.leases.get(&row).map(|(name, _)| name.clone());
        if let AppendMode::Create { agent, origin } | AppendMode::Fork { agent, origin, .. } =
            &append.mode
        {
            let parent = match &append.mode {
                AppendMode::Fork { parent, .. } => Some((parent.clone(), append.expected_seq)),
                _ => None,
            };
            let (events, snapshots) = self.shared(parent.as_ref());
            let head = SessionHead {
                id: append.session.clone(),
                epoch: append.epoch,
                next_seq: append.expected_seq,
                status: append.status,
                agent: agent.clone(),
                origin: origin.clone(),
                parent,
                owner: None,
                created_us: append.at_us,
                updated_us: append.at_us,
            };
            let log = Log { head, events, snapshots, owner: None, created };
            self.logs.insert(append.session.clone(), log);
        }
        for (hash, body) in &append.blobs {
            self.blobs.insert(hash.clone(), Arc::clone(body));
        }
        for charge in &append.charges {
            let sum = self.accounts.entry(Arc::clone(&charge.account)).or_default();
            *sum = sum.plus(charge.amount);
        }
        let Some(log) = self.logs.get_mut(&append.session) else { return };
        let text = String::from_utf8_lossy(&append.events);
        log.events.extend(text.split('\n').map(|json| Stored {
            json: json.into(),
            at_us: append.at_us,
            epoch: append.epoch,
        }));
        let goes_on = matches!(append.status, SessionStatus::Open | SessionStatus::Waiting);
        log.owner = (goes_on && !append.release).then_some(row);
        log.head.owner = owner.filter(|_| log.owner.is_some());
        log.head.epoch = append.epoch;
        log.head.next_seq = Seq(log.events.len() as u64);
        log.head.status = append.status;
        log.head.updated_us = append.at_us;
        if let Some(body) = &append.snapshot {
            log.snapshots.push(Arc::new(Snapshot { seq: log.head.next_seq, body: body.clone() }));
        }
    }

    fn shared(&self, parent: Option<&(SessionId, Seq)>) -> (Vec<Stored>, Vec<Arc<Snapshot>>) {
        let Some((parent, end)) = parent else { return Default::default() };
        let Some(log) = self.logs.get(parent) else { return Default::default() };
        let events = log.events.iter().take(usize::try_from(end.0).unwrap_or(usize::MAX));
        let snapshots = log.snapshots.iter().filter(|snapshot| snapshot.seq <= *end);
        (events.cloned().collect(), snapshots.cloned().collect())
    }

    pub(crate) fn log(&self, session: &SessionId) -> Result<&Log, JournalError> {
        self.logs.get(session).ok_or_else(|| not_found(session))
    }

    pub(crate) fn blob(&self, hash: &BlobHash) -> Option<Vec<u8>> {
        self.blobs.get(hash).map(|body| body.to_vec())
    }

    /// Sessions, the one created last first.
    pub(crate) fn list(&self, query: &SessionQuery) -> Vec<SessionHead> {
        let mut found: Vec<&Log> = self.logs.values().collect();
        found.sort_by_key(|log| std::cmp::Reverse(log.created));
        let heads = found.into_iter().map(|log| log.head.clone());
        let wanted = heads.filter(|head| query.status.is_none_or(|only| only == head.status));
        let wanted: Vec<_> = wanted.collect();
        let before = query.before.as_ref();
        let skipped = before.and_then(|id| wanted.iter().position(|head| head.id == *id));
        let rest = wanted.into_iter().skip(skipped.map_or(0, |at| at + 1));
        rest.take(query.limit as usize).collect()
    }

    /// Takes open sessions that nobody owns.
    pub(crate) fn claim(&mut self, row: u64, agents: &[String], limit: u32) -> Vec<SessionHead> {
        if !self.is_live(row) {
            return Vec::new();
        }
        let name = self.leases.get(&row).map(|(name, _)| name.clone());
        let mut free: Vec<&mut Log> = self
            .logs
            .values_mut()
            .filter(|log| log.head.status == SessionStatus::Open && log.owner.is_none())
            .filter(|log| agents.contains(&log.head.agent))
            .collect();
        free.sort_by_key(|log| log.created);
        free.truncate(limit as usize);
        for log in &mut free {
            log.owner = Some(row);
            log.head.owner.clone_from(&name);
        }
        free.into_iter().map(|log| log.head.clone()).collect()
    }

    pub(crate) fn release(&mut self, row: u64, sessions: &[SessionId]) {
        for session in sessions {
            if let Some(log) = self.logs.get_mut(session).filter(|log| log.owner == Some(row)) {
                log.owner = None;
                log.head.owner = None;
            }
        }
    }
}

impl Log {
    fn event(&self, at: u64) -> Option<&Stored> {
        self.events.get(usize::try_from(at).ok()?)
    }

    /// The events of a range as records.
    pub(crate) fn records(&self, from: Seq, until: Option<Seq>) -> Vec<Record> {
        let end = until.map_or(u64::MAX, |until| until.0);
        let all = (0..).zip(&self.events);
        let wanted = all.filter(|(seq, _)| (from.0..end).contains(seq));
        wanted
            .map(|(seq, stored)| Record {
                seq: Seq(seq),
                at_us: stored.at_us,
                epoch: stored.epoch,
                schema: SCHEMA_VERSION,
                json: RawValue::from_string(stored.json.to_string())
                    .expect("the engine writes events as JSON"),
            })
            .collect()
    }
}
