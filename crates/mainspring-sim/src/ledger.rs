//! What the tools have really done, kept apart from everything the engine says.

use std::collections::{BTreeMap, BTreeSet};

use mainspring_engine::CallContext;
use mainspring_session::{CallIndex, Effect, SessionId};

use crate::agents::TOOLS;
use crate::process::Process;
use crate::world::lock;

/// See the module.
#[derive(Default)]
pub(crate) struct Ledger {
    /// By effect id: the attempts that took effect, oldest first.
    done: BTreeMap<String, Vec<(SessionId, u32)>>,
    /// By effect id: what it was asked to do.
    arguments: BTreeMap<String, String>,
    /// By effect id: how often it was found not to have been done, in any log.
    pub(crate) not_done: BTreeMap<String, u32>,
    /// By effect id and attempt: found not to have been done while it may have been running.
    pub(crate) overtaken: BTreeSet<(String, u32)>,
    /// Calls that a policy let run without a person.
    pub(crate) waived: BTreeSet<(SessionId, CallIndex)>,
    /// Attempts handed to a host.
    pub(crate) handed: BTreeSet<(String, String, u32)>,
}

impl Ledger {
    /// Whether something took effect under this id.
    pub(crate) fn has(&self, effect_id: &str) -> bool {
        self.done.contains_key(effect_id)
    }
}

/// A tool takes effect.
pub(crate) fn take_effect(process: &Process, tool: usize, arguments: &str, context: &CallContext) {
    let world = &process.world;
    let (key, attempt) = (context.effect_id.as_str(), context.attempt);
    let call = format!("{} of {} call {}", TOOLS[tool].name, context.session, context.call.0);
    world.note(format!("{}: effect of {call} attempt {attempt}", process.name));
    lock(&world.counts).effects += 1;
    let row = lock(&process.lease).0;
    if !lock(&world.truth).is_live(row) {
        world.violated("no effect without a lease", &call);
    }
    let mut ledger = lock(&world.ledger);
    if ledger.overtaken.contains(&(key.to_owned(), attempt)) {
        lock(&world.counts).overtaken_effects += 1;
    }
    let known = ledger.arguments.entry(key.to_owned()).or_insert_with(|| arguments.to_owned());
    if known != arguments {
        world.violated("one key, one set of arguments", &format!("{call}: {known}, {arguments}"));
    }
    let allowed = 1 + ledger.not_done.get(key).copied().unwrap_or(0) as usize;
    let done = ledger.done.entry(key.to_owned()).or_default();
    done.push((context.session.clone(), attempt));
    if TOOLS[tool].effect == Effect::Unsafe && done.len() > allowed {
        let what = format!("{call} took effect {} times, {allowed} allowed", done.len());
        world.violated("unsafe at most once", &what);
    }
}
