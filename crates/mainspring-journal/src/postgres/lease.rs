//! This process as an owner of sessions: a row in `mainspring_nodes` that is live, kept so by
//! beats. A thread of its own sends them, and takes their sessions from nodes that have none left.
//!
//! Death is judged by the server's clock alone: a beat sets the moment until which a node counts
//! as live. A node judges itself by its own clock, one that also runs while the machine sleeps,
//! from the moment before a beat was sent and at 0.8 of the lease; so it stops before anybody else
//! may begin, whatever the clocks say.
//!
//! | state | hold | leads to |
//! |---|---|---|
//! | beat known to have arrived, less than 0.8 of the lease ago | held | paused, by time alone |
//! | no such beat | paused | held, by a beat; lost, if the beat finds nothing |
//! | the node's beats are gone: it was declared dead | lost | a new node, the next tenure |
//!
//! Source: research/durability.md, sections 3 and 4 (owners that were stopped or cut off and came
//! back: with this no step was taken after the return, without it 60 to 180).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::link::{Link, Trouble};
use super::place::Place;
use crate::Hold;

/// Nodes that are dead and own nothing are forgotten after so many leases.
const FORGET_LEASES: f64 = 1_000.0;

/// The longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What other threads know of this process's lease.
pub(super) struct Lease {
    length: Duration,
    name: String,
    tenure: AtomicU64,
    /// By [`boottime_us`].
    held_until_us: AtomicU64,
    node: Mutex<Uuid>,
    changed: Condvar,
    orders: Mutex<Option<Sender<Order>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Order {
    /// Look at once whether the node is still live.
    Look,
}

impl Lease {
    /// A lease that is not held yet.
    pub(super) fn new(length: Duration, name: String) -> Self {
        Self {
            length,
            name,
            tenure: AtomicU64::new(1),
            held_until_us: AtomicU64::new(0),
            node: Mutex::new(Uuid::nil()),
            changed: Condvar::new(),
            orders: Mutex::new(None),
            thread: Mutex::new(None),
        }
    }

    /// The row that this process writes as.
    pub(super) fn node(&self) -> Uuid {
        *lock(&self.node)
    }

    /// See [`crate::Journal::tenure`].
    pub(super) fn tenure(&self) -> u64 {
        self.tenure.load(Ordering::Acquire)
    }

    /// See [`crate::Journal::hold`].
    pub(super) fn hold(&self, tenure: u64) -> Hold {
        // In this order: what was held until then was held in that tenure or one before, and of
        // those before nobody asks any more.
        let until_us = self.held_until_us.load(Ordering::Acquire);
        if self.tenure() != tenure {
            return Hold::Lost;
        }
        if boottime_us() < until_us { Hold::Held } else { Hold::Paused }
    }

    /// Asks for another node than one that the store no longer takes, and waits for it.
    pub(super) fn replace(&self, dead: Uuid, within: Duration) -> bool {
        if let Some(orders) = &*lock(&self.orders) {
            let _ = orders.send(Order::Look);
        }
        let node = lock(&self.node);
        let waited = self.changed.wait_timeout_while(node, within, |node| *node == dead);
        *waited.unwrap_or_else(PoisonError::into_inner).0 != dead
    }

    /// Registers the first node and starts the thread.
    pub(super) fn start(self: &Arc<Self>, place: Arc<Place>, link: Link) -> Result<(), Trouble> {
        let mut keeper =
            Keeper { lease: self.clone(), place, link: Some(link), steady: None, last_beat: None };
        keeper.register()?;
        let (sender, orders) = channel();
        *lock(&self.orders) = Some(sender);
        let thread = std::thread::Builder::new()
            .name("journal-lease".to_owned())
            .spawn(move || keeper.run(&orders))
            .map_err(|error| Trouble::Refused(super::link::Cause::System(error)))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Ends the thread: no beat is sent any more, and nothing is held.
    pub(super) fn stop(&self) {
        lock(&self.orders).take();
        if let Some(thread) = lock(&self.thread).take() {
            // It reports its own panic; the lease runs out either way.
            let _ = thread.join();
        }
        self.lose();
    }

    fn lose(&self) {
        self.held_until_us.store(0, Ordering::Release);
        self.tenure.fetch_add(1, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Time since the machine started, with what it slept.
fn boottime_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.cast_unsigned() * 1_000_000 + now.tv_nsec.cast_unsigned() / 1_000
}

/// The thread that keeps the lease.
struct Keeper {
    lease: Arc<Lease>,
    place: Arc<Place>,
    link: Option<Link>,
    /// Since when every beat was in time. A node judges others only after a lease of that, in which
    /// they could have sent theirs, too: a server that was away or stood still condemns nobody.
    steady: Option<Instant>,
    last_beat: Option<Instant>,
}

impl Keeper {
    fn run(mut self, orders: &Receiver<Order>) {
        let pause = self.lease.length / 3;
        let mut next = Instant::now() + pause;
        while !matches!(
            orders.recv_timeout(next.saturating_duration_since(Instant::now())),
            Err(RecvTimeoutError::Disconnected)
        ) {
            // After a failure at once, but not without a pause.
            let wait = if self.turn().is_ok() { pause } else { pause / 4 };
            next = Instant::now() + wait;
        }
        if let Some(link) = self.link.take() {
            link.close();
        }
    }

    /// Beats, and looks after the others. What fails is tried again in the next turn; how long the
    /// lease is held says whether that matters.
    fn turn(&mut self) -> Result<(), Trouble> {
        let done = self.try_turn();
        if done.is_err() {
            self.steady = None;
            if self.link.as_ref().is_some_and(|link| !link.is_sound()) {
                self.link = None;
            }
        }
        done
    }

    fn try_turn(&mut self) -> Result<(), Trouble> {
        if self.lease.node().is_nil() {
            return self.register();
        }
        let Some(expired) = self.beat()? else {
            self.lease.lose();
            *lock(&self.lease.node) = Uuid::nil();
            self.steady = None;
            return self.register();
        };
        let steady = self.steady.is_some_and(|since| since.elapsed() >= self.lease.length);
        if expired && steady { self.reap() } else { Ok(()) }
    }

    fn link(&mut self) -> Result<&mut Link, Trouble> {
        // One lost beat does not cost the lease, and a long lease does not make a close wait long.
        let within = (self.lease.length / 2).min(ANSWER_MAX);
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::connect(&self.place, within)?,
        };
        link.allow(within);
        Ok(self.link.insert(link))
    }

    /// Makes a new node and holds its lease.
    fn register(&mut self) -> Result<(), Trouble> {
        let node = Uuid::now_v7();
        let (name, lease_ms) = (self.lease.name.clone(), self.lease_ms());
        let sent_us = boottime_us();
        self.link()?.execute(
            "WITH node AS (INSERT INTO mainspring_nodes (id, name, live) VALUES ($1, $2, true)) \
             INSERT INTO mainspring_beats (node, until) \
             VALUES ($1, clock_timestamp() + $3 * interval '1 millisecond')",
            &[(&node, Type::UUID), (&name, Type::TEXT), (&lease_ms, Type::FLOAT8)],
        )?;
        *lock(&self.lease.node) = node;
        self.lease.changed.notify_all();
        self.hold_from(sent_us);
        Ok(())
    }

    /// Sends a beat. `None` if the node has been declared dead, else whether others have expired.
    ///
    /// Who declares it dead deletes the row of its beats, and so either sees this beat or is seen.
    fn beat(&mut self) -> Result<Option<bool>, Trouble> {
        let (node, lease_ms) = (self.lease.node(), self.lease_ms());
        let sent_us = boottime_us();
        let rows = self.link()?.query(
            "UPDATE mainspring_beats SET until = clock_timestamp() + $2 * interval '1 millisecond' \
             WHERE node = $1 AND EXISTS (SELECT FROM mainspring_nodes WHERE id = $1 AND live) \
             RETURNING EXISTS (SELECT FROM mainspring_beats \
             WHERE until < clock_timestamp() AND node <> $1)",
            &[(&node, Type::UUID), (&lease_ms, Type::FLOAT8)],
        )?;
        let Some(row) = rows.first() else { return Ok(None) };
        let expired = super::get(row, 0)?;
        self.hold_from(sent_us);
        let now = Instant::now();
        let in_time = self.last_beat.is_some_and(|last| now - last < self.lease.length / 2);
        self.steady = self.steady.filter(|_| in_time).or(Some(now));
        self.last_beat = Some(now);
        Ok(Some(expired))
    }

    fn hold_from(&self, sent_us: u64) {
        let length_us = u64::try_from(self.lease.length.as_micros()).unwrap_or(u64::MAX / 2);
        self.lease.held_until_us.store(sent_us + length_us / 5 * 4, Ordering::Release);
    }

    /// Declares dead whose beats have expired, and lets go of their sessions. The rows are locked
    /// in this order: beats, so that a beat under way is seen or finds nothing; nodes, so that
    /// appends under way end first; then, in a statement that sees what those have written,
    /// sessions.
    fn reap(&mut self) -> Result<(), Trouble> {
        let lease_ms = self.lease_ms();
        let wait_ms = (lease_ms / 4.0).max(1.0).ceil();
        let forget_ms = lease_ms * FORGET_LEASES;
        self.link()?.transact(|link| {
            // Whoever holds a row for longer is reaped in a later turn; our own beat comes first.
            link.query(
                "SELECT set_config('lock_timeout', $1::float8 || 'ms', true)",
                &[(&wait_ms, Type::FLOAT8)],
            )?;
            let dead = link.query(
                "DELETE FROM mainspring_beats WHERE node IN (SELECT node FROM mainspring_beats \
                 WHERE until < clock_timestamp() AND clock_timestamp() - pg_postmaster_start_time() \
                 > $1 * interval '1 millisecond' ORDER BY node FOR UPDATE SKIP LOCKED) RETURNING node",
                &[(&lease_ms, Type::FLOAT8)],
            )?;
            let dead: Vec<Uuid> = dead.iter().map(|row| super::get(row, 0)).collect::<Result<_, _>>()?;
            let nodes: super::link::Param<'_> = (&dead, Type::UUID_ARRAY);
            link.execute("UPDATE mainspring_nodes SET live = false WHERE id = ANY($1)", std::slice::from_ref(&nodes))?;
            link.execute("UPDATE mainspring_sessions SET owner = NULL WHERE owner = ANY($1)", &[nodes])?;
            link.execute(
                "DELETE FROM mainspring_nodes n WHERE NOT live \
                 AND since < clock_timestamp() - $1 * interval '1 millisecond' \
                 AND NOT EXISTS (SELECT FROM mainspring_sessions s WHERE s.owner = n.id)",
                &[(&forget_ms, Type::FLOAT8)],
            )?;
            Ok(())
        })
    }

    fn lease_ms(&self) -> f64 {
        self.lease.length.as_secs_f64() * 1e3
    }
}

/// Takes a node out of the store and lets go of its sessions.
pub(super) fn sign_off(link: &mut Link, node: Uuid) -> Result<(), Trouble> {
    link.transact(|link| {
        let node: super::link::Param<'_> = (&node, Type::UUID);
        let node = std::slice::from_ref(&node);
        link.execute("DELETE FROM mainspring_beats WHERE node = $1", node)?;
        link.execute("UPDATE mainspring_nodes SET live = false WHERE id = $1", node)?;
        link.execute("UPDATE mainspring_sessions SET owner = NULL WHERE owner = $1", node)?;
        link.execute("DELETE FROM mainspring_nodes WHERE id = $1", node)?;
        Ok(())
    })
}
