//! What a gateway serves, to whom, and within which bounds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use mainspring_engine::{ModelAccess, Streaming};
use mainspring_models::AdmissionLimits;
use mainspring_session::{Budget, ModelSpec};
use serde::Deserialize;

/// What a gateway may hold, and how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayLimits {
    /// Bytes of one request's body. Default 32 MiB.
    pub body_bytes_max: usize,
    /// Bytes of one request's head. At least 8,192; default 64 KiB.
    pub head_bytes_max: usize,
    /// Headers of one request. Default 100.
    pub headers_max: usize,
    /// Connections of one worker at once; further ones wait to be accepted. Default 4,096.
    pub connections_max: usize,
    /// Requests under way at once, all workers together; further ones get status 429. Default
    /// 2,048.
    pub requests_max: usize,
    /// Milliseconds for the head of a request, also of the next one on a kept connection.
    /// Default 60 s.
    pub head_ms_max: u64,
    /// Milliseconds for the body of a request. Default 60 s.
    pub body_ms_max: u64,
    /// Milliseconds that a client may take none of an answer that waits for it. Default 60 s.
    pub stall_ms_max: u64,
    /// Milliseconds for one answer, all calls of models included. Default 600 s.
    pub request_ms_max: u64,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            body_bytes_max: 32 << 20,
            head_bytes_max: 64 << 10,
            headers_max: 100,
            connections_max: 4_096,
            requests_max: 2_048,
            head_ms_max: 60_000,
            body_ms_max: 60_000,
            stall_ms_max: 60_000,
            request_ms_max: 600_000,
        }
    }
}

/// A model of a route, and how it is reached.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// The model.
    pub model: ModelSpec,
    /// Its keys, headers and endpoints.
    #[serde(default)]
    pub access: ModelAccess,
}

/// A name that clients may ask for, and the models behind it.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedRoute {
    /// The name.
    pub name: String,
    /// Its models, the one to try first at the front.
    pub models: Vec<MemberConfig>,
    /// Whether what a smaller model streams is kept back until it has passed its checks.
    #[serde(default = "accepted")]
    pub streaming: Streaming,
    /// What decides where a request begins and which answers count, as JSON.
    #[serde(default)]
    pub policy: mainspring_route::Policy,
    /// A file of learnt weights.
    #[serde(default)]
    pub weights: Option<PathBuf>,
}

fn accepted() -> Streaming {
    Streaming::Accepted
}

/// A token that lets a client in.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientToken {
    /// The token.
    pub token: String,
    /// Whose calls are made with it; empty for the default tenant.
    #[serde(default)]
    pub tenant: String,
}

/// How to open a gateway.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// What is served.
    pub routes: Vec<ServedRoute>,
    /// Who is let in; empty: everybody on this machine, and nobody else.
    #[serde(default)]
    pub tokens: Vec<ClientToken>,
    /// What tenants may spend, by name; counted from when the gateway is opened.
    #[serde(default)]
    pub budgets: BTreeMap<String, Budget>,
    /// How model calls get their turn.
    #[serde(skip)]
    pub admission: AdmissionLimits,
    /// Threads that serve. Default: a quarter of the cores, at least 1.
    #[serde(default)]
    pub workers: Option<u8>,
    /// A file to which one line of JSON is added for each answer: what was asked of which model,
    /// what it cost, and what the checks found; none of what was said. Without it, no route explores.
    #[serde(default)]
    pub record: Option<PathBuf>,
    /// What it may hold.
    #[serde(default)]
    pub limits: GatewayLimits,
}
