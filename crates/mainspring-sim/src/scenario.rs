//! One run: a time of trouble, then calm, in which everything must come to rest.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::agents;
use crate::client::{decide_some, use_engines};
use crate::cluster::{Cluster, NODES};
use crate::final_checks;
use crate::trouble::make_trouble;
use crate::world::{Counts, World, lock};

/// How long sessions may take to come to rest once all is calm: longer than a clock can be off.
const REST_MAX: Duration = Duration::from_secs(3 * 3_600);
/// Rounds of decisions about what waits for people, once all is calm.
const ROUNDS_MAX: u32 = 200;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What it did.
    pub counts: Counts,
    /// What did not hold: the invariant and where.
    pub violations: Vec<String>,
    /// The last of what happened, with virtual times in seconds.
    pub trace: Vec<String>,
    /// The same for two runs only if the same happened in both.
    pub fingerprint: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        for violation in &self.violations {
            writeln!(f, "seed {}: {violation}", self.seed)?;
        }
        Ok(())
    }
}

/// Runs the simulation of a seed. It takes no real time but that of the work.
///
/// # Panics
/// If no tokio runtime can be made.
#[must_use]
pub fn run(seed: u64) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the system");
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, simulate(seed))
}

async fn simulate(seed: u64) -> Report {
    let world = Arc::new(World::new(seed));
    let cluster = Cluster::new(&world, agents::all());
    for node in 0..NODES {
        tokio::task::spawn_local(Arc::clone(&cluster).keep(node));
    }
    let until = Duration::from_secs(5 + world.rng().below(25));
    let clients = 1 + world.rng().below(3);
    let mut busy = vec![tokio::task::spawn_local(make_trouble(Arc::clone(&cluster), until))];
    for _ in 0..clients {
        busy.push(tokio::task::spawn_local(use_engines(Arc::clone(&cluster), until)));
    }
    for task in busy {
        if let Err(error) = task.await {
            world.violated("no part of the simulation panics", &error.to_string());
        }
    }
    world.note("all is calm".to_owned());
    world.calm_down();
    if !world.has_failed() {
        settle(&cluster).await;
    }
    let mut counts = *lock(&world.counts);
    counts.virtual_s = world.elapsed().as_secs();
    counts.sessions = lock(&world.truth).logs.len() as u64;
    let (violations, trace) = world.findings();
    Report { seed, counts, violations, trace, fingerprint: world.fingerprint() }
}

/// Lets every session come to rest, decides what waits for people, and looks at what is left.
async fn settle(cluster: &Arc<Cluster>) {
    // So that both nodes live: one that is ending now is followed within this time.
    tokio::time::sleep(Duration::from_secs(20)).await;
    for _ in 0..ROUNDS_MAX {
        if !rest(cluster).await {
            return;
        }
        final_checks::waiting_is_said(cluster).await;
        let waits = {
            let witness = lock(&cluster.world.witness);
            witness.states().any(|(_, state)| state.is_open())
        };
        if !waits || cluster.world.has_failed() {
            break;
        }
        decide_some(cluster, false).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    final_checks::all_ended(cluster);
    final_checks::logs_hold(cluster).await;
    final_checks::charges_add_up(cluster);
}

/// Waits until every session has ended its turn or waits for people; false if that takes too long.
async fn rest(cluster: &Cluster) -> bool {
    let world = &cluster.world;
    let begun = world.elapsed();
    loop {
        let busy = {
            let witness = lock(&world.witness);
            let mut states = witness.states();
            let busy = states.find(|(_, state)| state.is_open() && !state.waits_for_people());
            busy.map(|(session, state)| (session.clone(), format!("{:?}", state.phase), state.held))
        };
        let Some((session, phase, held)) = busy else { return true };
        if world.elapsed() > begun + REST_MAX {
            let truth = lock(&world.truth);
            let head = truth.logs.get(&session).map(|log| (log.head.status, log.owner));
            let what = format!("{session} is {phase}, held {held}, status and owner {head:?}");
            drop(truth);
            world.violated("no session is stuck", &what);
            return false;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
