//! A store in memory, for tests and throw-away runs. It refuses and answers exactly as the SQLite
//! store does; only durability is missing. Results are handed back from within `append`.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainspring_session::{BlobHash, Record, Seq, SessionId};

use crate::block::{self, Block};
use crate::delivery::{self, Counters};
use crate::error::JournalError;
use crate::{
    Access, Append, AppendMode, Journal, JournalOptions, JournalStats, SessionHead, SessionQuery,
    SessionStatus, fence,
};

const NAME: &str = "memory:";

/// See the module.
pub(crate) struct MemoryJournal {
    options: JournalOptions,
    counters: Counters,
    /// `None` once closed.
    state: Mutex<Option<State>>,
}

#[derive(Default)]
struct State {
    /// In order of creation.
    sessions: Vec<Stored>,
    position: HashMap<SessionId, usize>,
    open: BTreeSet<usize>,
    blobs: HashMap<BlobHash, Arc<[u8]>>,
}

struct Stored {
    head: SessionHead,
    blocks: Vec<Block>,
}

impl MemoryJournal {
    /// An empty store.
    pub(crate) fn new(options: JournalOptions) -> Self {
        Self { options, counters: Counters::default(), state: Mutex::new(Some(State::default())) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(
        &self,
        reading: impl FnOnce(&State) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        match self.lock().as_ref() {
            Some(state) => reading(state),
            None => Err(JournalError::closed(NAME)),
        }
    }

    fn store(&self, append: &mut Append) -> Result<(), JournalError> {
        fence::check_shape(append, &self.options.limits)?;
        if self.options.access == Access::ReadOnly {
            return Err(JournalError::access_read_only(NAME));
        }
        let mut stored = JournalStats { commits: 1, ..JournalStats::default() };
        stored.count(append);
        match self.lock().as_mut() {
            Some(state) => state.store(append)?,
            None => return Err(JournalError::closed(NAME)),
        }
        self.counters.add(&stored);
        Ok(())
    }
}

impl State {
    fn store(&mut self, append: &mut Append) -> Result<(), JournalError> {
        let position = self.position.get(&append.session).copied();
        let held = position.map(|position| &self.sessions[position].head);
        fence::check(append, held.map(|head| (head.epoch, head.next_seq)))?;
        let position = match &append.mode {
            AppendMode::Create { agent, origin } => {
                let head = SessionHead {
                    id: append.session.clone(),
                    epoch: append.epoch,
                    next_seq: Seq(0),
                    status: append.status,
                    agent: agent.clone(),
                    origin: origin.clone(),
                    created_us: append.at_us,
                    updated_us: append.at_us,
                };
                self.position.insert(append.session.clone(), self.sessions.len());
                self.sessions.push(Stored { head, blocks: Vec::new() });
                self.sessions.len() - 1
            }
            _ => position.expect("the fence lets only a creation pass without a session"),
        };
        let stored = &mut self.sessions[position];
        stored.blocks.push(Block {
            first_seq: append.expected_seq.0,
            count: append.count,
            epoch: append.epoch,
            at_us: append.at_us,
            body: std::mem::take(&mut append.events),
        });
        stored.head.epoch = append.epoch;
        stored.head.next_seq = Seq(append.expected_seq.0 + u64::from(append.count));
        stored.head.status = append.status;
        stored.head.updated_us = append.at_us;
        match append.status {
            SessionStatus::Open => self.open.insert(position),
            _ => self.open.remove(&position),
        };
        for (hash, body) in append.blobs.drain(..) {
            self.blobs.entry(hash).or_insert(body);
        }
        Ok(())
    }

    fn find(&self, session: &SessionId) -> Result<&Stored, JournalError> {
        let position = self.position.get(session);
        position
            .map(|&position| &self.sessions[position])
            .ok_or_else(|| JournalError::not_found(session))
    }
}

impl Journal for MemoryJournal {
    fn append(&self, mut append: Append) {
        let result = self.store(&mut append);
        delivery::answer(append, result);
    }

    fn load(&self, session: &SessionId, from: Seq) -> Result<Vec<Record>, JournalError> {
        self.read(|state| {
            let blocks = &state.find(session)?.blocks;
            let wanted =
                blocks.partition_point(|block| block.first_seq + u64::from(block.count) <= from.0);
            block::records(session, &blocks[wanted..], from)
        })
    }

    fn head(&self, session: &SessionId) -> Result<Option<SessionHead>, JournalError> {
        self.read(|state| Ok(state.find(session).ok().map(|stored| stored.head.clone())))
    }

    fn sessions(&self, query: &SessionQuery) -> Result<Vec<SessionHead>, JournalError> {
        let limit = query.limit.min(self.options.limits.sessions_page_max) as usize;
        self.read(|state| {
            let end = match &query.before {
                None => state.sessions.len(),
                Some(before) => {
                    state.find(before)?;
                    state.position[before]
                }
            };
            let heads = state.sessions[..end].iter().rev().map(|stored| &stored.head);
            let wanted = heads.filter(|head| query.status.is_none_or(|only| only == head.status));
            Ok(wanted.take(limit).cloned().collect())
        })
    }

    fn open_sessions(&self) -> Result<Vec<SessionHead>, JournalError> {
        self.read(|state| {
            Ok(state.open.iter().map(|&position| state.sessions[position].head.clone()).collect())
        })
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, JournalError> {
        self.read(|state| Ok(state.blobs.get(hash).map(|body| body.to_vec())))
    }

    fn close(&self) -> Result<(), JournalError> {
        *self.lock() = None;
        Ok(())
    }

    fn stats(&self) -> JournalStats {
        self.counters.read()
    }
}
