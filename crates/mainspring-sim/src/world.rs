//! What all of one run share: randomness, the truth of the store, the ledger of effects, what went
//! wrong, and the last of what happened.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::journal::Flight;
use crate::ledger::Ledger;
use crate::rng::Rng;
use crate::truth::Truth;
use crate::witness::Witness;

/// How much goes wrong in a run; each number is times out of a thousand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) append_refused: u64,
    pub(crate) append_stalled: u64,
    pub(crate) ack_repeated: u64,
    pub(crate) read_failed: u64,
    pub(crate) tool_failed: u64,
    pub(crate) tool_slow: u64,
    pub(crate) tool_never: u64,
    pub(crate) model_failed: u64,
    pub(crate) model_slow: u64,
    /// Port calls that a process lives for on average; 0: for ever.
    pub(crate) life_calls: u64,
}

impl Faults {
    /// Each run has its own mixture, so that every fault is at times the only one.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut some = |most: u64| if rng.chance(500) { rng.below(most + 1) } else { 0 };
        Self {
            append_refused: some(30),
            append_stalled: some(40),
            ack_repeated: some(200),
            read_failed: some(30),
            tool_failed: some(300),
            tool_slow: some(200),
            tool_never: some(60),
            model_failed: some(300),
            model_slow: some(100),
            life_calls: some(400),
        }
    }
}

/// What a run has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events at which something could have gone wrong: appends, acknowledgements, job starts and
    /// ends, effects, model answers, lease beats.
    pub steps: u64,
    /// Sessions in the store at the end.
    pub sessions: u64,
    /// Events in the store at the end, without those that a fork shares.
    pub events: u64,
    /// Appends that the store took.
    pub appends: u64,
    /// Of those, changes of owner.
    pub takeovers: u64,
    /// Processes that died.
    pub crashes: u64,
    /// Effects of tools, of all kinds.
    pub effects: u64,
    /// Effects of an attempt that somebody had called not done while it was still running.
    pub overtaken_effects: u64,
    /// Decisions that counted.
    pub decisions: u64,
    /// Conversations that were made shorter for their model.
    pub compactions: u64,
    /// Of the summaries that were asked for, those that were given.
    pub summaries: u64,
    /// Seconds of virtual time.
    pub virtual_s: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: Counts) {
        self.steps += other.steps;
        self.sessions += other.sessions;
        self.events += other.events;
        self.appends += other.appends;
        self.takeovers += other.takeovers;
        self.crashes += other.crashes;
        self.effects += other.effects;
        self.overtaken_effects += other.overtaken_effects;
        self.decisions += other.decisions;
        self.virtual_s += other.virtual_s;
    }
}

/// See the module.
pub(crate) struct World {
    rng: Mutex<Rng>,
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    calm: AtomicBool,
    pub(crate) start: Instant,
    trace: Mutex<VecDeque<String>>,
    violations: Mutex<Vec<String>>,
    pub(crate) truth: Mutex<Truth>,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) witness: Mutex<Witness>,
    /// Appends that have not arrived.
    pub(crate) flights: Mutex<Vec<Arc<Mutex<Flight>>>>,
    pub(crate) counts: Mutex<Counts>,
    trace_hash: AtomicU64,
    /// Whether everything that happens is printed at once, for a run that does not end.
    loud: bool,
}

/// Lines that are kept of what happened.
const TRACE_MAX: usize = 400;

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let faults = Faults::draw(&mut rng);
        Self {
            rng: Mutex::new(rng),
            seed,
            faults,
            calm: AtomicBool::new(false),
            start: Instant::now(),
            trace: Mutex::default(),
            violations: Mutex::default(),
            truth: Mutex::default(),
            ledger: Mutex::default(),
            witness: Mutex::default(),
            flights: Mutex::default(),
            counts: Mutex::default(),
            trace_hash: AtomicU64::new(0),
            loud: std::env::var_os("SIM_LOUD").is_some(),
        }
    }

    /// The generator, for several draws in a row.
    pub(crate) fn rng(&self) -> MutexGuard<'_, Rng> {
        lock(&self.rng)
    }

    /// Whether a fault of this frequency happens now; never once all is calm.
    pub(crate) fn fault(&self, per_mille: u64) -> bool {
        !self.is_calm() && self.rng().chance(per_mille)
    }

    /// Ends all faults.
    pub(crate) fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Virtual time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Notes what happened.
    pub(crate) fn note(&self, what: String) {
        let line = format!("{:>10.3} {what}", self.elapsed().as_secs_f64());
        let hash = crate::rng::hash(self.trace_hash.load(Ordering::Relaxed), line.as_bytes());
        self.trace_hash.store(hash, Ordering::Relaxed);
        if self.loud {
            eprintln!("{line}");
        }
        let mut trace = lock(&self.trace);
        if trace.len() == TRACE_MAX {
            trace.pop_front();
        }
        trace.push_back(line);
    }

    /// Notes that an invariant does not hold.
    pub(crate) fn violated(&self, invariant: &str, what: &str) {
        let line = format!("{invariant}: {what}");
        self.note(format!("VIOLATED {line}"));
        lock(&self.violations).push(line);
    }

    /// Whether anything has gone wrong so far.
    pub(crate) fn has_failed(&self) -> bool {
        !lock(&self.violations).is_empty()
    }

    /// Everything that did not hold, and the last of what happened.
    pub(crate) fn findings(&self) -> (Vec<String>, Vec<String>) {
        (lock(&self.violations).clone(), lock(&self.trace).iter().cloned().collect())
    }

    /// A number that is the same for two runs only if the same happened in both.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.trace_hash.load(Ordering::Relaxed)
    }
}

/// Locks; a panic elsewhere has been reported where it was.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
