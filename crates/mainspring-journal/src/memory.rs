//! A store in memory, for tests and throw-away runs. It refuses and answers exactly as the SQLite
//! store does; only durability is missing. Results are handed back from within `append`.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainspring_session::{Amount, BlobHash, Epoch, Record, SCHEMA_VERSION, Seq, SessionId};

use crate::block::{self, Block, Piece};
use crate::delivery::{self, Counters};
use crate::error::JournalError;
use crate::fence::{self, ForkPoint};
use crate::prune::{self, Shelf};
use crate::{
    Access, Append, AppendMode, CompactReport, Hold, Journal, JournalOptions, JournalStats,
    PruneQuery, PruneReport, SessionHead, SessionQuery, SessionStatus, Snapshot,
};

const NAME: &str = "memory:";

/// See the module.
pub(crate) struct MemoryJournal {
    options: JournalOptions,
    identity: String,
    counters: Counters,
    /// `None` once closed.
    state: Mutex<Option<State>>,
}

/// Sessions have keys that count up in the order of their creation.
#[derive(Default, Clone)]
struct State {
    sessions: BTreeMap<i64, Stored>,
    next_key: i64,
    /// Without the retired ones; see [`prune`].
    keys: HashMap<SessionId, i64>,
    open: BTreeSet<i64>,
    owned: HashSet<i64>,
    blobs: HashMap<BlobHash, Blob>,
    blobs_gone: u64,
    accounts: HashMap<Arc<str>, Amount>,
}

#[derive(Clone)]
struct Blob {
    body: Arc<[u8]>,
    /// How many sessions name it.
    sessions: usize,
}

#[derive(Clone)]
struct Stored {
    head: SessionHead,
    retired: bool,
    /// The session whose events come before its own, and how many they are.
    parent: Option<(i64, u64)>,
    /// The forks that share its own events: how many of all they share, and their keys.
    forks: BTreeSet<(u64, i64)>,
    blocks: Vec<Arc<Block>>,
    snapshots: Vec<Arc<Snapshot>>,
    blobs: HashSet<BlobHash>,
}

impl MemoryJournal {
    /// An empty store.
    pub(crate) fn new(options: JournalOptions) -> Self {
        let random = || RandomState::new().hash_one(0);
        Self {
            options,
            identity: format!("memory-{:016x}{:016x}", random(), random()),
            counters: Counters::default(),
            state: Mutex::new(Some(State::default())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        match self.lock().as_mut() {
            Some(state) => work(state),
            None => Err(JournalError::closed(NAME)),
        }
    }

    fn check_access(&self) -> Result<(), JournalError> {
        match self.options.access {
            Access::ReadOnly => Err(JournalError::access_read_only(NAME)),
            Access::ReadWrite => Ok(()),
        }
    }

    fn store(&self, append: &mut Append) -> Result<(), JournalError> {
        fence::check_shape(append, &self.options.limits)?;
        self.check_access()?;
        let mut stored = JournalStats { commits: 1, ..JournalStats::default() };
        stored.count(append);
        self.with(|state| state.store(append))?;
        self.counters.add(&stored);
        Ok(())
    }
}

impl State {
    fn store(&mut self, append: &mut Append) -> Result<(), JournalError> {
        let held = self.keys.get(&append.session).copied();
        let key = match &append.mode {
            AppendMode::Fork { parent, agent, origin } => {
                let source = self.keys.get(parent).map(|&key| self.branch(key, append));
                fence::check_fork(append, parent, held.is_some(), source.map(|(_, point)| point))?;
                let (owner, _) = source.expect("the fence lets no fork pass without a parent");
                let seq = append.expected_seq.0;
                let key = self.begin(append, agent, origin.as_ref(), Some((owner, seq)));
                self.stored_mut(owner).forks.insert((seq, key));
                key
            }
            AppendMode::Create { agent, origin } => {
                fence::check(append, held.map(|key| self.fence(key)))?;
                self.begin(append, agent, origin.as_ref(), None)
            }
            AppendMode::Continue | AppendMode::TakeOver => {
                fence::check(append, held.map(|key| self.fence(key)))?;
                held.expect("the fence lets only a beginning pass without a session")
            }
        };
        self.extend(key, append);
        Ok(())
    }

    fn fence(&self, key: i64) -> (Epoch, Seq) {
        let head = &self.stored(key).head;
        (head.epoch, head.next_seq)
    }

    /// The session that owns the last event which a fork is to share, and what the fork is checked
    /// against.
    fn branch(&self, parent: i64, append: &Append) -> (i64, ForkPoint) {
        let (next_seq, seq) = (self.stored(parent).head.next_seq, append.expected_seq.0);
        let owner = self.owner(parent, seq);
        let blocks = &self.stored(owner).blocks;
        let last = blocks.get(blocks.partition_point(|block| block.end() < seq));
        let epoch = last.filter(|block| block.first_seq < seq).map(|block| block.epoch);
        (owner, ForkPoint { next_seq, epoch })
    }

    /// The session that owns the last of so many events of another.
    fn owner(&self, mut key: i64, seq: u64) -> i64 {
        while let Some((parent, _)) = self.stored(key).parent.filter(|&(_, end)| end >= seq) {
            key = parent;
        }
        key
    }

    fn begin(
        &mut self,
        append: &Append,
        agent: &str,
        origin: Option<&mainspring_session::Origin>,
        parent: Option<(i64, u64)>,
    ) -> i64 {
        let head = SessionHead {
            id: append.session.clone(),
            epoch: append.epoch,
            next_seq: append.expected_seq,
            status: append.status,
            agent: agent.to_owned(),
            origin: origin.cloned(),
            parent: parent.map(|(key, seq)| (self.stored(key).head.id.clone(), Seq(seq))),
            owner: None,
            created_us: append.at_us,
            updated_us: append.at_us,
        };
        let key = self.next_key;
        self.next_key += 1;
        self.keys.insert(append.session.clone(), key);
        let stored = Stored {
            head,
            retired: false,
            parent,
            forks: BTreeSet::new(),
            blocks: Vec::new(),
            snapshots: Vec::new(),
            blobs: HashSet::new(),
        };
        self.sessions.insert(key, stored);
        key
    }

    fn extend(&mut self, key: i64, append: &mut Append) {
        let stored = self.sessions.get_mut(&key).expect("a key that was looked up has a session");
        stored.blocks.push(Arc::new(Block {
            first_seq: append.expected_seq.0,
            count: append.count,
            epoch: append.epoch,
            at_us: append.at_us,
            schema: SCHEMA_VERSION,
            body: std::mem::take(&mut append.events),
        }));
        stored.head.epoch = append.epoch;
        stored.head.next_seq = Seq(append.expected_seq.0 + u64::from(append.count));
        stored.head.status = append.status;
        stored.head.updated_us = append.at_us;
        if let Some(body) = append.snapshot.take() {
            stored.snapshots.push(Arc::new(Snapshot { seq: stored.head.next_seq, body }));
        }
        for (hash, body) in append.blobs.drain(..) {
            let blob = self.blobs.entry(hash.clone()).or_insert(Blob { body, sessions: 0 });
            blob.sessions += usize::from(stored.blobs.insert(hash));
        }
        for charge in &append.charges {
            let sum = self.accounts.entry(Arc::clone(&charge.account)).or_default();
            *sum = sum.plus(charge.amount);
        }
        let open = append.status == SessionStatus::Open;
        let _ = if open { self.open.insert(key) } else { self.open.remove(&key) };
        let owned = open && !append.release;
        let _ = if owned { self.owned.insert(key) } else { self.owned.remove(&key) };
    }

    fn stored(&self, key: i64) -> &Stored {
        &self.sessions[&key]
    }

    fn stored_mut(&mut self, key: i64) -> &mut Stored {
        self.sessions.get_mut(&key).expect("a key that was looked up has a session")
    }

    fn find(&self, session: &SessionId) -> Result<i64, JournalError> {
        self.keys.get(session).copied().ok_or_else(|| JournalError::not_found(session))
    }

    fn head(&self, key: i64) -> SessionHead {
        let stored = self.stored(key);
        let mut head = stored.head.clone();
        if stored.parent.is_some_and(|(parent, _)| self.stored(parent).retired) {
            head.parent = None;
        }
        head
    }

    /// The sessions whose events make up one, the oldest first, and the position before which each
    /// one's events count.
    fn line(&self, key: i64, until: Option<u64>) -> Vec<(&Stored, u64)> {
        let mut line = Vec::new();
        let mut next = Some((key, u64::MAX));
        while let Some((key, end)) = next {
            let stored = self.stored(key);
            line.push((stored, end.min(until.unwrap_or(u64::MAX))));
            next = stored.parent;
        }
        line.reverse();
        line
    }

    fn pieces(&self, key: i64, from: u64, until: Option<u64>) -> Vec<Piece<&Block>> {
        let mut pieces = Vec::new();
        for (stored, until) in self.line(key, until) {
            if from >= until {
                continue;
            }
            let first = stored.blocks.partition_point(|block| block.end() <= from);
            let wanted = stored.blocks[first..].iter().take_while(|block| block.first_seq < until);
            pieces.extend(wanted.map(|block| (&**block, until)));
        }
        pieces
    }

    fn prune(&mut self, query: &PruneQuery) -> PruneReport {
        let matches = |stored: &Stored| {
            let head = &stored.head;
            !stored.retired && query.matches(head.status, head.updated_us, &head.agent)
        };
        let wanted = self.sessions.iter().rev().filter(|(_, stored)| matches(stored));
        let wanted: Vec<i64> = wanted.map(|(&key, _)| key).collect();
        let mut report = PruneReport::default();
        self.blobs_gone = 0;
        for key in wanted {
            let Ok(()) = prune::prune(self, key, &mut report);
        }
        report.blobs = self.blobs_gone;
        report
    }
}

impl Shelf for State {
    type Error = Infallible;

    fn fork_end(&mut self, key: i64) -> Result<Option<u64>, Infallible> {
        Ok(self.stored(key).forks.last().map(|&(seq, _)| seq))
    }

    fn retired_parent(&mut self, key: i64) -> Result<Option<i64>, Infallible> {
        let parent = self.stored(key).parent.map(|(parent, _)| parent);
        Ok(parent.filter(|&parent| self.stored(parent).retired))
    }

    fn retire(&mut self, key: i64) -> Result<(), Infallible> {
        let stored = self.stored_mut(key);
        stored.retired = true;
        let id = stored.head.id.clone();
        self.keys.remove(&id);
        Ok(())
    }

    fn cut(&mut self, key: i64, end: u64) -> Result<u64, Infallible> {
        let stored = self.stored_mut(key);
        stored.snapshots.retain(|snapshot| snapshot.seq.0 <= end);
        let kept = stored.blocks.partition_point(|block| block.first_seq < end);
        Ok(stored.blocks.drain(kept..).map(|block| u64::from(block.count)).sum())
    }

    fn remove(&mut self, key: i64) -> Result<u64, Infallible> {
        let stored = self.sessions.remove(&key).expect("what is pruned is there");
        if !stored.retired {
            self.keys.remove(&stored.head.id);
        }
        if let Some((parent, seq)) = stored.parent {
            self.stored_mut(parent).forks.remove(&(seq, key));
        }
        for hash in &stored.blobs {
            let blob = self.blobs.get_mut(hash).expect("a blob that is named is there");
            blob.sessions -= 1;
            if blob.sessions == 0 {
                self.blobs.remove(hash);
                self.blobs_gone += 1;
            }
        }
        Ok(stored.blocks.iter().map(|block| u64::from(block.count)).sum())
    }
}

impl Journal for MemoryJournal {
    fn append(&self, mut append: Append) {
        let result = self.store(&mut append);
        delivery::answer(append, result);
    }

    fn load_range(
        &self,
        session: &SessionId,
        from: Seq,
        until: Option<Seq>,
    ) -> Result<Vec<Record>, JournalError> {
        self.with(|state| {
            let key = state.find(session)?;
            block::records(session, state.pieces(key, from.0, until.map(|seq| seq.0)), from)
        })
    }

    fn snapshots(
        &self,
        session: &SessionId,
        until: Option<Seq>,
    ) -> Result<Vec<Snapshot>, JournalError> {
        self.with(|state| {
            let key = state.find(session)?;
            let mut found = Vec::new();
            for (stored, until) in state.line(key, until.map(|seq| seq.0)) {
                let wanted = stored.snapshots.iter().filter(|snapshot| snapshot.seq.0 <= until);
                found.extend(wanted.map(|snapshot| Snapshot::clone(snapshot)));
            }
            Ok(found)
        })
    }

    fn head(&self, session: &SessionId) -> Result<Option<SessionHead>, JournalError> {
        self.with(|state| Ok(state.find(session).ok().map(|key| state.head(key))))
    }

    fn sessions(&self, query: &SessionQuery) -> Result<Vec<SessionHead>, JournalError> {
        let limit = query.limit.min(self.options.limits.sessions_page_max) as usize;
        self.with(|state| {
            let end = match &query.before {
                None => i64::MAX,
                Some(before) => state.find(before)?,
            };
            let wanted = state.sessions.range(..end).rev().filter(|(_, stored)| {
                !stored.retired && query.status.is_none_or(|only| only == stored.head.status)
            });
            Ok(wanted.take(limit).map(|(&key, _)| state.head(key)).collect())
        })
    }

    fn open_sessions(&self) -> Result<Vec<SessionHead>, JournalError> {
        self.with(|state| Ok(state.open.iter().map(|&key| state.head(key)).collect()))
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, JournalError> {
        self.with(|state| Ok(state.blobs.get(hash).map(|blob| blob.body.to_vec())))
    }

    fn spent(&self, accounts: &[Arc<str>]) -> Result<Vec<Amount>, JournalError> {
        self.with(|state| {
            let sum = |account| state.accounts.get(account).copied().unwrap_or_default();
            Ok(accounts.iter().map(sum).collect())
        })
    }

    fn claim(&self, agents: &[String], limit: u32) -> Result<Vec<SessionHead>, JournalError> {
        self.with(|state| {
            self.check_access()?;
            let free = state.open.iter().filter(|key| !state.owned.contains(key));
            let wanted = free.filter(|&&key| agents.contains(&state.stored(key).head.agent));
            let taken: Vec<i64> = wanted.take(limit as usize).copied().collect();
            state.owned.extend(&taken);
            Ok(taken.into_iter().map(|key| state.head(key)).collect())
        })
    }

    fn release(&self, sessions: &[SessionId]) -> Result<(), JournalError> {
        self.with(|state| {
            for key in sessions.iter().filter_map(|session| state.keys.get(session)) {
                state.owned.remove(key);
            }
            Ok(())
        })
    }

    fn tenure(&self) -> u64 {
        1
    }

    fn hold(&self, _: u64) -> Hold {
        Hold::Held
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn prune(&self, query: &PruneQuery) -> Result<PruneReport, JournalError> {
        self.with(|state| {
            if query.dry_run {
                // Events and snapshots are shared with the copy.
                return Ok(state.clone().prune(query));
            }
            self.check_access()?;
            Ok(state.prune(query))
        })
    }

    fn compact(&self) -> Result<CompactReport, JournalError> {
        self.with(|_| {
            self.check_access()?;
            Ok(CompactReport::default())
        })
    }

    fn close(&self) -> Result<(), JournalError> {
        *self.lock() = None;
        Ok(())
    }

    fn stats(&self) -> JournalStats {
        self.counters.read()
    }
}
