//! What happens to the nodes: stops, jumping clocks, drains, deaths, and writers out of the past.

use std::sync::Arc;
use std::time::Duration;

use mainspring_journal::{AckSink, Acked, Append, AppendMode, SessionStatus};
use mainspring_session::{Epoch, Seq};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::journal::store;
use crate::process::Process;
use crate::world::lock;

/// Makes trouble until the time is up.
pub(crate) async fn make_trouble(cluster: Arc<Cluster>, until: Duration) {
    let world = Arc::clone(&cluster.world);
    let (pause_ms, kinds) = {
        let mut rng = world.rng();
        (500 + rng.below(6_000), rng.next())
    };
    while world.elapsed() < until {
        let pause = world.rng().between_ms(50, pause_ms);
        tokio::time::sleep(pause).await;
        let Some(process) = cluster.any() else { continue };
        let which = world.rng().below(6);
        // Each run makes only some kinds of trouble.
        if kinds & (1 << which) == 0 {
            continue;
        }
        match which {
            0 => {
                let length = world.rng().between_ms(100, 9_000);
                process.stop_until(Instant::now() + length);
            }
            1 => {
                const HOUR_US: i64 = 3_600_000_000;
                let by_us =
                    [HOUR_US, -HOUR_US, 0][usize::try_from(world.rng().below(3)).unwrap_or(0)];
                world.note(format!("{} sets its clock off by {by_us} us", process.name));
                process.jump_clock(by_us);
            }
            2 => cluster.drain(&process).await,
            3 => {
                world.note(format!("{} is killed", process.name));
                process.die();
            }
            _ => forge(&process),
        }
    }
}

/// Nobody listens.
struct Nobody;

impl AckSink for Nobody {
    fn acked(&self, _: Vec<Acked>) {}
}

/// Tries to write to a session at rest with the right position and the epoch of an earlier owner.
fn forge(process: &Process) {
    let world = &process.world;
    let targets: Vec<_> = {
        let truth = lock(&world.truth);
        let heads = truth.logs.values().map(|log| &log.head);
        let old = heads.filter(|head| head.epoch.0 > 1 && head.status != SessionStatus::Open);
        old.map(|head| (head.id.clone(), head.epoch, head.next_seq)).collect()
    };
    let Some((session, epoch, next_seq)) = world.rng().pick(&targets).cloned() else { return };
    let back = 1 + world.rng().below(epoch.0 - 1);
    let append = forged(session, Epoch(epoch.0 - back), next_seq);
    let row = lock(&process.lease).0;
    if store(process, row, &append).is_ok() {
        let session = &append.session;
        world.violated("an old owner cannot write", &format!("{session} epoch {}", epoch.0 - back));
    }
}

fn forged(session: mainspring_session::SessionId, epoch: Epoch, expected_seq: Seq) -> Append {
    Append {
        session,
        epoch,
        expected_seq,
        events: br#"{"kind":"limit_reached","limit":"forged","value":0,"allowed":0}"#.to_vec(),
        count: 1,
        at_us: 0,
        mode: AppendMode::Continue,
        status: SessionStatus::Finished,
        blobs: Vec::new(),
        snapshot: None,
        charges: Vec::new(),
        release: false,
        token: 0,
        sink: Arc::new(Nobody),
    }
}
