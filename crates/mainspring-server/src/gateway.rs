//! The handle on a running gateway: opens the socket, starts the workers, stops them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mainspring_engine::{
    Completer, CompleterConfig, CompletionRecord, Hook, ModelRoute, RouteConfig, Streaming,
    TenantBudgets, raise_descriptor_limit,
};
use mainspring_models::{Admission, ModelClient, TransportLimits};
use mainspring_route::Weights;
use mainspring_session::{ErrorCode, Failure};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::auth::Clients;
use crate::config::{GatewayConfig, GatewayLimits, ServedRoute};
use crate::connection;
use crate::metrics::Metrics;
use crate::service::Service;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;

/// A running gateway. Dropping it stops it at once.
pub struct Gateway {
    address: SocketAddr,
    stop: watch::Sender<Option<Instant>>,
    workers: Mutex<Vec<JoinHandle<bool>>>,
}

/// A name that clients may ask for.
pub(crate) struct Served {
    pub(crate) route: Arc<ModelRoute>,
    pub(crate) streaming: Streaming,
}

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) routes: BTreeMap<String, Served>,
    pub(crate) clients: Clients,
    pub(crate) limits: GatewayLimits,
    pub(crate) metrics: Arc<Metrics>,
    /// The answer to `GET /v1/models`.
    pub(crate) models_json: Bytes,
    started_s: u64,
    ids: AtomicU64,
}

impl Gateway {
    /// Opens the socket and starts the workers.
    ///
    /// # Errors
    /// `agent_invalid` for what cannot be served, or where the address cannot be listened on.
    pub fn open(config: &GatewayConfig) -> Result<Self, Failure> {
        raise_descriptor_limit();
        let shared = Arc::new(Shared::new(config)?);
        let admission = Admission::new(config.admission)?;
        let tenants: Vec<_> = config.budgets.clone().into_iter().collect();
        let budgets = TenantBudgets::new(&tenants)?;
        let hook = hook(config.record.as_deref(), &shared.metrics)?;
        let listener = listen(config.listen)?;
        let address = listener.local_addr().map_err(|error| unusable(config.listen, &error))?;
        let (stop, stopped) = watch::channel(None);
        let gateway = Self { address, stop, workers: Mutex::default() };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = config.workers.map_or(cores / 4, usize::from).max(1);
        for idx in 0..count {
            let listener = listener.try_clone().map_err(|error| unusable(address, &error))?;
            let (shared, hook, stopped) = (Arc::clone(&shared), hook.clone(), stopped.clone());
            let models =
                ModelClient::with_admission(TransportLimits::default(), Arc::clone(&admission))?;
            let config = CompleterConfig {
                budgets: budgets.clone(),
                hook: Some(hook),
                ..CompleterConfig::default()
            };
            let work = move || {
                let completer = Completer::new(Arc::new(models), config);
                run(Arc::new(Service { shared, completer }), listener, stopped)
            };
            let thread = std::thread::Builder::new().name(format!("gateway-{idx}")).spawn(work);
            let thread = thread.map_err(|error| unusable(address, &error))?;
            gateway.workers.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(gateway)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more, lets answers under way be sent, and ends. True if all were sent in
    /// time; what was not is dropped.
    pub fn close(&self, within: Duration) -> bool {
        self.stop.send_replace(Some(Instant::now() + within));
        let workers =
            std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        let ended: Vec<bool> =
            workers.into_iter().map(|worker| worker.join().unwrap_or(false)).collect();
        ended.into_iter().all(|ended| ended)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

fn run(service: Arc<Service>, listener: TcpListener, stop: connection::Stop) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return false };
    LocalSet::new().block_on(&runtime, connection::serve(service, listener, stop))
}

impl Shared {
    fn new(config: &GatewayConfig) -> Result<Self, Failure> {
        let clients = Clients::new(&config.tokens, config.listen)?;
        let mut routes = BTreeMap::new();
        for served in &config.routes {
            let compiled = compile(served, config.record.is_some())?;
            if routes.insert(served.name.clone(), compiled).is_some() {
                return Err(invalid(format!("two routes are named {:?}", served.name)));
            }
        }
        if routes.is_empty() {
            return Err(invalid("the gateway has no route, at least 1 is needed".to_owned()));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut shared = Self {
            routes,
            clients,
            limits: config.limits,
            metrics: Arc::default(),
            models_json: Bytes::new(),
            started_s: now.as_secs(),
            ids: AtomicU64::new(0),
        };
        let models: Vec<_> =
            shared.routes.keys().filter_map(|name| shared.model_json(name)).collect();
        let models = models.join(",");
        shared.models_json = format!("{{\"object\":\"list\",\"data\":[{models}]}}").into();
        Ok(shared)
    }

    /// What `GET /v1/models/NAME` says of a route.
    pub(crate) fn model_json(&self, name: &str) -> Option<String> {
        self.routes.contains_key(name).then(|| {
            let created = self.started_s;
            serde_json::json!({
                "id": name, "object": "model", "created": created, "owned_by": "mainspring"
            })
            .to_string()
        })
    }

    /// An id that no other answer of this process has.
    pub(crate) fn next_id(&self) -> String {
        let count = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("chatcmpl-{:x}-{count:x}", self.started_s)
    }
}

fn compile(served: &ServedRoute, records: bool) -> Result<Served, Failure> {
    let mut policy = served.policy.clone();
    policy.check().map_err(invalid)?;
    if !records {
        // Nobody learns from trying another model where nothing is recorded.
        policy.explore = 0.0;
    }
    let weights = served.weights.as_deref().map(weights).transpose()?;
    let route = ModelRoute::new(RouteConfig {
        name: served.name.clone(),
        models: served.models.iter().map(|member| member.model.clone()).collect(),
        access: served.models.iter().map(|member| member.access.clone()).collect(),
        verify: None,
        policy,
        weights,
    })?;
    Ok(Served { route: Arc::new(route), streaming: served.streaming })
}

fn weights(path: &Path) -> Result<Arc<Weights>, Failure> {
    let unreadable =
        |error: &dyn std::fmt::Display| invalid(format!("weights {}: {error}", path.display()));
    let json = std::fs::read(path).map_err(|error| unreadable(&error))?;
    Weights::parse(&json).map(Arc::new).map_err(|error| unreadable(&error))
}

/// Counts every completion, and writes it down where that is wanted.
fn hook(record: Option<&Path>, metrics: &Arc<Metrics>) -> Result<Hook, Failure> {
    let file = record.map(|path| {
        let opened = OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|error| invalid(format!("record {}: {error}", path.display())))
    });
    let file = file.transpose()?.map(Mutex::new);
    let metrics = Arc::clone(metrics);
    Ok(Arc::new(move |record: &CompletionRecord| {
        metrics.completed(record);
        if let Some(file) = &file {
            write_line(file, record);
        }
    }))
}

fn write_line(file: &Mutex<File>, record: &CompletionRecord) {
    let Ok(mut line) = serde_json::to_vec(record) else { return };
    line.push(b'\n');
    // A full disk costs a line of what is only for training, and no answer.
    let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
}

fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(TcpListener::from(socket))
    };
    open().map_err(|error| unusable(address, &error))
}

fn unusable(address: SocketAddr, error: &std::io::Error) -> Failure {
    invalid(format!("the gateway cannot serve at {address}: {error}"))
        .with_hint("choose another port, or 0 for a free one")
}

fn invalid(message: String) -> Failure {
    Failure::new(ErrorCode::AGENT_INVALID, message)
}
