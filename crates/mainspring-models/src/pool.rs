//! The ways to a server behind a [`ModelClient`](crate::ModelClient).
//!
//! Plain HTTP goes direct, to a loopback server always and to another one where no proxy is named.
//! All the rest is reqwest's, in clients made when first needed: TLS, checked against the system's
//! trust store, and proxies. There a connect deadline belongs to a set of connections, so each
//! deadline has a client of its own. A loopback server is never called through a proxy.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainspring_session::{ErrorCode, Failure};
use reqwest::redirect::Policy;

use crate::direct::Direct;
use crate::endpoint::{Endpoint, USER_AGENT};
use crate::limits::TransportLimits;

/// Variables that name a proxy for plain HTTP.
const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
/// Seconds between probes of a silent connection, so that a dead one is found while it waits.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Way {
    is_loopback: bool,
    is_tls: bool,
    connect_ms_max: u64,
}

/// The direct way, and clients by the way they connect.
#[derive(Debug)]
pub(crate) struct Pools {
    limits: TransportLimits,
    direct: Arc<Direct>,
    has_proxy: bool,
    clients: Mutex<HashMap<Way, reqwest::Client>>,
}

impl Pools {
    pub(crate) fn new(limits: TransportLimits) -> Self {
        // The first provider of a process stays; an older one serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        Self {
            limits,
            direct: Arc::new(Direct::new(limits)),
            has_proxy: PROXY_VARIABLES.into_iter().any(is_set),
            clients: Mutex::new(HashMap::new()),
        }
    }

    /// The direct way to an endpoint, if that is the way to go.
    pub(crate) fn direct(&self, endpoint: &Endpoint) -> Option<&Arc<Direct>> {
        let is_plain = endpoint.url.scheme() == "http";
        (is_plain && (endpoint.is_loopback || !self.has_proxy)).then_some(&self.direct)
    }

    /// The client for an endpoint.
    pub(crate) fn client(
        &self,
        endpoint: &Endpoint,
        connect_ms_max: u64,
    ) -> Result<reqwest::Client, Failure> {
        let is_tls = endpoint.url.scheme() == "https";
        let way = Way { is_loopback: endpoint.is_loopback, is_tls, connect_ms_max };
        // Nothing panics while the lock is held, and a map of clients has no half-done state.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&way) {
            return Ok(client.clone());
        }
        if clients.len() >= self.limits.pools_max {
            clients.clear();
        }
        let client = build(way, &self.limits, endpoint)?;
        clients.insert(way, client.clone());
        Ok(client)
    }
}

fn build(
    way: Way,
    limits: &TransportLimits,
    endpoint: &Endpoint,
) -> Result<reqwest::Client, Failure> {
    let with = |trust_store: bool| {
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .connect_timeout(Duration::from_millis(way.connect_ms_max))
            .pool_max_idle_per_host(limits.idle_connections_max)
            .pool_idle_timeout(Duration::from_millis(limits.idle_ms_max));
        if way.is_loopback {
            builder = builder.no_proxy().gzip(false);
        }
        if !trust_store {
            builder = builder.tls_certs_only([]);
        }
        builder.build()
    };
    let built = match way.is_tls {
        true => with(true),
        // Plain HTTP needs no certificates, except to a proxy that is itself reached by TLS.
        false if way.is_loopback => with(false),
        false => with(true).or_else(|_| with(false)),
    };
    built.map_err(|error| {
        Failure::new(
            ErrorCode::MODEL_CONNECT,
            format!("cannot set up TLS to reach {}: {}", endpoint.host(), crate::failure::causes(error.source())),
        )
        .with_hint("install the system's certificates (Debian: ca-certificates), or name a bundle in SSL_CERT_FILE")
    })
}
