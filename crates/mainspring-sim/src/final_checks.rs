//! What must hold once all is calm.

use std::sync::Arc;
use std::time::Duration;

use mainspring_engine::{PendingKind, SessionOutcome};
use mainspring_journal::SessionStatus;
use mainspring_session::{Amount, CallStatus, SessionId, State};

use crate::agents;
use crate::cluster::{Cluster, ask};
use crate::world::lock;

const SOON: Duration = Duration::from_secs(60);

/// Every session that waits for people says so, in its head and in both lists.
pub(crate) async fn waiting_is_said(cluster: &Arc<Cluster>) {
    let world = &cluster.world;
    let open: Vec<(SessionId, usize)> = {
        let witness = lock(&world.witness);
        let open = witness.states().filter(|(_, state)| state.is_open());
        open.map(|(session, state)| (session.clone(), asked_of_people(state))).collect()
    };
    let Some(process) = cluster.any() else { return };
    let all = ask(&process, SOON, "pending", |engine, reply| engine.pending(None, 1_000, reply));
    let Some(Ok(all)) = all.await else { return };
    for (session, count) in open {
        let status = lock(&world.truth).logs.get(&session).map(|log| log.head.status);
        let listed = all.iter().filter(|pending| pending.session == session).count();
        if status != Some(SessionStatus::Waiting) || listed != count {
            let what = format!("{session} is {status:?}, {listed} of {count} calls are listed");
            world.violated("what waits for people says so", &what);
        }
        let named = all.iter().filter(|pending| pending.session == session);
        let empty = |kind: &PendingKind| matches!(kind, PendingKind::Approval(id) if id.as_str().is_empty());
        if named.into_iter().any(|pending| empty(&pending.kind)) {
            world.violated("what waits for people says so", &format!("{session}: no id"));
        }
    }
}

fn asked_of_people(state: &State) -> usize {
    let waits =
        |status: &CallStatus| matches!(status, CallStatus::Awaiting(_) | CallStatus::Unknown);
    state.calls().iter().filter(|call| waits(&call.status)).count()
}

/// Once people have decided everything, every turn has ended.
pub(crate) fn all_ended(cluster: &Cluster) {
    let witness = lock(&cluster.world.witness);
    for (session, state) in witness.states() {
        if state.is_open() {
            let what = format!("{session} is {:?}", state.phase);
            cluster.world.violated("every turn comes to an end", &what);
        }
    }
}

/// Every log replays to itself, reads the same through its snapshots, and is reported by every node.
pub(crate) async fn logs_hold(cluster: &Arc<Cluster>) {
    let world = &cluster.world;
    let all: Vec<(SessionId, State)> = {
        let witness = lock(&world.witness);
        witness.states().map(|(session, state)| (session.clone(), state.clone())).collect()
    };
    for (session, state) in &all {
        for process in cluster.living() {
            check_state(&process, session, state).await;
        }
        let Some(process) = cluster.any() else { return };
        let replay =
            ask(&process, SOON, "replay", |engine, reply| engine.replay(session.clone(), reply));
        match replay.await {
            Some(Ok(replay)) if replay.divergence.is_none() => {}
            other => {
                let what = format!("{session}: {other:?}");
                world.violated("a log replays to itself", &what);
            }
        }
    }
}

async fn check_state(process: &Arc<crate::process::Process>, session: &SessionId, state: &State) {
    let world = &process.world;
    let read = ask(process, SOON, "state", |engine, reply| {
        engine.state_at(session.clone(), None, reply);
    });
    let mut folded = serde_json::to_value(state).expect("a state has string keys only");
    folded["messages"] =
        serde_json::to_value(&state.messages).expect("messages have string keys only");
    let folded = folded.to_string();
    match read.await {
        Some(Ok(read)) if read == folded => {}
        other => {
            let what = format!("{session}: {other:?}");
            world.violated("snapshots and the rest give the folded state", &what);
        }
    }
    let report = ask(process, SOON, "final wait", |engine, reply| {
        engine.wait(session.clone(), reply);
    });
    match report.await {
        // A node that dropped the session itself says why.
        Some(Err(_)) => {}
        // A fork of a session before its first turn has none to report.
        Some(Ok(_)) if state.outcome.is_none() => {}
        Some(Ok(report))
            if !matches!(report.outcome, SessionOutcome::Open | SessionOutcome::Waiting) => {}
        other => {
            let what = format!("{session}: {other:?}");
            world.violated("the end of a turn is reported", &what);
        }
    }
}

/// What the tenant was charged is what the logs of its sessions say, to the last call.
pub(crate) fn charges_add_up(cluster: &Cluster) {
    let world = &cluster.world;
    let spent = {
        let witness = lock(&world.witness);
        let charged = witness
            .states()
            .filter(|(_, state)| state.spending.funding.tenant == agents::TENANT)
            .map(|(_, state)| state.spending.charged);
        charged.fold(Amount::default(), Amount::plus)
    };
    let stored = lock(&world.truth).accounts.get(agents::TENANT).copied().unwrap_or_default();
    if spent != stored {
        let what = format!("the logs say {spent:?}, the account has {stored:?}");
        world.violated("charges are what the logs say", &what);
    }
}
