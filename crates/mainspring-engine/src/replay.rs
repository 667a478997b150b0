//! Replays a stored session: the core runs it again against its recorded results, with the agents'
//! specs as they were stored and the answers checked anew.

use mainspring_journal::Journal;
use mainspring_session::{
    AgentSpec, BlobHash, Divergence, Failure, ModelCallFinished, Problem, Recorded, Seq, SessionId,
    replay as replay_core,
};

use crate::agent::{Agent, AgentConfig, Binding, ModelAccess};
use crate::check;
use crate::loader;

/// How a replay of a stored session ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// The session.
    pub session: SessionId,
    /// How many events came out the same.
    pub events: u64,
    /// The first difference; none if there is none.
    pub divergence: Option<Divergence>,
}

/// Replays a stored session.
///
/// # Errors
/// `session_not_found`; the journal's own errors. A difference is no error.
pub fn replay(journal: &dyn Journal, session: &SessionId) -> Result<Replay, Failure> {
    let records = journal.load(session, Seq(0)).map_err(|error| error.failure())?;
    let mut stored = Stored { journal, agent: None };
    let replayed = replay_core(&records, &mut stored);
    Ok(Replay {
        session: session.clone(),
        events: replayed.events,
        divergence: replayed.divergence,
    })
}

/// The store as the core's replay sees it.
struct Stored<'a> {
    journal: &'a dyn Journal,
    /// The agent in force, to check answers; none if its spec cannot be compiled here.
    agent: Option<Agent>,
}

impl Recorded for Stored<'_> {
    fn spec(&mut self, fingerprint: &BlobHash) -> Option<AgentSpec> {
        let spec = loader::find_spec(self.journal, fingerprint).ok().flatten()?;
        self.agent = unbound(&spec);
        Some(spec)
    }

    fn problems(&mut self, _spec: &AgentSpec, finished: &ModelCallFinished) -> Vec<Problem> {
        // Excess calls, and what a score says, are found by the core itself.
        let own = |check: &str| matches!(check, "tool_count" | "score");
        let recorded = finished.problems.iter().filter(|problem| !own(&problem.check));
        let recorded: Vec<_> = recorded.cloned().collect();
        // What the provider's codec found stands: the provider's own words are not recorded.
        let codecs = recorded.iter().any(|problem| problem.check == "parse");
        match &self.agent {
            Some(agent) if !codecs => check::check(agent, &finished.answer, finished.finish_reason),
            _ => recorded,
        }
    }
}

/// An agent without functions and keys: enough to check answers.
pub(crate) fn unbound(spec: &AgentSpec) -> Option<Agent> {
    let access = spec.models.iter().map(|_| ModelAccess::default()).collect();
    let bindings = spec.tools.iter().map(|_| Binding::Host(0)).collect();
    let (spec, verifier, judge, weights) = (spec.clone(), None, ModelAccess::default(), None);
    Agent::new(AgentConfig { spec, access, bindings, verifier, judge, weights }).ok()
}
