//! One life of a node: it can be stopped and go on, and it dies at whichever call of a port its
//! fuse says. What it had handed out lives on only as far as the world had it.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Poll, Waker};

use mainspring_engine::{Clock, Engine};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::world::{World, lock};

/// See the module.
pub(crate) struct Process {
    pub(crate) world: Arc<World>,
    pub(crate) name: String,
    pub(crate) engine: OnceLock<Weak<Engine>>,
    dead: AtomicBool,
    pub(crate) died: Notify,
    fuse: AtomicI64,
    stopped_until: Mutex<Instant>,
    waker: Mutex<Option<Waker>>,
    /// How far its wall clock is off, in microseconds.
    clock_offset_us: AtomicI64,
    pub(crate) tenure: AtomicU64,
    /// The row of its lease in the store, and until when it may count on it.
    pub(crate) lease: Mutex<(u64, Instant)>,
}

impl Process {
    pub(crate) fn new(world: &Arc<World>, name: String) -> Arc<Self> {
        let life_calls = world.faults.life_calls;
        let fuse = match life_calls {
            _ if world.is_calm() => i64::MAX,
            0 => i64::MAX,
            // Many lives are short, so that crashes fall into every part of one.
            calls => i64::try_from(1 + world.rng().below(calls * 2)).unwrap_or(i64::MAX),
        };
        Arc::new(Self {
            world: Arc::clone(world),
            name,
            engine: OnceLock::new(),
            dead: AtomicBool::new(false),
            died: Notify::new(),
            fuse: AtomicI64::new(fuse),
            stopped_until: Mutex::new(Instant::now()),
            waker: Mutex::new(None),
            clock_offset_us: AtomicI64::new(0),
            tenure: AtomicU64::new(1),
            lease: Mutex::new((0, Instant::now())),
        })
    }

    pub(crate) fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.get().and_then(Weak::upgrade)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Notes a point at which the process may die; false if it is dead after it.
    pub(crate) fn reach(&self, what: &str) -> bool {
        if self.is_dead() {
            return false;
        }
        lock(&self.world.counts).steps += 1;
        if !self.world.is_calm() && self.fuse.fetch_sub(1, Ordering::Relaxed) <= 1 {
            self.world.note(format!("{} dies at {what}", self.name));
            self.die();
            return false;
        }
        true
    }

    /// The death of the process, whatever it is doing.
    pub(crate) fn die(&self) {
        if !self.dead.swap(true, Ordering::Relaxed) {
            lock(&self.world.counts).crashes += 1;
        }
        self.died.notify_one();
        self.wake();
    }

    /// An end in good order: like death, without the name.
    pub(crate) fn end(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.died.notify_one();
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = lock(&self.waker).take() {
            waker.wake();
        }
    }

    /// Stops the process until a time: nothing in it goes on, while the world does.
    pub(crate) fn stop_until(self: &Arc<Self>, until: Instant) {
        self.world.note(format!("{} is stopped", self.name));
        *lock(&self.stopped_until) = until;
        let process = Arc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep_until(until).await;
            process.world.note(format!("{} goes on", process.name));
            process.wake();
        });
    }

    fn is_stopped(&self) -> bool {
        Instant::now() < *lock(&self.stopped_until)
    }

    /// Waits while the process is stopped; false if it is dead.
    pub(crate) async fn running(&self) -> bool {
        while !self.is_dead() && self.is_stopped() {
            let until = *lock(&self.stopped_until);
            tokio::time::sleep_until(until).await;
        }
        !self.is_dead()
    }

    /// Runs the shard as long as the process lives, and not while it is stopped.
    pub(crate) async fn run(self: Arc<Self>, shard: impl Future<Output = ()>) {
        let mut shard = Box::pin(shard);
        std::future::poll_fn(|cx| {
            *lock(&self.waker) = Some(cx.waker().clone());
            if self.is_dead() {
                return Poll::Ready(());
            }
            if self.is_stopped() {
                return Poll::Pending;
            }
            let polled = shard.as_mut().poll(cx);
            if self.is_dead() { Poll::Ready(()) } else { polled }
        })
        .await;
    }

    /// Sets the wall clock of the process off.
    pub(crate) fn jump_clock(&self, by_us: i64) {
        self.clock_offset_us.store(by_us, Ordering::Relaxed);
    }
}

/// When a run begins, in microseconds since the epoch.
const BEGIN_US: i64 = 1_700_000_000_000_000;

impl Clock for Process {
    fn now_us(&self) -> i64 {
        let passed = i64::try_from(self.world.elapsed().as_micros()).unwrap_or(i64::MAX / 2);
        BEGIN_US + passed + self.clock_offset_us.load(Ordering::Relaxed)
    }
}
