//! The nodes: two processes on one store, each followed by another when it dies.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainspring_engine::{Agent, ClaimRequest, Engine, EngineLimits, OnChange, Parts, Reply};
use mainspring_session::{ErrorCode, Failure};
use tokio::sync::oneshot;

use crate::agents;
use crate::host::SimHost;
use crate::journal::{SimJournal, keep_lease};
use crate::models::{Asked, SimModels};
use crate::process::Process;
use crate::world::{World, lock};

/// How many nodes there are.
pub(crate) const NODES: usize = 2;

/// See the module.
pub(crate) struct Cluster {
    pub(crate) world: Arc<World>,
    pub(crate) agents: Vec<Arc<Agent>>,
    asked: Arc<Asked>,
    nodes: Mutex<Vec<Option<Arc<Process>>>>,
}

impl Cluster {
    pub(crate) fn new(world: &Arc<World>, agents: Vec<Arc<Agent>>) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            agents,
            asked: Arc::default(),
            nodes: Mutex::new(vec![None; NODES]),
        })
    }

    /// Keeps a node going: one process after the other.
    pub(crate) async fn keep(self: Arc<Self>, node: usize) {
        for life in 1u32.. {
            let process = Process::new(&self.world, format!("n{node}.{life}"));
            let engine = self.begin(&process);
            lock(&self.nodes)[node] = Some(Arc::clone(&process));
            process.died.notified().await;
            lock(&self.nodes)[node] = None;
            drop(engine);
            let pause = self.world.rng().between_ms(20, 6_000);
            tokio::time::sleep(pause).await;
        }
    }

    fn begin(&self, process: &Arc<Process>) -> Arc<Engine> {
        tokio::task::spawn_local(keep_lease(Arc::clone(process)));
        let limits = EngineLimits {
            verify_ms_max: 3_000,
            snapshot_events_min: 8,
            snapshot_every_events: 4,
            ..EngineLimits::default()
        };
        let made = Engine::without_threads(Parts {
            journal: Arc::new(SimJournal(Arc::clone(process))),
            host: Arc::new(SimHost::new(process)),
            models: Arc::new(SimModels {
                process: Arc::clone(process),
                asked: Arc::clone(&self.asked),
            }),
            clock: Arc::clone(process) as Arc<dyn mainspring_engine::Clock>,
            limits,
            budgets: agents::budgets(),
        });
        let (engine, shard) = made.expect("the budgets of a run can be used");
        let engine = Arc::new(engine);
        let _ = process.engine.set(Arc::downgrade(&engine));
        tokio::task::spawn_local(Arc::clone(process).run(shard.run()));
        let request = ClaimRequest { agents: self.agents.clone(), on_change: OnChange::Continue };
        engine.claim(request, Box::new(|_| {}));
        engine
    }

    /// A process that lives, at random; none if none does.
    pub(crate) fn any(&self) -> Option<Arc<Process>> {
        let living: Vec<_> = self.living();
        self.world.rng().pick(&living).cloned()
    }

    /// All processes that live.
    pub(crate) fn living(&self) -> Vec<Arc<Process>> {
        let nodes = lock(&self.nodes);
        nodes.iter().flatten().filter(|process| !process.is_dead()).cloned().collect()
    }

    /// Drains a process, ends it in good order and lets another follow.
    pub(crate) async fn drain(&self, process: &Arc<Process>) {
        self.world.note(format!("{} is drained", process.name));
        let within = self.world.rng().between_ms(0, 4_000);
        let drained = ask(process, Duration::from_secs(60), "drain", |engine, reply| {
            engine.drain(within, reply);
        });
        let report = drained.await;
        if process.is_dead() {
            return;
        }
        self.world.note(format!("{} drained: {report:?}", process.name));
        if let Some(engine) = process.engine() {
            let _ = engine.close();
        }
        process.end();
    }
}

/// Asks an engine something. None if the process died, or if no answer came in time, which no
/// question but those that may wait for a person may end in.
pub(crate) async fn ask<T: Send + 'static>(
    process: &Arc<Process>,
    within: Duration,
    what: &str,
    send: impl FnOnce(&Engine, Reply<T>),
) -> Option<Result<T, Failure>> {
    let (sender, answer) = oneshot::channel();
    {
        let engine = process.engine()?;
        send(&engine, Box::new(move |result| drop(sender.send(result))));
    }
    let answer = tokio::time::timeout(within, answer).await;
    if process.is_dead() {
        return None;
    }
    let world = &process.world;
    match answer {
        Ok(Ok(answer)) => {
            if let Err(error) = &answer
                && error.code == ErrorCode::INTERNAL
            {
                world.violated("no invariant of the engine breaks", &format!("{what}: {error}"));
            }
            Some(answer)
        }
        Ok(Err(_)) => {
            world.violated("every question is answered", &format!("{what}: the reply was dropped"));
            None
        }
        Err(_) => {
            if !matches!(what, "wait" | "watch") {
                world.violated("every question is answered", &format!("{what}: no answer"));
            }
            None
        }
    }
}
