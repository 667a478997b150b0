//! The broker: hands out servers, equal configurations sharing one.
//!
//! Invariant: connections live on the runtime the broker was given; a handle may be used from any
//! thread and any executor, because it only waits on channels. When the last handle is gone, or
//! the runtime is, every server is killed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::sleep,
};

use crate::{
    call::{Live, McpCall, McpResult, McpTool},
    config::StdioConfig,
    connection::{Command, Current, Owner},
    error::McpError,
    watchdog::Watchdog,
};

/// Callers that may queue for the owner of a connection before they wait to queue.
const COMMANDS_COUNT_MAX: usize = 64;

/// Owns all connections. Clones share them.
#[derive(Clone)]
pub struct McpBroker {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Handle,
    watchdog: Arc<Watchdog>,
    servers: Mutex<Servers>,
}

#[derive(Default)]
struct Servers {
    by_config: HashMap<StdioConfig, McpServer>,
    closed: bool,
}

/// One server, started when it is first needed. Clones share it.
#[derive(Clone)]
pub struct McpServer {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Handle,
    config: Arc<StdioConfig>,
    commands: mpsc::Sender<Command>,
    current: Current,
}

impl McpBroker {
    /// Makes a broker whose connections run on `runtime`, which needs its I/O and time drivers.
    ///
    /// # Errors
    ///
    /// `mcp_start_failed` if the watchdog process cannot be started; a retry may help.
    pub fn new(runtime: Handle) -> Result<Self, McpError> {
        let watchdog = Watchdog::start().map_err(|error| McpError::StartFailed {
            server: "watchdog".into(),
            reason: format!("the system says {error}"),
            cure: Some("it needs /bin/sh and room for one more process".into()),
            stderr: String::new(),
            may_work_later: true,
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                runtime,
                watchdog: Arc::new(watchdog),
                servers: Mutex::default(),
            }),
        })
    }

    /// The server of this configuration. Starts nothing yet.
    pub fn server(&self, config: StdioConfig) -> McpServer {
        let mut servers = self.inner.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.by_config.get(&config) {
            return server.clone();
        }
        let (commands, queue) = mpsc::channel(COMMANDS_COUNT_MAX);
        let current = Current::default();
        let shared = Arc::new(Shared {
            runtime: self.inner.runtime.clone(),
            config: Arc::new(config.clone()),
            commands,
            current: current.clone(),
        });
        let server = McpServer { shared: shared.clone() };
        // After close the queue has no reader, so every use says that the broker is closed.
        if !servers.closed {
            let owner = Owner {
                config: shared.config.clone(),
                watchdog: self.inner.watchdog.clone(),
                commands: queue,
                current,
            };
            self.inner.runtime.spawn(owner.run());
            servers.by_config.insert(config, server.clone());
        }
        server
    }

    /// Ends every server: closes its standard input, waits `close_ms_max`, kills its group.
    /// Calls in flight fail; the broker and its servers cannot be used afterwards.
    pub async fn close(&self) {
        let servers = {
            let mut servers = self.inner.servers.lock().unwrap_or_else(PoisonError::into_inner);
            servers.closed = true;
            std::mem::take(&mut servers.by_config)
        };
        join_all(servers.into_values().map(|server| async move {
            let (done, told) = oneshot::channel();
            if server.shared.commands.send(Command::Close(done)).await.is_ok() {
                // An error means that the owner is gone, which is what is wanted.
                let _ = told.await;
            }
        }))
        .await;
    }
}

impl McpServer {
    /// The name in its configuration.
    pub fn name(&self) -> &str {
        &self.shared.config.name
    }

    /// The server's tools, all pages. Asked once per life of the server, and again when it says
    /// that they changed.
    ///
    /// # Errors
    ///
    /// Any [`McpError`]; the deadline is `start_ms_max` for the start and as much for the list.
    pub async fn tools(&self) -> Result<Arc<[McpTool]>, McpError> {
        let limit = Duration::from_millis(self.shared.config.limits.start_ms_max);
        let shared = self.shared.clone();
        self.run(limit.saturating_mul(2), "list of tools".into(), move |connected| async move {
            let live = shared.live(&connected).await?;
            live.tools().await
        })
        .await
    }

    /// Calls a tool. Dropping the future cancels the call at the server.
    ///
    /// # Errors
    ///
    /// Any [`McpError`]. A tool that says itself that it failed is an `Ok` with `is_error`.
    pub async fn call(&self, call: McpCall) -> Result<McpResult, McpError> {
        let shared = self.shared.clone();
        self.run(call.timeout, format!("tool {:?}", call.tool), move |connected| async move {
            let live = shared.live(&connected).await?;
            live.call(&call).await
        })
        .await
    }

    /// Does the work on the broker's runtime until it is done, late, or nobody waits for it.
    async fn run<T, W, F>(&self, limit: Duration, what: String, work: W) -> Result<T, McpError>
    where
        T: Send + 'static,
        W: FnOnce(Arc<AtomicBool>) -> F,
        F: Future<Output = Result<T, McpError>> + Send + 'static,
    {
        let server = self.shared.config.name.clone();
        let connected = Arc::new(AtomicBool::new(false));
        let work = work(connected.clone());
        let (mut reply, answer) = oneshot::channel();
        self.shared.runtime.spawn(async move {
            let outcome = tokio::select! {
                biased;
                outcome = work => outcome,
                () = reply.closed() => return,
                () = sleep(limit) => Err(McpError::Timeout {
                    server,
                    what,
                    limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
                    starting: !connected.load(Ordering::Relaxed),
                }),
            };
            // The caller may have left in this moment.
            let _ = reply.send(outcome);
        });
        // The sender is only lost when the runtime is shut down.
        answer.await.unwrap_or_else(|_| Err(self.shared.closed()))
    }
}

impl Shared {
    /// The running server; started, once for all who ask, if there is none.
    async fn live(&self, connected: &AtomicBool) -> Result<Arc<Live>, McpError> {
        let current = {
            let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.clone().filter(|live| !live.is_dead())
        };
        let live = match current {
            Some(live) => live,
            None => {
                let (waiter, told) = oneshot::channel();
                let sent = self.commands.send(Command::Connect(waiter)).await;
                sent.map_err(|_| self.closed())?;
                told.await.map_err(|_| self.closed())??
            }
        };
        connected.store(true, Ordering::Relaxed);
        Ok(live)
    }

    fn closed(&self) -> McpError {
        McpError::Closed { server: self.config.name.clone() }
    }
}
