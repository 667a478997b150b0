//! The handle on the whole: opens the store, starts the threads, passes requests to shards.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use mainspring_journal::{
    Access, CompactReport, Durability, Hold, Journal, JournalLimits, JournalOptions, JournalStats,
    PruneQuery, PruneReport, SessionHead, SessionQuery,
};
use mainspring_mcp::{McpBroker, McpError, McpServer, StdioConfig};
use mainspring_models::budget::AccountReport;
use mainspring_models::{Admission, AdmissionLimits, ChannelReport, ModelClient, TransportLimits};
use mainspring_session::{BlobHash, Budget, ErrorCode, Failure, Record, Seq, SessionId};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::budgets::Budgets;
use crate::host::{Host, HostResult};
use crate::loader::{self, Loader};
use crate::mail::{
    ClaimRequest, DecideRequest, DrainReport, ForkRequest, Mail, Opened, Reply, ResumeRequest,
    StartRequest,
};
use crate::outcome::{Pending, SessionReport};
use crate::ports::{SharedClock, SharedModels, SystemClock};
use crate::replay::{self, Replay};
use crate::shard::{Shard, ShardConfig};
use crate::watch::WatchBatch;

/// What one engine may hold.
#[derive(Debug, Clone, Copy)]
pub struct EngineLimits {
    /// Sessions alive at once on one shard. Default 100,000.
    pub sessions_max: usize,
    /// How long a verify function may take, in milliseconds. Default 60 s.
    pub verify_ms_max: u64,
    /// How often sessions without an owner are looked for, in milliseconds, by an engine that
    /// claims them. Default 500.
    pub claim_ms: u64,
    /// Events that a session has before its first snapshot: shorter ones are read whole in a few
    /// milliseconds, and their snapshots would cost as much room as they do. Default 1,024.
    pub snapshot_events_min: u64,
    /// Events from one snapshot of a session to its next. Default 256.
    pub snapshot_every_events: u64,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            sessions_max: 100_000,
            verify_ms_max: 60_000,
            claim_ms: 500,
            snapshot_events_min: 1_024,
            snapshot_every_events: 256,
        }
    }
}

/// How to open an engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where the journal is: `memory:`, `sqlite:///PATH` or `postgresql://...`.
    pub store: String,
    /// How long a process that is gone keeps its sessions, in milliseconds, in a store that
    /// several share; none for the journal's own default.
    pub lease_ms: Option<u64>,
    /// What other processes know this one by, in a store that several share; none for host name
    /// and process number.
    pub node: Option<String>,
    /// What an acknowledged event survives.
    pub durability: Durability,
    /// Threads that run sessions. Default: a quarter of the cores, at least 1.
    pub shard_count: u8,
    /// What it may hold.
    pub limits: EngineLimits,
    /// How model calls get their turn.
    pub admission: AdmissionLimits,
    /// What tenants may spend, by name.
    pub budgets: Vec<(String, Budget)>,
}

impl EngineConfig {
    /// The default configuration for a store.
    #[must_use]
    pub fn new(store: &str) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            store: store.to_owned(),
            lease_ms: None,
            node: None,
            durability: Durability::Full,
            shard_count: u8::try_from((cores / 4).clamp(1, 64)).unwrap_or(1),
            limits: EngineLimits::default(),
            admission: AdmissionLimits::default(),
            budgets: Vec::new(),
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
    budgets: Budgets,
    clock: SharedClock,
    /// None where there are no MCP servers, as in a simulation.
    mcp: Option<Mcp>,
    /// What all shards know of the models' limits and health.
    admission: Arc<Admission>,
}

struct Mcp {
    broker: McpBroker,
    runtime: tokio::runtime::Handle,
    stop: Mutex<Option<Stop>>,
}

/// What an engine is made of where it has no threads of its own, as in a simulation.
pub struct Parts {
    /// Where events are kept. Its reads are made at once, on the thread that asks.
    pub journal: Arc<dyn Journal>,
    /// Who runs tools.
    pub host: Arc<dyn Host>,
    /// Who asks models.
    pub models: SharedModels,
    /// What time it is.
    pub clock: SharedClock,
    /// What it may hold.
    pub limits: EngineLimits,
    /// What tenants may spend, by name; each must be usable.
    pub budgets: Vec<(String, Budget)>,
}

/// The one shard of an engine without threads: a future that runs until the engine is closed.
/// Dropping it is the death of the process.
pub struct ShardTask(Shard, tokio::sync::mpsc::UnboundedReceiver<Mail>);

impl ShardTask {
    /// Runs the shard, in a `LocalSet`.
    pub async fn run(self) {
        self.0.run(self.1).await;
    }
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
            limits: JournalLimits {
                lease_ms: config.lease_ms.unwrap_or(JournalLimits::default().lease_ms),
                ..JournalLimits::default()
            },
            node: config.node.clone(),
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
        let admission = Admission::new(config.admission)?;
        let budgets = Budgets::new(&config.budgets)?;
        let clock: SharedClock = Arc::new(SystemClock);
        budgets.load(journal.as_ref(), clock.now_us())?;
        let (loader, reader) =
            Loader::start(Arc::clone(&journal)).map_err(|error| thread_error(&error))?;
        let (runtime, stop, broker_thread) = start_runtime("mainspring-mcp")?;
        let broker = McpBroker::new(runtime.clone()).map_err(|error| mcp_failure(&error))?;
        let mut engine = Self {
            shards: Vec::new(),
            threads: Mutex::new(vec![reader, broker_thread]),
            journal,
            loader: Mutex::new(Some(loader.clone())),
            budgets: budgets.clone(),
            clock: Arc::clone(&clock),
            mcp: Some(Mcp { broker: broker.clone(), runtime, stop: Mutex::new(Some(stop)) }),
            admission: Arc::clone(&admission),
        };
        let (peers, claims) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
        for index in 0..config.shard_count.max(1) {
            let (post, inbox) = unbounded_channel();
            let shard = ShardConfig {
                index,
                host: Arc::clone(&host),
                journal: Arc::clone(&engine.journal),
                models: Arc::new(
                    ModelClient::with_admission(
                        TransportLimits::default(),
                        Arc::clone(&admission),
                    )?
                    .with_host(host.clone()),
                ),
                clock: Arc::clone(&clock),
                broker: Some(broker.clone()),
                loader: loader.clone(),
                budgets: budgets.clone(),
                limits: config.limits,
                post: post.clone(),
                peers: Arc::clone(&peers),
                claims: Arc::clone(&claims),
            };
            let thread = std::thread::Builder::new()
                .name(format!("mainspring-{index}"))
                .spawn(move || run_shard(shard, inbox))
                .map_err(|error| thread_error(&error))?;
            engine.shards.push(post);
            engine.threads.get_mut().expect("nobody else has it yet").push(thread);
        }
        let _ = peers.set(engine.shards.clone());
        Ok(engine)
    }

    /// An engine of one shard without threads, and the shard, for the caller to run.
    ///
    /// # Errors
    /// `budget_invalid`.
    ///
    /// # Panics
    /// Never: the default limits of admission are valid.
    pub fn without_threads(parts: Parts) -> Result<(Self, ShardTask), Failure> {
        let budgets = Budgets::new(&parts.budgets)?;
        let (post, inbox) = unbounded_channel();
        let loader = Loader::Inline(Arc::clone(&parts.journal));
        let peers = Arc::new(OnceLock::new());
        let _ = peers.set(vec![post.clone()]);
        let shard = Shard::new(ShardConfig {
            index: 0,
            host: parts.host,
            journal: Arc::clone(&parts.journal),
            models: parts.models,
            clock: Arc::clone(&parts.clock),
            broker: None,
            loader: loader.clone(),
            budgets: budgets.clone(),
            limits: parts.limits,
            post: post.clone(),
            peers,
            claims: Arc::default(),
        });
        let engine = Self {
            shards: vec![post],
            threads: Mutex::default(),
            journal: parts.journal,
            loader: Mutex::new(Some(loader)),
            budgets,
            clock: parts.clock,
            mcp: None,
            admission: Admission::new(AdmissionLimits::default())
                .expect("the default limits are valid"),
        };
        Ok((engine, ShardTask(shard, inbox)))
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

    /// Begins a session with the first events of another. Answered once that is durable.
    pub fn fork(&self, request: ForkRequest, reply: Reply<Opened>) {
        let id = match &request.session {
            Some(id) => id.clone(),
            None => fresh_id(),
        };
        self.send(&id.clone(), Mail::Fork(id, request, reply));
    }

    /// Records a decision about a tool call that waits for one, once. Answered once that is
    /// durable; `approval_used` if nothing waits for it, or no longer.
    pub fn decide(&self, request: DecideRequest, reply: Reply<()>) {
        let id = request.session.clone();
        self.send(&id, Mail::Decide(request, reply));
    }

    /// Lists what waits for decisions: in one session, or in all that wait for nothing else.
    pub fn pending(&self, session: Option<SessionId>, limit: u32, reply: Reply<Vec<Pending>>) {
        self.read(reply, move |journal| loader::pending(journal, session.as_ref(), limit));
    }

    /// Claims sessions of these agents that nobody owns, now and from then on. Answered with those
    /// that were there at once.
    pub fn claim(&self, request: ClaimRequest, reply: Reply<Vec<Opened>>) {
        if let Err(refused) = self.shards[0].send(Mail::Claim(request, reply)) {
            refuse(refused.0);
        }
    }

    /// What is known of every key of every model that was called.
    #[must_use]
    pub fn models(&self) -> Vec<ChannelReport> {
        self.admission.report()
    }

    /// Whether this process may still act on what it took in a tenure: asked by a host just before
    /// it runs a tool.
    #[must_use]
    pub fn may_act(&self, tenure: u64) -> bool {
        self.journal.hold(tenure) == Hold::Held
    }

    /// Whether other processes may own sessions of the store at the same time.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.journal.is_shared()
    }

    /// Begins nothing new, lets each session come to the end of its step, and lets go of it.
    /// Answered when nothing is left, or when the time is up.
    pub fn drain(&self, within: Duration, reply: Reply<DrainReport>) {
        let deadline = tokio::time::Instant::now() + within;
        let all = Arc::new(Mutex::new((self.shards.len(), DrainReport::default(), Some(reply))));
        for shard in &self.shards {
            let all = Arc::clone(&all);
            let reply: Reply<DrainReport> = Box::new(move |report| add_drained(&all, report));
            if let Err(refused) = shard.send(Mail::Drain(deadline, reply)) {
                refuse(refused.0);
            }
        }
    }

    /// Runs a session again against its recorded results.
    pub fn replay(&self, session: SessionId, reply: Reply<Replay>) {
        self.read(reply, move |journal| replay::replay(journal, &session));
    }

    /// The report of a session as of a position, without waiting.
    pub fn report_at(&self, session: SessionId, until: Option<Seq>, reply: Reply<SessionReport>) {
        self.read(reply, move |journal| loader::report_at(journal, &session, until));
    }

    /// A session's state as JSON as of a position (`None`: now).
    pub fn state_at(&self, session: SessionId, until: Option<Seq>, reply: Reply<String>) {
        self.read(reply, move |journal| loader::state_json(journal, &session, until));
    }

    /// How the budget of a tenant stands; none if it has none here.
    pub fn budget(&self, tenant: String, reply: Reply<Option<AccountReport>>) {
        let (budgets, at_us) = (self.budgets.clone(), self.clock.now_us());
        self.read(reply, move |journal| budgets.report(journal, &tenant, at_us));
    }

    /// Removes ended sessions for good.
    pub fn prune(&self, query: PruneQuery, reply: Reply<PruneReport>) {
        self.read(reply, move |journal| journal.prune(&query).map_err(|error| error.failure()));
    }

    /// Gives the room of what was removed back to the system.
    pub fn compact(&self, reply: Reply<CompactReport>) {
        self.read(reply, |journal| journal.compact().map_err(|error| error.failure()));
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
    ///
    /// # Panics
    /// In an engine without threads.
    pub fn mcp_server(&self, config: StdioConfig) -> McpServer {
        self.mcp().broker.server(config)
    }

    /// Where work with MCP servers can be awaited.
    ///
    /// # Panics
    /// In an engine without threads.
    pub fn mcp_runtime(&self) -> &tokio::runtime::Handle {
        &self.mcp().runtime
    }

    fn mcp(&self) -> &Mcp {
        self.mcp.as_ref().expect("an engine with threads has a broker")
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
        if let Some(mcp) = &self.mcp {
            mcp.close();
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
        let shard = shard_of(session, self.shards.len());
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

impl Mcp {
    fn close(&self) {
        let broker = self.broker.clone();
        let stop = self.stop.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(stop) = stop {
            self.runtime.spawn(async move {
                broker.close().await;
                let _ = stop.send(());
            });
        }
    }
}

/// Which of so many shards a session is on.
pub(crate) fn shard_of(session: &SessionId, count: usize) -> usize {
    if count == 1 {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    session.as_str().hash(&mut hasher);
    (hasher.finish() % count as u64) as usize
}

type Drained = Mutex<(usize, DrainReport, Option<Reply<DrainReport>>)>;

/// Adds one shard's report; the last one answers.
fn add_drained(all: &Drained, report: Result<DrainReport, Failure>) {
    let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (left, sum, reply) = &mut *all;
    *left -= 1;
    match report {
        Ok(report) => {
            sum.finished += report.finished;
            sum.parked += report.parked;
            sum.cut += report.cut;
            if *left == 0
                && let Some(reply) = reply.take()
            {
                reply(Ok(*sum));
            }
        }
        Err(error) => {
            if let Some(reply) = reply.take() {
                reply(Err(error));
            }
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
        Mail::Start(_, _, reply) | Mail::Resume(_, reply) | Mail::Fork(_, _, reply) => {
            reply(Err(closed()));
        }
        Mail::Cancel(_, _, reply) | Mail::Decide(_, reply) => reply(Err(closed())),
        Mail::Claim(_, reply) => reply(Err(closed())),
        Mail::Drain(_, reply) => reply(Err(closed())),
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
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
}
