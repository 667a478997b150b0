//! The owner of one connection: starts the server, watches it, ends it.
//!
//! Invariant: one task owns the process, so a start, a death and a close happen once for
//! everybody. States:
//!
//! | state | event | next |
//! |---|---|---|
//! | idle | someone connects | starting |
//! | starting | others connect | starting; they share the outcome |
//! | starting | handshake done | running |
//! | starting | exit, refusal, `start_ms_max` | idle; all who waited get the error |
//! | running | process exits, output closes, line too long | idle; calls in flight get the error |
//! | any | close, or no handle is left | gone; the process group is dead |

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rmcp::{
    ClientHandler,
    model::{ClientCapabilities, ClientConfig, Implementation, ProtocolVersion},
    service::{
        ClientInitializeError, ClientLifecycleMode, ClientServiceExt, NotificationContext,
        RoleClient, RunningService,
    },
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    call::Live,
    config::StdioConfig,
    error::McpError,
    process::ServerProcess,
    transport::{LineTransport, WireHandle},
    watchdog::Watchdog,
};

/// Exit statuses with which the shell says that it could not run the program.
const SHELL_FAILED: [&str; 2] = ["exit status: 126", "exit status: 127"];

/// What the owner is asked for.
pub(crate) enum Command {
    /// The running server; started if need be.
    Connect(Waiter),
    /// End the server and the owner.
    Close(oneshot::Sender<()>),
}

type Waiter = oneshot::Sender<Result<Arc<Live>, McpError>>;

/// The running server, for calls that need not ask the owner.
pub(crate) type Current = Arc<Mutex<Option<Arc<Live>>>>;

/// The owner, before and between the lives of its server.
pub(crate) struct Owner {
    pub(crate) config: Arc<StdioConfig>,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) current: Current,
}

struct Running {
    process: ServerProcess,
    service: RunningService<RoleClient, Client>,
    wire: WireHandle,
    live: Arc<Live>,
    death: watch::Sender<Option<McpError>>,
}

/// How the server is spoken to at first; remembered, because finding out costs time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Era {
    /// Not known: probe with `server/discover`, then fall back to `initialize`.
    Unknown,
    /// `initialize` at once.
    Handshake,
}

/// Why the owner stops looking after a running or starting server.
enum End {
    /// The process ended by itself.
    Exited,
    /// Its output closed, or the transport gave up.
    Disconnected,
    /// Nobody wants it any more.
    Close(Option<oneshot::Sender<()>>),
}

impl Owner {
    /// Runs until it is closed or no handle is left.
    pub(crate) async fn run(mut self) {
        let mut era = Era::Unknown;
        while let Some(command) = self.commands.recv().await {
            let closed = match command {
                Command::Close(done) => Some(Some(done)),
                Command::Connect(first) => self.serve(first, &mut era).await,
            };
            if let Some(done) = closed {
                if let Some(done) = done {
                    let _ = done.send(());
                }
                return;
            }
        }
    }

    /// One life of the server. Returns `Some` when the owner was closed meanwhile.
    async fn serve(&mut self, first: Waiter, era: &mut Era) -> Option<Option<oneshot::Sender<()>>> {
        let mut waiters = vec![first];
        let config = self.config.clone();
        let started = {
            let mut start = pin!(start(&config, &self.watchdog, *era));
            loop {
                tokio::select! {
                    started = &mut start => break started,
                    command = self.commands.recv() => match command {
                        Some(Command::Connect(waiter)) => waiters.push(waiter),
                        // Leaving drops the start, and with it the process.
                        Some(Command::Close(done)) => return Some(Some(done)),
                        None => return Some(None),
                    },
                }
            }
        };
        match started {
            Err(error) => {
                *era = Era::Unknown;
                for waiter in waiters {
                    let _ = waiter.send(Err(error.clone()));
                }
                None
            }
            Ok((running, found)) => {
                *era = found;
                self.set_current(Some(running.live.clone()));
                for waiter in waiters {
                    let _ = waiter.send(Ok(running.live.clone()));
                }
                self.watch(running).await
            }
        }
    }

    async fn watch(&mut self, running: Running) -> Option<Option<oneshot::Sender<()>>> {
        let Running { mut process, service, wire, live, death } = running;
        let mut service = pin!(service.waiting());
        let end = loop {
            tokio::select! {
                _ = process.wait() => break End::Exited,
                _ = &mut service => break End::Disconnected,
                command = self.commands.recv() => match command {
                    Some(Command::Connect(waiter)) => {
                        let _ = waiter.send(Ok(live.clone()));
                    }
                    Some(Command::Close(done)) => break End::Close(Some(done)),
                    None => break End::Close(None),
                },
            }
        };
        self.set_current(None);
        let grace = Duration::from_millis(self.config.limits.close_ms_max);
        wire.stop_writing();
        // An over-long line means a server that does not stop by itself.
        let patience = if wire.fault().is_some() { Duration::ZERO } else { grace };
        let (status, stderr) = process.finish(patience).await;
        if matches!(end, End::Exited) {
            // What it wrote before it ended still counts: those calls were answered.
            let _ = timeout(grace, &mut service).await;
        }
        let server = self.config.name.clone();
        let error = match (&end, wire.fault()) {
            (End::Close(_), _) => McpError::Closed { server },
            (_, Some(fault)) => McpError::LimitReached {
                server,
                what: "a line".into(),
                seen: format!("over {} bytes", fault.line_bytes.saturating_sub(1)),
                limit: "line_bytes_max",
                allowed: self.config.limits.line_bytes_max as u64,
                may_work_later: false,
            },
            (_, None) => McpError::Exited { server, status, stderr },
        };
        death.send_replace(Some(error));
        match end {
            End::Close(done) => Some(done),
            End::Exited | End::Disconnected => None,
        }
    }

    fn set_current(&self, live: Option<Arc<Live>>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }
}

/// Starts the server; tries the older handshake alone where the probe itself upsets it.
async fn start(
    config: &Arc<StdioConfig>,
    watchdog: &Arc<Watchdog>,
    era: Era,
) -> Result<(Running, Era), McpError> {
    let deadline = Instant::now() + Duration::from_millis(config.limits.start_ms_max);
    match start_once(config, watchdog, era, deadline).await {
        Err(StartError { may_be_the_probe: true, .. }) if era == Era::Unknown => {
            start_once(config, watchdog, Era::Handshake, deadline).await
        }
        outcome => outcome,
    }
    .map_err(|failed| failed.error)
}

struct StartError {
    error: McpError,
    /// Some servers end when the first message is not `initialize`.
    may_be_the_probe: bool,
}

async fn start_once(
    config: &Arc<StdioConfig>,
    watchdog: &Arc<Watchdog>,
    era: Era,
    deadline: Instant,
) -> Result<(Running, Era), StartError> {
    let (process, pipes) = ServerProcess::spawn(config, watchdog)
        .await
        .map_err(|error| StartError { error, may_be_the_probe: false })?;
    let (transport, wire) = LineTransport::new(pipes, &config.limits);
    let tools_version = Arc::new(AtomicU64::new(0));
    let client = Client { tools_version: tools_version.clone() };
    let lifecycle = match era {
        Era::Unknown => ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: None,
        },
        Era::Handshake => ClientLifecycleMode::Initialize,
    };
    let shaken = timeout_at(deadline, client.serve_with_lifecycle(transport, lifecycle)).await;
    let service = match shaken {
        Ok(Ok(service)) => service,
        Ok(Err(error)) => return Err(refused(config, process, &wire, Some(error)).await),
        Err(_) => return Err(refused(config, process, &wire, None).await),
    };
    let found = match service.peer_info() {
        Some(info) if !info.protocol_version.has_initialize() => Era::Unknown,
        _ => Era::Handshake,
    };
    let (death, told) = watch::channel(None);
    let live = Arc::new(Live {
        config: config.clone(),
        peer: service.peer().clone(),
        death: told,
        tools_version,
        tools: tokio::sync::Mutex::new(None),
        slots: Semaphore::new(config.limits.concurrent_calls_max.clamp(1, Semaphore::MAX_PERMITS)),
        waiting_count: 0.into(),
    });
    Ok((Running { process, service, wire, live, death }, found))
}

/// Ends a server that did not shake hands and says why. `None`: it took too long.
async fn refused(
    config: &StdioConfig,
    process: ServerProcess,
    wire: &WireHandle,
    error: Option<ClientInitializeError>,
) -> StartError {
    wire.stop_writing();
    let lost = matches!(
        &error,
        Some(
            ClientInitializeError::ConnectionClosed(_)
                | ClientInitializeError::TransportError { .. }
        ) | Some(ClientInitializeError::LegacyFallbackFailed { .. })
    );
    // Only where the pipe closed is the process likely to be ending by itself.
    let grace = if lost && wire.fault().is_none() { config.limits.close_ms_max } else { 0 };
    let (status, stderr) = process.finish(Duration::from_millis(grace)).await;
    let shell_failed = SHELL_FAILED.contains(&status.as_str());
    let command = &config.command;
    let (reason, cure) = match (&error, wire.fault()) {
        (None, _) => (
            format!("no answer to the handshake in {} ms", config.limits.start_ms_max),
            "check that the command is an MCP server on standard input and output, or raise \
             McpLimits.start_ms_max"
                .to_owned(),
        ),
        (_, Some(fault)) => (
            format!(
                "it wrote a line of over {} bytes, line_bytes_max is {}",
                fault.line_bytes.saturating_sub(1),
                config.limits.line_bytes_max
            ),
            "raise McpLimits.line_bytes_max".to_owned(),
        ),
        (Some(_), None) if lost => (
            format!("it ended ({status}) before the handshake"),
            format!("run {command:?} with its arguments by hand to see what it says"),
        ),
        (Some(error), None) => (
            format!("the handshake failed: {error}"),
            "the server must speak MCP 2024-11-05 or newer".to_owned(),
        ),
    };
    StartError {
        may_be_the_probe: error.is_some() && wire.fault().is_none() && !shell_failed,
        error: McpError::StartFailed {
            server: config.name.clone(),
            reason,
            cure: Some(cure),
            stderr,
            may_work_later: error.is_none(),
        },
    }
}

/// Our side of the protocol: offers nothing, listens for changed tools.
struct Client {
    tools_version: Arc<AtomicU64>,
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let ours = Implementation::new("mainspring", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), ours)
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.tools_version.fetch_add(1, Ordering::Release);
    }
}
