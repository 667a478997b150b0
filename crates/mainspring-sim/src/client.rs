//! Those who use the engines: they begin turns, cancel, fork, decide and watch, all at once, on
//! whichever node lives, and check what they are told.

use std::sync::Arc;
use std::time::Duration;

use mainspring_engine::{
    DecideRequest, Decision, Edit, ForkRequest, OnChange, Payment, ResumeRequest, SessionOutcome,
    StartRequest, WatchItem,
};
use mainspring_session::{
    ApprovalDecision, ApprovalId, CallIndex, CallStatus, EffectOutcome, Event, Part, Seq, SessionId,
};

use crate::agents;
use crate::cluster::{Cluster, ask};
use crate::host::{PATIENCE, result_text};
use crate::process::Process;
use crate::world::lock;

/// Most sessions that are begun or forked.
const SESSIONS_MAX: usize = 8;
/// How long a client waits for something that may take a person's time.
const WAIT: Duration = Duration::from_secs(30);

/// A client that does one thing after the other until the time is up.
pub(crate) async fn use_engines(cluster: Arc<Cluster>, until: Duration) {
    let world = Arc::clone(&cluster.world);
    while world.elapsed() < until {
        let pause = world.rng().between_ms(5, 700);
        tokio::time::sleep(pause).await;
        let Some(process) = cluster.any() else { continue };
        let which = world.rng().below(100);
        match which {
            0..25 => begin(&cluster, &process).await,
            25..33 => cancel(&cluster, &process).await,
            33..43 => fork(&cluster, &process).await,
            43..75 => decide_some(&cluster, true).await,
            75..80 => resume(&cluster, &process).await,
            80..90 => {
                if let Some(session) = any_session(&cluster) {
                    tokio::task::spawn_local(watch(process, session));
                }
            }
            _ => {
                if let Some(session) = any_session(&cluster) {
                    tokio::task::spawn_local(wait(process, session));
                }
            }
        }
    }
}

fn any_session(cluster: &Cluster) -> Option<SessionId> {
    let all: Vec<SessionId> = lock(&cluster.world.truth).logs.keys().cloned().collect();
    cluster.world.rng().pick(&all).cloned()
}

fn new_session(cluster: &Cluster, prefix: &str) -> SessionId {
    let number = cluster.world.rng().below(SESSIONS_MAX as u64);
    SessionId::new(&format!("{prefix}{number}")).expect("letters and digits make an id")
}

/// Begins a turn of a new session, or the next one.
async fn begin(cluster: &Cluster, process: &Arc<Process>) {
    let session = new_session(cluster, "s");
    let (submit, at) = {
        let mut rng = cluster.world.rng();
        (rng.chance(300), rng.next())
    };
    let text = format!("session {session} input {at:x}");
    let Some(agent) = cluster.world.rng().pick(&cluster.agents).cloned() else { return };
    let request = StartRequest {
        session: Some(session.clone()),
        agent,
        content: vec![Part::Text { text: text.clone() }],
        origin: None,
        submit,
        payment: agents::payment(&session),
        step_class: None,
    };
    let opened = ask(process, PATIENCE, "start", |engine, reply| engine.start(request, reply));
    let Some(Ok(opened)) = opened.await else { return };
    let world = &cluster.world;
    let there = lock(&world.truth).logs.get(&session).is_some_and(|log| {
        let records = log.records(opened.from, None);
        records.iter().any(|record| record.json.get().contains(&text))
    });
    if !there {
        world.violated("what is acknowledged is stored", &format!("the input of {session}"));
    }
}

async fn cancel(cluster: &Cluster, process: &Arc<Process>) {
    let Some(session) = any_session(cluster) else { return };
    let asked = ask(process, PATIENCE, "cancel", |engine, reply| {
        engine.cancel(session.clone(), "enough".to_owned(), reply);
    });
    let _ = asked.await;
}

async fn resume(cluster: &Cluster, process: &Arc<Process>) {
    let Some(session) = any_session(cluster) else { return };
    let Some(agent) = cluster.world.rng().pick(&cluster.agents).cloned() else { return };
    let on_change = match cluster.world.rng().below(3) {
        0 => OnChange::Pin,
        1 => OnChange::Refuse,
        _ => OnChange::Continue,
    };
    let request = ResumeRequest { session, agent, on_change };
    let _ = ask(process, PATIENCE, "resume", |engine, reply| engine.resume(request, reply)).await;
}

/// Forks a session at any of its events, at times with other words.
async fn fork(cluster: &Cluster, process: &Arc<Process>) {
    let Some(parent) = any_session(cluster) else { return };
    let world = &cluster.world;
    let session = new_session(cluster, "f");
    let length = lock(&world.truth).logs.get(&parent).map_or(1, |log| log.events.len() as u64);
    let (at, edit, input) = {
        let mut rng = world.rng();
        let at = Seq(rng.below(length));
        let edit = rng.chance(500).then(|| Edit::Text("said otherwise".to_owned()));
        (at, edit, rng.chance(300))
    };
    let Some(agent) = world.rng().pick(&cluster.agents).cloned() else { return };
    let content = input.then(|| vec![Part::Text { text: format!("go on {session}") }]);
    let request = ForkRequest {
        parent,
        at: Some(at),
        session: Some(session),
        agent,
        edit,
        content,
        origin: None,
        payment: Payment::default(),
    };
    let _ = ask(process, PATIENCE, "fork", |engine, reply| engine.fork(request, reply)).await;
}

/// A call that waits for somebody, and for what.
type Waiting = (SessionId, CallIndex, Option<ApprovalId>, String);

fn waiting(cluster: &Cluster) -> Vec<Waiting> {
    let witness = lock(&cluster.world.witness);
    let mut found = Vec::new();
    for (session, state) in witness.states() {
        for call in state.calls() {
            let open = match &call.status {
                CallStatus::Awaiting(approval) => Some(approval.clone()),
                CallStatus::Unknown => None,
                _ => continue,
            };
            let key = state.effect_id(call).as_str().to_owned();
            found.push((session.clone(), call.index, open, key));
        }
    }
    found
}

/// Decides about calls that wait, if `hasty` several times at once and with old ids.
pub(crate) async fn decide_some(cluster: &Arc<Cluster>, hasty: bool) {
    let all = waiting(cluster);
    let Some(chosen) = cluster.world.rng().pick(&all).cloned() else { return };
    let times = if hasty { 1 + cluster.world.rng().below(3) } else { 1 };
    let mut asked = Vec::new();
    for _ in 0..times {
        let Some(process) = cluster.any() else { continue };
        let (cluster, chosen) = (Arc::clone(cluster), chosen.clone());
        asked.push(tokio::task::spawn_local(decide(cluster, process, chosen, hasty)));
    }
    let mut counted = 0;
    for task in asked {
        counted += u32::from(matches!(task.await, Ok(true)));
    }
    if counted > 1 && chosen.2.is_some() {
        let what = format!("{} call {}: {counted} were told so", chosen.0, chosen.1.0);
        cluster.world.violated("one decision counts", &what);
    }
}

/// Decides; true if it was told that the decision about this very request counts.
async fn decide(
    cluster: Arc<Cluster>,
    process: Arc<Process>,
    (session, call, open, key): Waiting,
    hasty: bool,
) -> bool {
    let world = &cluster.world;
    let named = open.is_some() && world.rng().chance(800);
    let decision = match &open {
        Some(approval) => {
            let stale = hasty && world.rng().chance(100);
            let id = if stale { ApprovalId::named("stale") } else { approval.clone() };
            Decision::Approval(named.then_some(id), choose(&cluster))
        }
        None if lock(&world.ledger).has(&key) => {
            Decision::Effect(EffectOutcome::Done { text: result_text(&key, 0) })
        }
        None if world.rng().chance(200) => {
            Decision::Effect(EffectOutcome::Failed { message: "given up".to_owned() })
        }
        None => Decision::Effect(EffectOutcome::NotDone),
    };
    let agent =
        if world.rng().chance(300) { world.rng().pick(&cluster.agents).cloned() } else { None };
    let given = match &decision {
        Decision::Approval(given, _) => given.clone(),
        Decision::Effect(_) | Decision::Cancel(_) => None,
    };
    let request = DecideRequest { session: session.clone(), call, decision, by: None, agent };
    let decided =
        ask(&process, PATIENCE, "decide", |engine, reply| engine.decide(request, reply)).await;
    if !matches!(decided, Some(Ok(()))) {
        return false;
    }
    let Some(given) = given else { return false };
    if !lock(&world.witness).is_answered(given.as_str()) {
        world.violated("what is acknowledged is stored", &format!("a decision of {session}"));
    }
    true
}

fn choose(cluster: &Cluster) -> ApprovalDecision {
    let mut rng = cluster.world.rng();
    match rng.below(10) {
        0..2 => ApprovalDecision::Denied { message: "no".to_owned() },
        2..4 => {
            let arguments = Some(format!("{{\"n\":{}}}", 100 + rng.below(50)));
            ApprovalDecision::Granted { arguments }
        }
        4 => ApprovalDecision::Granted { arguments: Some("{\"n\":\"x\"}".to_owned()) },
        _ => ApprovalDecision::Granted { arguments: None },
    }
}

/// Watches a session and checks that it sees the stored log, in order and without a gap.
async fn watch(process: Arc<Process>, session: SessionId) {
    let world = Arc::clone(&process.world);
    let mut next = Seq(0);
    let begun = world.elapsed();
    while world.elapsed() < begun + WAIT {
        let batch = ask(&process, WAIT, "watch", |engine, reply| {
            engine.watch(session.clone(), next, reply);
        });
        let Some(Ok(batch)) = batch.await else { return };
        for item in &batch.items {
            let WatchItem::Event { seq, json, .. } = item else { continue };
            let truth = lock(&world.truth);
            let log = truth.logs.get(&session);
            let at = usize::try_from(seq.0).unwrap_or(usize::MAX);
            let stored = log.and_then(|log| log.events.get(at)).map(|event| event.json.clone());
            drop(truth);
            if *seq != next || stored.as_deref() != Some(json.as_str()) {
                let what = format!("{session} at {}, seen {} {json}", next.0, seq.0);
                return world.violated("watchers see the stored log", &what);
            }
            next = Seq(seq.0 + 1);
        }
        if batch.ended {
            return;
        }
        let pause = world.rng().between_ms(0, 200);
        tokio::time::sleep(pause).await;
    }
}

/// Waits for the end of a session's turn and checks that the log says the same.
async fn wait(process: Arc<Process>, session: SessionId) {
    let world = Arc::clone(&process.world);
    let report = ask(&process, WAIT, "wait", |engine, reply| engine.wait(session.clone(), reply));
    let Some(Ok(report)) = report.await else { return };
    let truth = lock(&world.truth);
    let Some(log) = truth.logs.get(&session) else { return };
    let said = log.records(Seq(0), None).iter().any(|record| {
        let event = record.event();
        match &report.outcome {
            SessionOutcome::Finished(_) => matches!(event, Ok(Event::SessionFinished(_))),
            SessionOutcome::Failed(_) => matches!(event, Ok(Event::SessionFailed { .. })),
            SessionOutcome::Cancelled(_) => matches!(event, Ok(Event::SessionCancelled { .. })),
            SessionOutcome::Open | SessionOutcome::Waiting => true,
        }
    });
    drop(truth);
    if !said {
        world.violated("a report says what the log says", &format!("{session}: {report:?}"));
    }
}
