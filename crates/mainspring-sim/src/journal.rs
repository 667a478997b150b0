//! The store as one process sees it: appends travel, are refused, stall or are acknowledged twice,
//! and reads fail. What has arrived is in the [`Truth`](crate::truth::Truth), for every process.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainspring_journal::{
    Acked, Append, CompactReport, Hold, Journal, JournalError, JournalStats, PruneQuery,
    PruneReport, SessionHead, SessionQuery, Snapshot,
};
use mainspring_session::{Amount, BlobHash, ErrorCode, Failure, Record, Seq, SessionId};
use tokio::time::Instant;

use crate::process::Process;
use crate::truth::{LEASE, Truth};
use crate::witness;
use crate::world::{World, lock};

/// See the module.
pub(crate) struct SimJournal(pub(crate) Arc<Process>);

type Verdict = Result<(), JournalError>;

/// An append under way.
pub(crate) struct Flight {
    process: Arc<Process>,
    append: Append,
    /// What the store said, once it has arrived.
    verdict: Option<Verdict>,
}

impl Journal for SimJournal {
    fn append(&self, append: Append) {
        let process = Arc::clone(&self.0);
        let alive = process.reach("an append");
        if append.token == 0 {
            return decide_now(&process, append, alive);
        }
        if alive {
            tokio::task::spawn_local(travel(process, append));
        }
    }

    fn load_range(
        &self,
        session: &SessionId,
        from: Seq,
        until: Option<Seq>,
    ) -> Result<Vec<Record>, JournalError> {
        self.read(|truth| Ok(truth.log(session)?.records(from, until)))
    }

    fn snapshots(
        &self,
        session: &SessionId,
        until: Option<Seq>,
    ) -> Result<Vec<Snapshot>, JournalError> {
        let wanted = |snapshot: &Snapshot| until.is_none_or(|until| snapshot.seq <= until);
        self.read(|truth| {
            let all =
                truth.log(session)?.snapshots.iter().map(|snapshot| Snapshot::clone(snapshot));
            Ok(all.filter(wanted).collect())
        })
    }

    fn head(&self, session: &SessionId) -> Result<Option<SessionHead>, JournalError> {
        self.read(|truth| Ok(truth.logs.get(session).map(|log| log.head.clone())))
    }

    fn sessions(&self, query: &SessionQuery) -> Result<Vec<SessionHead>, JournalError> {
        self.read(|truth| Ok(truth.list(query)))
    }

    fn open_sessions(&self) -> Result<Vec<SessionHead>, JournalError> {
        let status = Some(mainspring_journal::SessionStatus::Open);
        self.read(|truth| {
            let mut found = truth.list(&SessionQuery { status, limit: u32::MAX, before: None });
            found.reverse();
            Ok(found)
        })
    }

    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, JournalError> {
        self.read(|truth| Ok(truth.blob(hash)))
    }

    fn spent(&self, accounts: &[Arc<str>]) -> Result<Vec<Amount>, JournalError> {
        let sum = |truth: &mut Truth, account: &Arc<str>| {
            truth.accounts.get(account).copied().unwrap_or_default()
        };
        self.read(|truth| Ok(accounts.iter().map(|account| sum(truth, account)).collect()))
    }

    fn claim(&self, agents: &[String], limit: u32) -> Result<Vec<SessionHead>, JournalError> {
        let row = lock(&self.0.lease).0;
        let claimed = self.read(|truth| Ok(truth.claim(row, agents, limit)))?;
        for head in &claimed {
            self.0.world.note(format!("{} claims {}", self.0.name, head.id));
        }
        // The process may end before it hears of it.
        if self.0.reach("a claim") { Ok(claimed) } else { Err(gone()) }
    }

    fn release(&self, sessions: &[SessionId]) -> Result<(), JournalError> {
        let row = lock(&self.0.lease).0;
        self.read(|truth| {
            truth.release(row, sessions);
            Ok(())
        })?;
        for session in sessions {
            self.0.world.note(format!("{} releases {session}", self.0.name));
        }
        Ok(())
    }

    fn tenure(&self) -> u64 {
        self.0.tenure.load(Ordering::Relaxed)
    }

    fn hold(&self, tenure: u64) -> Hold {
        if self.0.is_dead() || self.tenure() != tenure {
            return Hold::Lost;
        }
        if Instant::now() < lock(&self.0.lease).1 { Hold::Held } else { Hold::Paused }
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn identity(&self) -> &str {
        "simulated"
    }

    fn prune(&self, _: &PruneQuery) -> Result<PruneReport, JournalError> {
        Ok(PruneReport::default())
    }

    fn compact(&self) -> Result<CompactReport, JournalError> {
        Ok(CompactReport::default())
    }

    fn close(&self) -> Result<(), JournalError> {
        if !self.0.is_dead() {
            lock(&self.0.world.truth).sign_off(lock(&self.0.lease).0);
        }
        Ok(())
    }

    fn stats(&self) -> JournalStats {
        JournalStats::default()
    }
}

impl SimJournal {
    fn read<T>(
        &self,
        work: impl FnOnce(&mut Truth) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let world = &self.0.world;
        if !self.0.reach("a read") {
            return Err(gone());
        }
        if world.fault(world.faults.read_failed) {
            return Err(failure(ErrorCode::JOURNAL_IO));
        }
        work(&mut lock(&world.truth))
    }
}

fn failure(code: ErrorCode) -> JournalError {
    JournalError::of(Failure::new(code, "the simulated store fails"))
}

fn gone() -> JournalError {
    failure(ErrorCode::ENGINE_CLOSED)
}

/// An append on its way to the store and its acknowledgement on its way back.
async fn travel(process: Arc<Process>, append: Append) {
    let world = Arc::clone(&process.world);
    let (token, sink) = (append.token, Arc::clone(&append.sink));
    let flight = Flight { process: Arc::clone(&process), append, verdict: None };
    let flight = Arc::new(Mutex::new(flight));
    lock(&world.flights).push(Arc::clone(&flight));
    tokio::time::sleep(delay(&world)).await;
    // What a dead process had sent may still arrive.
    if !(process.is_dead() && world.rng().chance(500)) {
        while !land(&mut lock(&flight)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if !process.running().await {
                break;
            }
        }
    }
    lock(&world.flights).retain(|other| !Arc::ptr_eq(other, &flight));
    let Some(result) = lock(&flight).verdict.clone() else { return };
    let back = world.rng().between_ms(0, 8);
    tokio::time::sleep(back).await;
    if !process.reach("an acknowledgement") {
        return;
    }
    sink.acked(vec![Acked { token, result: result.clone() }]);
    if world.fault(world.faults.ack_repeated) {
        let later = world.rng().between_ms(0, 300);
        tokio::time::sleep(later).await;
        if process.reach("a repeated acknowledgement") {
            sink.acked(vec![Acked { token, result }]);
        }
    }
}

fn delay(world: &World) -> Duration {
    let stalled = world.fault(world.faults.append_stalled);
    if stalled { world.rng().between_ms(1_000, 8_000) } else { world.rng().between_ms(0, 12) }
}

/// The arrival of an append; false if its process must first get another lease.
fn land(flight: &mut Flight) -> bool {
    if flight.verdict.is_some() {
        return true;
    }
    let (process, append) = (&flight.process, &flight.append);
    let world = &process.world;
    let row = lock(&process.lease).0;
    if !lock(&world.truth).is_live(row) && !process.is_dead() {
        return false;
    }
    let refused = world.fault(world.faults.append_refused);
    flight.verdict = Some(if refused {
        let full = world.rng().chance(300);
        let code = if full { ErrorCode::JOURNAL_FULL } else { ErrorCode::JOURNAL_IO };
        world.note(format!("an append to {} is refused with {code}", append.session));
        Err(failure(code))
    } else {
        store(process, row, append)
    });
    true
}

/// Stores an append and has it looked at.
pub(crate) fn store(process: &Process, row: u64, append: &Append) -> Verdict {
    let world = &process.world;
    let result = lock(&world.truth).store(row, append);
    match &result {
        Ok(()) => witness::appended(world, &process.name, append),
        Err(error) => {
            let (session, code) = (&append.session, error.code());
            world.note(format!("{} is refused an append to {session}: {code}", process.name));
        }
    }
    result
}

/// The append of a decision about a session that is not alive here: it waits for its answer. Between
/// its reading and its arrival others may be faster.
fn decide_now(process: &Arc<Process>, append: Append, alive: bool) {
    let world = &process.world;
    let (token, sink) = (append.token, Arc::clone(&append.sink));
    if !alive || world.fault(world.faults.append_refused) {
        return sink.acked(vec![Acked { token, result: Err(failure(ErrorCode::JOURNAL_IO)) }]);
    }
    if world.rng().chance(300) {
        let flights = lock(&world.flights).clone();
        for flight in flights {
            let mut flight = lock(&flight);
            if flight.append.session == append.session {
                land(&mut flight);
            }
        }
    }
    let row = lock(&process.lease).0;
    let result = store(process, row, &append);
    process.reach("a decision");
    sink.acked(vec![Acked { token, result }]);
}

/// Keeps the process's lease as long as it lives, and judges those of others.
pub(crate) async fn keep_lease(process: Arc<Process>) {
    let world = Arc::clone(&process.world);
    register(&process);
    loop {
        tokio::time::sleep(LEASE / 3).await;
        if !process.running().await {
            return;
        }
        let sent = Instant::now();
        let slow = world.fault(world.faults.append_stalled);
        let way =
            if slow { world.rng().between_ms(1_500, 6_000) } else { world.rng().between_ms(0, 40) };
        tokio::time::sleep(way).await;
        if !process.reach("a beat") {
            return;
        }
        let row = lock(&process.lease).0;
        let lives = lock(&world.truth).beat(row);
        if lives {
            lock(&process.lease).1 = sent + LEASE / 5 * 4;
            lock(&world.truth).reap();
        } else if process.running().await {
            process.tenure.fetch_add(1, Ordering::Relaxed);
            register(&process);
        }
    }
}

fn register(process: &Process) {
    let row = lock(&process.world.truth).register(&process.name);
    *lock(&process.lease) = (row, Instant::now() + LEASE / 5 * 4);
    process.world.note(format!("{} has lease {row}", process.name));
}
