//! The parts of an agent that routing needs beside its spec: learnt weights and a judge.
//!
//! Invariant: the spec names the weights by their id, so other weights are another agent; their file
//! is stored as a blob of that hash, once for each agent and engine, so that a replay finds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use mainspring_models::EndpointSet;
use mainspring_session::{AgentSpec, BlobHash, ErrorCode, Failure, ModelSpec, Weights};

use crate::agent::Tier;
use crate::checking::{self, AGREEMENT_MAX};

/// Checks how an agent's models share its steps, and attaches the weights.
pub(crate) fn attach(spec: &mut AgentSpec, weights: Option<&[u8]>) -> Result<(), Failure> {
    let invalid = |what: String| Failure::new(ErrorCode::AGENT_INVALID, what);
    let name = spec.name.clone();
    if let Some(file) = weights {
        let read = Weights::parse(file)
            .map_err(|error| invalid(format!("agent {name:?}: {error}")).with_hint(error.hint()))?;
        spec.route.get_or_insert_default().weights = Some(read.id().to_owned());
        spec.weights = Some(Arc::new(read));
    }
    let Some(route) = &spec.route else { return Ok(()) };
    route.policy.check().map_err(|what| invalid(format!("agent {name:?}: {what}")))?;
    if route.agreement > AGREEMENT_MAX {
        let seen = route.agreement;
        return Err(invalid(format!(
            "agent {name:?} asks for {seen} further answers, allowed are 0 to {AGREEMENT_MAX}"
        )));
    }
    match (&route.weights, &spec.weights) {
        (Some(id), None) => Err(invalid(format!("agent {name:?} comes without its weights {id}"))),
        _ => Ok(()),
    }
}

/// The judge made ready to be asked, if the agent has one.
pub(crate) fn judge(
    spec: &AgentSpec,
    endpoints: impl FnOnce(&ModelSpec) -> Result<Arc<EndpointSet>, Failure>,
) -> Result<Option<Tier>, Failure> {
    let Some(model) = spec.route.as_ref().and_then(|route| route.judge.as_ref()) else {
        return Ok(None);
    };
    Tier::new(&checking::judge_spec(model), model, endpoints(model)?).map(Some)
}

/// A body that goes to the store once, with the first session that gets there.
#[derive(Debug, Default)]
pub(crate) struct StoredOnce {
    blob: Option<(BlobHash, Arc<[u8]>)>,
    state: AtomicU8,
}

const NOT_STORED: u8 = 0;
const UNDER_WAY: u8 = 1;
const STORED: u8 = 2;

impl StoredOnce {
    pub(crate) fn new(body: Option<Arc<[u8]>>) -> Self {
        let blob = body.map(|body| (BlobHash::of(&body), body));
        Self { blob, state: AtomicU8::new(NOT_STORED) }
    }

    /// The body, for the one who is to store it now.
    pub(crate) fn take(&self) -> Option<(BlobHash, Arc<[u8]>)> {
        let blob = self.blob.as_ref()?;
        let (from, to) = (NOT_STORED, UNDER_WAY);
        let mine = self.state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        mine.is_ok().then(|| blob.clone())
    }

    /// Whoever took the body has stored it, or has not.
    pub(crate) fn settle(&self, stored: bool) {
        self.state.store(if stored { STORED } else { NOT_STORED }, Ordering::Relaxed);
    }
}
