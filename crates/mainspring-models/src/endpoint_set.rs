//! The endpoints of one model: several keys and servers that serve the same, with weights.
//!
//! A set is checked when it is made and never changes. It is never empty, and no two of its
//! endpoints are the same key of the same server.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use mainspring_session::{ErrorCode, Failure, ModelLimits, ModelSpec, Price};
use serde_json::Value;

use crate::endpoint::Endpoint;

/// Endpoints of one model.
const ENDPOINTS_MAX: usize = 64;
/// Fields of a request's parameters that bound the answer, by provider.
const OUTPUT_FIELDS: [&str; 3] = ["max_completion_tokens", "max_output_tokens", "max_tokens"];

/// An endpoint and its share of the calls.
#[derive(Debug, Clone)]
pub struct Weighted {
    /// Where to.
    pub endpoint: Arc<Endpoint>,
    /// Its share of the sessions, relative to the others'; above 0.
    pub weight: f64,
}

/// What admission needs to know of a model beside its endpoints.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallPolicy {
    /// What may be asked with each key.
    pub limits: ModelLimits,
    /// Whether late first tokens are hedged; none: where there is more than one endpoint.
    pub hedge: Option<bool>,
    /// What it costs, if known.
    pub price: Option<Price>,
    /// Most tokens of one answer, 0 where the request does not bound them.
    pub output_tokens_max: u64,
}

impl CallPolicy {
    /// What a model's spec says of it.
    #[must_use]
    pub fn of(model: &ModelSpec) -> Self {
        let params = model.params.as_ref();
        let params: Option<Value> = params.and_then(|raw| serde_json::from_str(raw.get()).ok());
        let bound = |field: &&str| params.as_ref()?.get(field)?.as_u64();
        Self {
            limits: model.limits.unwrap_or_default(),
            hedge: model.hedge,
            price: model.price,
            output_tokens_max: OUTPUT_FIELDS.iter().find_map(bound).unwrap_or(0),
        }
    }
}

/// Identifies one key of one model at one server: what limits and health belong to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ChannelKey {
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) model: String,
    pub(crate) key_mark: u64,
}

/// One endpoint of a set.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) weight: f64,
    pub(crate) channel: Arc<ChannelKey>,
    /// Where the endpoint stands in the choice of a session.
    mark: u64,
}

/// The endpoints of one model, and what may be asked of them.
#[derive(Debug)]
pub struct EndpointSet {
    pub(crate) members: Vec<Member>,
    pub(crate) policy: CallPolicy,
    model: String,
}

impl EndpointSet {
    /// Checks a model's endpoints.
    ///
    /// # Errors
    /// `agent_invalid` if there is none or too many, if a weight is not above 0, if two are the
    /// same, or if a limit is 0.
    pub fn new(model: &str, endpoints: Vec<Weighted>, policy: CallPolicy) -> Result<Self, Failure> {
        let refused = |what: String| {
            Failure::new(ErrorCode::AGENT_INVALID, format!("model {model:?} {what}"))
        };
        if endpoints.is_empty() || endpoints.len() > ENDPOINTS_MAX {
            let count = endpoints.len();
            return Err(refused(format!(
                "has {count} endpoints, allowed are 1 to {ENDPOINTS_MAX}"
            )));
        }
        if let Some(name) = zero_limit(&policy.limits) {
            return Err(refused(format!("has the limit {name} 0, at least 1 is needed"))
                .with_hint("leave it out where there is no limit"));
        }
        let mut members: Vec<Member> = Vec::with_capacity(endpoints.len());
        for Weighted { endpoint, weight } in endpoints {
            if !(weight.is_finite() && weight > 0.0) {
                let host = endpoint.host();
                return Err(refused(format!(
                    "gives its endpoint at {host} the weight {weight}, must be above 0 and finite"
                ))
                .with_hint("leave out an endpoint that is not to be used"));
            }
            let member = Member::new(model, endpoint, weight);
            if members.iter().any(|other| other.channel == member.channel) {
                let host = member.endpoint.host();
                return Err(refused(format!("has the same endpoint at {host} with one key twice"))
                    .with_hint("give it once, with the sum of the weights"));
            }
            members.push(member);
        }
        Ok(Self { members, policy, model: model.to_owned() })
    }

    /// The one endpoint of a model.
    ///
    /// # Errors
    /// `agent_invalid` if a limit of the model is 0.
    pub fn single(model: &ModelSpec, endpoint: Endpoint) -> Result<Self, Failure> {
        let only = Weighted { endpoint: Arc::new(endpoint), weight: 1.0 };
        Self::new(&model.name, vec![only], CallPolicy::of(model))
    }

    /// The model's name on its servers.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// How many endpoints there are, at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// The endpoint at a position.
    #[must_use]
    pub fn endpoint(&self, idx: usize) -> Option<&Arc<Endpoint>> {
        Some(&self.members.get(idx)?.endpoint)
    }

    /// Whether a late first token is hedged.
    pub(crate) fn hedges(&self) -> bool {
        self.policy.hedge.unwrap_or(self.members.len() > 1)
    }

    /// How much a session wants an endpoint: the highest of the usable ones is its own. It keeps it
    /// as long as that is usable, and an endpoint that goes or comes moves no other session.
    ///
    /// # Source
    /// Weighted rendezvous hashing: J. Resch, "New Hashing Algorithms for Data Storage", 2015.
    pub(crate) fn wish(&self, idx: usize, affinity: u64) -> f64 {
        let member = &self.members[idx];
        // The finaliser of MurmurHash3 spreads what differs in a few bits.
        let mut hash = affinity ^ member.mark;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        let unit = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -member.weight / unit.ln()
    }
}

impl Member {
    fn new(model: &str, endpoint: Arc<Endpoint>, weight: f64) -> Self {
        let channel = Arc::new(ChannelKey {
            host: endpoint.host().to_owned(),
            path: endpoint.path().to_owned(),
            model: model.to_owned(),
            key_mark: endpoint.key_mark(),
        });
        let mut hasher = DefaultHasher::new();
        channel.hash(&mut hasher);
        Self { endpoint, weight, channel, mark: hasher.finish() }
    }
}

fn zero_limit(limits: &ModelLimits) -> Option<&'static str> {
    let named = [
        ("requests_per_minute", limits.requests_per_minute),
        ("tokens_per_minute", limits.tokens_per_minute),
        ("concurrency_max", limits.concurrency_max.map(u64::from)),
    ];
    named.iter().find(|(_, value)| *value == Some(0)).map(|(name, _)| *name)
}
