//! The handle on the whole: opens the store, starts the threads, passes requests to shards.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use mainspring_journal::{
    Access, Durability, Journal, JournalOptions, JournalStats, SessionHead, SessionQuery,
};
use mainspring_mcp::{McpBroker, McpError, McpServer, StdioConfig};
use mainspring_models::{ModelClient, TransportLimits};
use mainspring_session::{BlobHash, ErrorCode, Failure, Record, Seq, SessionId};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::host::{Host, HostResult};
use crate::loader::{self, Loader};
use crate::mail::{Mail, Opened, Reply, ResumeRequest, StartRequest};
use crate::outcome::SessionReport;
use crate::shard::{Shard, ShardConfig};
use crate::watch::WatchBatch;

/// What one engine may hold.
#[derive(Debug, Clone, Copy)]
pub struct EngineLimits {
    /// Sessions alive at once on one shard. Default 100,000.
    pub sessions_max: usize,
    /// How long a verify function may take, in milliseconds. Default 60 s.
    pub verify_ms_max: u64,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self { sessions_max: 100_000, verify_ms_max: 60_000 }
    }
}

/// How to open an engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where the journal is: `memory:` or `sqlite:///PATH`.
    pub store: String,
    /// What an acknowledged event survives.
    pub durability: Durability,
    /// Threads that run sessions. Default: a quarter of the cores, at least 1.
    pub shard_count: u8,
    /// What it may hold.
    pub limits: EngineLimits,
}

impl EngineConfig {
    /// The default configuration for a store.
    #[must_use]
    pub fn new(store: &str) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store: store.to_owned(),
            durability: Durability::Full,
            shard_count: u8::try_from((cores / 4).clamp(1, 64)).unwrap_or(1),
            limits: EngineLimits::default(),
        }
    }
}

/// A running engine.
///
/// Every call returns at once; answers come through a [`Reply`]. Dropping it closes it.
pub struct Engine {
    shards: Vec<UnboundedSender<Mail>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    journal: Arc<dyn Journal>,
    loader: Mutex<Option<Loader>>,
    broker: McpBroker,
    broker_runtime: tokio::runtime::Handle,
    broker_stop: Mutex<Option<tokio::sync::oneshot::Sender<()>>>,
}

impl Engine {
    /// Opens the store and starts the threads.
    ///
    /// # Errors
    /// The journal's own errors; `internal` if a thread cannot be started.
    pub fn open(config: &EngineConfig, host: Arc<dyn Host>) -> Result<Self, Failure> {
        let options = JournalOptions {
            access: Access::ReadWrite,
            durability: config.durability,
            ..JournalOptions::default()
        };
        let journal =
            mainspring_journal::open(&config.store, options).map_err(|error| error.failure())?;
        Self::open_with(journal, config, host)
    }

    /// Like [`Engine::open`], on a journal that is open already; `config.store` is not read.
    ///
    /// # Errors
    /// `internal` if a thread cannot be started.
    pub fn open_with(
        journal: Arc<dyn Journal>,
        config: &EngineConfig,
        host: Arc<dyn Host>,
    ) -> Result<Self, Failure> {
        raise_descriptor_limit();
        let (loader, reader) =
            Loader::start(Arc::clone(&journal)).map_err(|error| thread_error(&error))?;
        let (broker_runtime, broker_stop, broker_thread) = start_runtime("mainspring-mcp")?;
        let broker = McpBroker::new(broker_runtime.clone()).map_err(|error| mcp_failure(&error))?;
        let mut engine = Self {
            shards: Vec::new(),
            threads: Mutex::new(vec![reader, broker_thread]),
            journal,
            loader: Mutex::new(Some(loader.clone())),
            broker,
            broker_runtime,
            broker_stop: Mutex::new(Some(broker_stop)),
        };
        for index in 0..config.shard_count.max(1) {
            let (post, inbox) = unbounded_channel();
            let shard = ShardConfig {
                index,
                host: Arc::clone(&host),
                journal: Arc::clone(&engine.journal),
                client: ModelClient::new(TransportLimits::default())?,
                broker: engine.broker.clone(),
                loader: loader.clone(),
                limits: config.limits,
                post: post.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("mainspring-{index}"))
                .spawn(move || run_shard(shard, inbox))
                .map_err(|error| thread_error(&error))?;
            engine.shards.push(post);
            engine.threads.get_mut().expect("nobody else has it yet").push(thread);
        }
        Ok(engine)
    }

    /// Begins a turn. Answered once it is durable.
    pub fn start(&self, request: StartRequest, reply: Reply<Opened>) {
        let id = match &request.session {
            Some(id) => id.clone(),
            None => fresh_id(),
        };
        self.send(&id.clone(), Mail::Start(id, request, reply));
    }

    /// Continues a turn whose process is gone. Answered once the takeover is durable.
    pub fn resume(&self, request: ResumeRequest, reply: Reply<Opened>) {
        let id = request.session.clone();
        self.send(&id, Mail::Resume(request, reply));
    }

    /// Ends a session's turn. Answered once that is durable.
    pub fn cancel(&self, session: SessionId, reason: String, reply: Reply<()>) {
        self.send(&session.clone(), Mail::Cancel(session, reason, reply));
    }

    /// Asks for the report at the end of a session's turn.
    pub fn wait(&self, session: SessionId, reply: Reply<SessionReport>) {
        self.send(&session.clone(), Mail::Wait(session, reply));
    }

    /// Asks for what comes at and after a position.
    pub fn watch(&self, session: SessionId, from: Seq, reply: Reply<WatchBatch>) {
        self.send(&session.clone(), Mail::Watch(session, from, reply));
    }

    /// Takes the ends of the host's jobs.
    pub fn host_results(&self, results: Vec<HostResult>) {
        if self.shards.len() == 1 {
            let _ = self.shards[0].send(Mail::Host(results));
            return;
        }
        let mut by_shard: Vec<Vec<HostResult>> = self.shards.iter().map(|_| Vec::new()).collect();
        for result in results {
            if let Some(batch) = by_shard.get_mut(result.ticket.shard()) {
                batch.push(result);
            }
        }
        for (shard, batch) in self.shards.iter().zip(by_shard) {
            if !batch.is_empty() {
                let _ = shard.send(Mail::Host(batch));
            }
        }
    }

    /// An MCP server, shared by all sessions and started at its first use.
    pub fn mcp_server(&self, config: StdioConfig) -> McpServer {
        self.broker.server(config)
    }

    /// Where work with MCP servers can be awaited.
    pub fn mcp_runtime(&self) -> &tokio::runtime::Handle {
        &self.broker_runtime
    }

    /// Lists sessions.
    pub fn sessions(&self, query: SessionQuery, reply: Reply<Vec<SessionHead>>) {
        self.read(reply, move |journal| journal.sessions(&query).map_err(|error| error.failure()));
    }

    /// Lists the sessions that have a turn to continue.
    pub fn open_sessions(&self, reply: Reply<Vec<SessionHead>>) {
        self.read(reply, |journal| loader::open_heads(journal).map_err(|error| error.failure()));
    }

    /// Reads a session's log.
    pub fn load(&self, session: SessionId, from: Seq, reply: Reply<Vec<Record>>) {
        self.read(reply, move |journal| {
            journal.load(&session, from).map_err(|error| error.failure())
        });
    }

    /// Reads a blob.
    pub fn blob(&self, hash: BlobHash, reply: Reply<Option<Vec<u8>>>) {
        self.read(reply, move |journal| journal.blob(&hash).map_err(|error| error.failure()));
    }

    /// What the journal has written.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        self.journal.stats()
    }

    /// Stops: what is durable stays, what runs is dropped and can be resumed. Blocks until the
    /// threads have ended. Closing twice is the same as once.
    ///
    /// # Errors
    /// The journal's error if it could not be closed cleanly; nothing durable is lost by that.
    pub fn close(&self) -> Result<(), Failure> {
        for shard in &self.shards {
            let _ = shard.send(Mail::Close);
        }
        self.loader.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let broker = self.broker.clone();
        let stop =
            self.broker_stop.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(stop) = stop {
            self.broker_runtime.spawn(async move {
                broker.close().await;
                let _ = stop.send(());
            });
        }
        let threads = std::mem::take(
            &mut *self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("an engine thread panicked");
            }
        }
        self.journal.close().map_err(|error| error.failure())
    }

    fn send(&self, session: &SessionId, mail: Mail) {
        let shard = match self.shards.len() {
            1 => 0,
            count => {
                let mut hasher = DefaultHasher::new();
                session.as_str().hash(&mut hasher);
                (hasher.finish() % count as u64) as usize
            }
        };
        if let Err(refused) = self.shards[shard].send(mail) {
            refuse(refused.0);
        }
    }

    fn read<T: Send + 'static>(
        &self,
        reply: Reply<T>,
        job: impl FnOnce(&dyn Journal) -> Result<T, Failure> + Send + 'static,
    ) {
        let loader = self.loader.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*loader {
            Some(loader) => loader.run(move |journal| reply(job(journal))),
            None => reply(Err(closed())),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the journal did not close cleanly");
        }
    }
}

fn closed() -> Failure {
    Failure::new(ErrorCode::ENGINE_CLOSED, "the engine is closed")
}

/// Answers a letter that came after the end.
fn refuse(mail: Mail) {
    match mail {
        Mail::Start(_, _, reply) | Mail::Resume(_, reply) => reply(Err(closed())),
        Mail::Cancel(_, _, reply) => reply(Err(closed())),
        Mail::Wait(_, reply) => reply(Err(closed())),
        Mail::Watch(_, _, reply) => reply(Err(closed())),
        _ => {}
    }
}

fn fresh_id() -> SessionId {
    SessionId::new(&uuid::Uuid::now_v7().to_string()).expect("a UUID has allowed characters only")
}

fn run_shard(config: ShardConfig, inbox: tokio::sync::mpsc::UnboundedReceiver<Mail>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime needs only a few descriptors, and those were free a moment ago");
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, Shard::new(config).run(inbox));
}

type Stop = tokio::sync::oneshot::Sender<()>;

fn start_runtime(name: &str) -> Result<(tokio::runtime::Handle, Stop, JoinHandle<()>), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| thread_error(&error))?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _ = runtime.block_on(stopped);
        })
        .map_err(|error| thread_error(&error))?;
    Ok((handle, stop, thread))
}

fn thread_error(error: &std::io::Error) -> Failure {
    Failure::new(ErrorCode::INTERNAL, format!("an engine thread cannot be started: {error}"))
}

/// An MCP error as plain data.
pub(crate) fn mcp_failure(error: &McpError) -> Failure {
    Failure {
        code: ErrorCode::named(error.code()),
        message: error.message(),
        hint: error.hint(),
        retryable: error.retryable(),
    }
}

/// Lets the process have as many connections as it is allowed to: the default soft limit of 1,024
/// is less than the sessions it can hold.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}
