//! The host as one process has it: tools that take their time, fail, never return or return too
//! late, and functions that are asked about calls. It asks whether it may act just before it acts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainspring_engine::{CallContext, Host, HostCall, HostJob, HostOutcome, HostResult, Ticket};
use mainspring_models::ModelHost;
use mainspring_session::{EffectOutcome, ErrorCode, Event, Failure, Seq};
use tokio::sync::Notify;

use crate::ledger::take_effect;
use crate::process::Process;
use crate::world::lock;

/// See the module.
pub(crate) struct SimHost {
    process: Arc<Process>,
    /// Jobs that can be stopped.
    stops: Arc<Mutex<BTreeMap<u64, Arc<Notify>>>>,
}

impl SimHost {
    pub(crate) fn new(process: &Arc<Process>) -> Self {
        Self { process: Arc::clone(process), stops: Arc::default() }
    }
}

impl ModelHost for SimHost {}

impl Host for SimHost {
    fn run(&self, calls: Vec<HostCall>) {
        for HostCall { ticket, job } in calls {
            if !self.process.reach("a job") {
                return;
            }
            let stop = Arc::new(Notify::new());
            if self.process.world.rng().chance(500) {
                lock(&self.stops).insert(ticket.0, Arc::clone(&stop));
            }
            let (process, stops) = (Arc::clone(&self.process), Arc::clone(&self.stops));
            tokio::task::spawn_local(async move {
                let outcome = tokio::select! {
                    biased;
                    () = stop.notified() => Some(HostOutcome::Cancelled),
                    outcome = carry_out(&process, job) => outcome,
                };
                lock(&stops).remove(&ticket.0);
                if let Some(outcome) = outcome {
                    end(&process, ticket, outcome).await;
                }
            });
        }
    }

    fn cancel(&self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            if let Some(stop) = lock(&self.stops).get(&ticket.0) {
                stop.notify_one();
            }
        }
    }
}

async fn end(process: &Arc<Process>, ticket: Ticket, outcome: HostOutcome) {
    if !process.running().await || !process.reach("the end of a job") {
        return;
    }
    let Some(engine) = process.engine() else { return };
    let twice = process.world.fault(20);
    engine.host_results(vec![HostResult { ticket, outcome: outcome.clone() }]);
    if twice {
        engine.host_results(vec![HostResult { ticket, outcome }]);
    }
}

/// Does a job; none if it never ends, or if its process has.
async fn carry_out(process: &Arc<Process>, job: HostJob) -> Option<HostOutcome> {
    let world = &process.world;
    if let HostJob::Tool { context, .. } = &job {
        check_durable(process, context);
    }
    let slow = world.fault(world.faults.tool_slow);
    let never = world.fault(world.faults.tool_never);
    let takes =
        if slow { world.rng().between_ms(1_000, 6_000) } else { world.rng().between_ms(0, 300) };
    tokio::time::sleep(takes).await;
    if never || !process.running().await {
        return None;
    }
    Some(match job {
        HostJob::Tool { tool, arguments, context } => {
            let outcome = run_tool(process, tool as usize, &arguments, &context)?;
            let after = world.rng().between_ms(0, 60);
            tokio::time::sleep(after).await;
            outcome
        }
        HostJob::Policy { context, .. } => policy(process, &context),
        HostJob::Reconcile { context, .. } => reconcile(process, &context),
        HostJob::Verify { .. } => match world.rng().below(10) {
            0 => HostOutcome::Verified(Some("not good enough".to_owned())),
            1 if !world.is_calm() => HostOutcome::Failed(raised()),
            _ => HostOutcome::Verified(None),
        },
    })
}

fn raised() -> Failure {
    Failure::new(ErrorCode::TOOL_FAILED, "it raised")
}

/// The result of an attempt, so that it can be told from any other.
pub(crate) fn result_text(effect_id: &str, attempt: u32) -> String {
    format!("{effect_id}/{attempt}")
}

fn run_tool(
    process: &Arc<Process>,
    tool: usize,
    arguments: &str,
    context: &CallContext,
) -> Option<HostOutcome> {
    let world = &process.world;
    let failed = world.fault(world.faults.tool_failed);
    if failed && world.rng().chance(600) {
        return Some(HostOutcome::Failed(raised()));
    }
    if !process.engine()?.may_act(context.tenure) {
        let message = "the process may no longer act for the session";
        return Some(HostOutcome::Failed(Failure::new(ErrorCode::LEASE_LOST, message)));
    }
    if !process.reach("an effect") {
        return None;
    }
    take_effect(process, tool, arguments, context);
    if !process.reach("the end of an effect") {
        return None;
    }
    Some(match failed {
        true => HostOutcome::Failed(raised()),
        false => HostOutcome::Returned(result_text(context.effect_id.as_str(), context.attempt)),
    })
}

/// The intent must be in the store before the job is begun, and each attempt is begun once.
fn check_durable(process: &Process, context: &CallContext) {
    let world = &process.world;
    let truth = lock(&world.truth);
    let log = truth.logs.get(&context.session);
    let durable = log.is_some_and(|log| {
        log.records(Seq(0), None).iter().rev().any(|record| match record.event() {
            Ok(Event::ToolCallStarted(started)) => {
                (started.call, started.attempt) == (context.call, context.attempt)
                    && started.effect_id == context.effect_id
            }
            _ => false,
        })
    });
    drop(truth);
    let call = format!("{} call {}", context.session, context.call.0);
    if !durable {
        world.violated("nothing is begun before it is durable", &call);
    }
    let (session, key) = (context.session.as_str(), context.effect_id.as_str());
    let handed = (session.to_owned(), key.to_owned(), context.attempt);
    if !lock(&world.ledger).handed.insert(handed) {
        world.violated("each attempt is begun once", &call);
    }
}

fn policy(process: &Process, context: &CallContext) -> HostOutcome {
    let world = &process.world;
    match world.rng().below(10) {
        0 => HostOutcome::Failed(raised()),
        1..5 => HostOutcome::Policy(true),
        _ => {
            let call = (context.session.clone(), context.call);
            lock(&world.ledger).waived.insert(call);
            HostOutcome::Policy(false)
        }
    }
}

/// Answers from the ledger, or not at all.
fn reconcile(process: &Process, context: &CallContext) -> HostOutcome {
    let world = &process.world;
    let which = world.rng().below(10);
    let key = context.effect_id.as_str();
    match which {
        0 => HostOutcome::Failed(raised()),
        1 => {
            let message = "it cannot be found out".to_owned();
            HostOutcome::Reconciled(EffectOutcome::Undecided { message })
        }
        _ if lock(&world.ledger).has(key) => {
            let text = result_text(key, 0);
            HostOutcome::Reconciled(EffectOutcome::Done { text })
        }
        _ => HostOutcome::Reconciled(EffectOutcome::NotDone),
    }
}

/// How long the store's truth may take to reach whoever asks about an effect.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
