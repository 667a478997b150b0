//! Compiled forms of a route for the requests it gets: most callers ask with the same instructions
//! and tools again and again, so the encoded parts and the schemas are kept, the oldest dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mainspring_session::Failure;

use crate::agent::Agent;

/// Compiled forms that one route keeps.
pub(crate) const VARIANTS_MAX: usize = 256;
/// Bytes of instructions, schemas and parameters in all of them.
pub(crate) const VARIANT_BYTES_MAX: usize = 16 << 20;

/// A bounded map from what a request says to an agent that says it.
#[derive(Default)]
pub(crate) struct Variants(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    agents: HashMap<Vec<u8>, (Arc<Agent>, u64)>,
    bytes: usize,
    clock: u64,
}

impl Variants {
    /// The agent of a key, made if it is not there.
    pub(crate) fn get(
        &self,
        key: Vec<u8>,
        make: impl FnOnce() -> Result<Agent, Failure>,
    ) -> Result<Arc<Agent>, Failure> {
        {
            let mut kept = self.lock();
            kept.clock += 1;
            let now = kept.clock;
            if let Some((agent, used)) = kept.agents.get_mut(&key) {
                *used = now;
                return Ok(Arc::clone(agent));
            }
        }
        // Made without the lock: compiling schemas takes its time, and making one twice does no harm.
        let agent = Arc::new(make()?);
        if key.len() <= VARIANT_BYTES_MAX / 4 {
            self.lock().keep(key, Arc::clone(&agent));
        }
        Ok(agent)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        let kept = self.lock();
        (kept.agents.len(), kept.bytes)
    }
}

impl Kept {
    fn keep(&mut self, key: Vec<u8>, agent: Arc<Agent>) {
        while self.agents.len() >= VARIANTS_MAX || self.bytes + key.len() > VARIANT_BYTES_MAX {
            // A quarter at a time, so that a full map is not searched for every new key.
            let mut ages: Vec<u64> = self.agents.values().map(|(_, used)| *used).collect();
            ages.sort_unstable();
            let Some(&oldest) = ages.get(ages.len() / 4) else { break };
            self.agents.retain(|_, (_, used)| *used > oldest);
            self.bytes = self.agents.keys().map(Vec::len).sum();
        }
        self.bytes += key.len();
        if let Some((_, used)) = self.agents.get_mut(&key) {
            self.bytes -= key.len();
            *used = self.clock;
            return;
        }
        self.agents.insert(key, (agent, self.clock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{AgentConfig, ModelAccess};
    use mainspring_session::{AgentSpec, ModelSpec};

    fn agent() -> Result<Agent, Failure> {
        let model = ModelSpec {
            name: "m".to_owned(),
            base_url: "http://127.0.0.1:1/v1".to_owned(),
            ..ModelSpec::default()
        };
        let spec = AgentSpec { models: vec![model], ..AgentSpec::default() };
        let access = vec![ModelAccess::default()];
        Agent::new(AgentConfig { spec, access, ..AgentConfig::default() })
    }

    #[test]
    fn a_kept_form_is_not_made_again() {
        let variants = Variants::default();
        let first = variants.get(b"a".to_vec(), agent).unwrap();
        let second = variants.get(b"a".to_vec(), || panic!("it is there")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn there_are_never_more_than_the_limits_allow() {
        let variants = Variants::default();
        for idx in 0..2 * VARIANTS_MAX as u64 {
            variants.get(idx.to_be_bytes().to_vec(), agent).unwrap();
            variants.get(b"used all the time".to_vec(), agent).unwrap();
        }
        assert!(variants.held().0 <= VARIANTS_MAX);
        variants.get(b"used all the time".to_vec(), || panic!("it is there")).unwrap();
        for idx in 0..20 {
            variants.get(vec![idx; VARIANT_BYTES_MAX / 8], agent).unwrap();
            assert!(variants.held().1 <= VARIANT_BYTES_MAX);
        }
        // What would push out all the others is not kept at all.
        variants.get(vec![0; VARIANT_BYTES_MAX / 2], agent).unwrap();
        assert!(variants.held().1 <= VARIANT_BYTES_MAX);
    }
}
