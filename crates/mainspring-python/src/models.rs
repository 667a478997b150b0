//! Model calls without a session, as Python's `mainspring.model_client` drives them.
//!
//! One thread makes all calls. A request goes over as the JSON of a Chat Completions request and is
//! read there, without the interpreter; the answer comes back by handle through `drain`. A stream
//! is asked for piece by piece, and what came meanwhile is one piece, so a slow reader costs less,
//! not more.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use mainspring_engine::{
    Completer, CompleterConfig, Completion, CompletionRequest, ModelRoute, Piece, Reply,
    RouteConfig, Streaming, TenantBudgets, Verify, raise_descriptor_limit,
};
use mainspring_models::{AdapterReport, ModelClient, TransportLimits};
use mainspring_route::{Policy, Weights};
use mainspring_server::MemberConfig;
use mainspring_session::{Budget, ErrorCode, Failure};
use mainspring_wire::{BadRequest, ChatRequest, Delta, RetryHeaders, classify_error};
use pyo3::prelude::*;
use pyo3::types::PyList;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::bridge::{Bridge, Item, Payload};
use crate::convert;

/// Routes that one client knows; they are kept until it is closed.
const ROUTES_MAX: usize = 4_096;

/// Makes model calls without sessions.
#[pyclass(frozen, module = "mainspring._native")]
pub(crate) struct NativeModels {
    bridge: Arc<Bridge>,
    orders: Mutex<Option<UnboundedSender<Order>>>,
    routes: Mutex<Vec<Arc<ModelRoute>>>,
    streams: Streams,
    verdicts: Arc<Verdicts>,
    thread: Mutex<Option<JoinHandle<()>>>,
    process: u32,
}

type Streams = Arc<Mutex<HashMap<u64, Arc<StreamState>>>>;

/// What the thread is told.
enum Order {
    Complete(Box<Ask>, Reply<Completion>),
    Stream(Box<Ask>, Arc<StreamState>),
    GiveUp(u64),
}

/// One question.
struct Ask {
    handle: u64,
    route: Arc<ModelRoute>,
    body: Vec<u8>,
    streaming: Streaming,
    tenant: Arc<str>,
    timeout: Option<Duration>,
}

/// What of a stream Python has not got yet.
#[derive(Default)]
struct StreamState(Mutex<Buffered>);

#[derive(Default)]
struct Buffered {
    pieces: Pieces,
    waiting: Option<Reply<Pieces>>,
    failed: Option<Failure>,
}

/// What came of a stream since it was last asked.
#[derive(Default)]
pub(crate) struct Pieces {
    /// Whether what came before does not count.
    pub(crate) restarted: bool,
    /// The next text.
    pub(crate) text: String,
    /// The whole, once it is there.
    pub(crate) done: Option<Box<Completion>>,
}

#[pymethods]
impl NativeModels {
    /// `budgets` is JSON: what tenants may spend, by name.
    #[new]
    #[pyo3(signature = (budgets=None))]
    fn new(py: Python<'_>, budgets: Option<&[u8]>) -> PyResult<Self> {
        py.detach(|| Self::open(budgets)).map_err(convert::raise)
    }

    /// The descriptor to watch; readable when `drain` has something.
    fn fd(&self) -> i32 {
        self.bridge.fd()
    }

    /// Everything there is for Python, as tuples.
    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for item in self.bridge.drain() {
            list.append(convert::item(py, item)?)?;
        }
        Ok(list)
    }

    /// Makes a route ready and returns its number. `members` and `policy` are JSON, `weights` is
    /// what a weights file holds.
    fn route(
        &self,
        py: Python<'_>,
        name: String,
        members: &[u8],
        verifier: Option<u32>,
        policy: Option<&[u8]>,
        weights: Option<&[u8]>,
    ) -> PyResult<u32> {
        self.check_process()?;
        let verify = verifier.map(|verifier| {
            let (bridge, verdicts) = (Arc::clone(&self.bridge), Arc::clone(&self.verdicts));
            Arc::new(Verifier { bridge, verdicts, verifier }) as Arc<dyn Verify>
        });
        let made = py.detach(|| compile(name, members, verify, policy, weights));
        let route = made.map_err(convert::raise)?;
        let mut routes = lock(&self.routes);
        if routes.len() >= ROUTES_MAX {
            let message = format!("the client knows {ROUTES_MAX} routes, the most there may be");
            let failure = Failure::new(ErrorCode::AGENT_INVALID, message);
            return Err(convert::raise(
                failure.with_hint("make a Route once and use it for all calls"),
            ));
        }
        routes.push(Arc::new(route));
        Ok(u32::try_from(routes.len() - 1).expect("there are few routes"))
    }

    /// Asks a route; resolves to a completion.
    fn complete(
        &self,
        handle: u64,
        route: u32,
        body: Vec<u8>,
        tenant: &str,
        timeout_ms: Option<u64>,
    ) -> PyResult<()> {
        let ask = self.ask(handle, route, body, Streaming::Off, tenant, timeout_ms)?;
        let reply = self.bridge.reply(handle, |done| Payload::Completion(Box::new(done)));
        self.send(Order::Complete(ask, reply));
        Ok(())
    }

    /// Begins a stream, to be asked for by `next` with the same handle.
    fn stream(
        &self,
        handle: u64,
        route: u32,
        body: Vec<u8>,
        immediate: bool,
        tenant: &str,
        timeout_ms: Option<u64>,
    ) -> PyResult<()> {
        let streaming = if immediate { Streaming::Immediate } else { Streaming::Accepted };
        let ask = self.ask(handle, route, body, streaming, tenant, timeout_ms)?;
        let state = Arc::new(StreamState::default());
        lock(&self.streams).insert(handle, Arc::clone(&state));
        self.send(Order::Stream(ask, state));
        Ok(())
    }

    /// Resolves to what came of a stream since the last time: `(restarted, text, completion)`.
    fn next(&self, handle: u64, stream: u64) -> PyResult<()> {
        self.check_process()?;
        let reply = self.bridge.reply(handle, Payload::Pieces);
        let state = lock(&self.streams).get(&stream).cloned();
        match state {
            Some(state) => state.ask(reply),
            None => reply(Err(Failure::new(ErrorCode::CANCELLED, "the stream was closed"))),
        }
        Ok(())
    }

    /// Ends a call or a stream that nobody waits for any more.
    fn give_up(&self, handle: u64) {
        lock(&self.streams).remove(&handle);
        self.send(Order::GiveUp(handle));
    }

    /// A verdict: None to accept, else the reason why not.
    #[pyo3(signature = (ticket, rejection))]
    fn verified(&self, ticket: u64, rejection: Option<String>) {
        self.verdicts.give(ticket, rejection);
    }

    /// A verify function that was cancelled.
    fn cancelled(&self, ticket: u64) {
        self.verdicts.give(ticket, Some("the verify function was cancelled".to_owned()));
    }

    /// The next text of a model that is Python.
    fn model_delta(&self, call: u64, text: String) {
        self.bridge.model_said(call, AdapterReport::Delta(text));
    }

    /// The answer of a model that is Python: the body of a chat completion.
    fn model_answered(&self, call: u64, body: &[u8]) {
        self.bridge.model_said(call, AdapterReport::Answered(body.to_vec()));
    }

    /// A model that is Python failed.
    fn model_failed(
        &self,
        call: u64,
        code: &str,
        message: String,
        hint: Option<String>,
        retryable: bool,
    ) {
        let failure = Failure { code: ErrorCode::named(code), message, hint, retryable };
        self.bridge.model_said(call, AdapterReport::Failed(failure.into()));
    }

    /// A model that is Python met a server's status.
    #[pyo3(signature = (call, model, status, retry_after, body))]
    fn model_refused(
        &self,
        call: u64,
        model: &str,
        status: u16,
        retry_after: Option<&str>,
        body: &[u8],
    ) {
        let retry = RetryHeaders { retry_after, ..RetryHeaders::default() };
        let failure = classify_error(&format!("model {model:?}"), status, retry, body);
        self.bridge.model_said(call, AdapterReport::Failed(failure));
    }

    /// Ends all calls and the thread.
    fn close(&self, py: Python<'_>) {
        if self.process == std::process::id() {
            py.detach(|| self.stop());
        }
    }
}

impl Drop for NativeModels {
    fn drop(&mut self) {
        // A forked child has no thread to wait for.
        if self.process == std::process::id() {
            self.stop();
        }
    }
}

impl NativeModels {
    fn open(budgets: Option<&[u8]>) -> Result<Self, Failure> {
        let tenants = budgets.map(serde_json::from_slice).transpose().map_err(|error| {
            Failure::new(ErrorCode::AGENT_INVALID, format!("the budgets cannot be read: {error}"))
        })?;
        let tenants: BTreeMap<String, Budget> = tenants.unwrap_or_default();
        let budgets = TenantBudgets::new(&tenants.into_iter().collect::<Vec<_>>())?;
        raise_descriptor_limit();
        let internal = |error: std::io::Error| {
            Failure::new(ErrorCode::INTERNAL, format!("the model client cannot start: {error}"))
        };
        let bridge = Arc::new(Bridge::new(1, Box::new(|_| {})).map_err(internal)?);
        let (orders, inbox) = unbounded_channel();
        let models = ModelClient::new(TransportLimits::default())?.with_host(bridge.clone());
        let models = Arc::new(models);
        let config = CompleterConfig { budgets, ..CompleterConfig::default() };
        let completer = Completer::new(models, config);
        let thread = std::thread::Builder::new()
            .name("mainspring-models".to_owned())
            .spawn(move || run(completer, inbox))
            .map_err(internal)?;
        Ok(Self {
            bridge,
            orders: Mutex::new(Some(orders)),
            routes: Mutex::default(),
            streams: Arc::default(),
            verdicts: Arc::default(),
            thread: Mutex::new(Some(thread)),
            process: std::process::id(),
        })
    }

    fn ask(
        &self,
        handle: u64,
        route: u32,
        body: Vec<u8>,
        streaming: Streaming,
        tenant: &str,
        timeout_ms: Option<u64>,
    ) -> PyResult<Box<Ask>> {
        self.check_process()?;
        let route = lock(&self.routes).get(route as usize).cloned().ok_or_else(|| {
            let message = format!("route number {route} is not known");
            convert::raise(Failure::new(ErrorCode::AGENT_INVALID, message))
        })?;
        let timeout = timeout_ms.map(Duration::from_millis);
        Ok(Box::new(Ask { handle, route, body, streaming, tenant: Arc::from(tenant), timeout }))
    }

    fn send(&self, order: Order) {
        // Once the client is closed, dropping the order answers it.
        if let Some(orders) = &*lock(&self.orders) {
            let _ = orders.send(order);
        }
    }

    fn stop(&self) {
        lock(&self.orders).take();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn check_process(&self) -> PyResult<()> {
        if self.process == std::process::id() {
            return Ok(());
        }
        let message = "the model client belongs to another process: this one was forked from it";
        Err(convert::raise(Failure::new(ErrorCode::ENGINE_CLOSED, message)))
    }
}

fn compile(
    name: String,
    members: &[u8],
    verify: Option<Arc<dyn Verify>>,
    policy: Option<&[u8]>,
    weights: Option<&[u8]>,
) -> Result<ModelRoute, Failure> {
    let unreadable = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(ErrorCode::AGENT_INVALID, format!("the {what} cannot be read: {error}"))
    };
    let members: Vec<MemberConfig> =
        serde_json::from_slice(members).map_err(|error| unreadable("models", &error))?;
    let policy = policy.map(serde_json::from_slice).transpose();
    let policy: Option<Policy> = policy.map_err(|error| unreadable("policy", &error))?;
    let weights = weights.map(Weights::parse).transpose();
    let weights = weights.map_err(|error| unreadable("weights", &error))?;
    ModelRoute::new(RouteConfig {
        name,
        access: members.iter().map(|member| member.access.clone()).collect(),
        models: members.into_iter().map(|member| member.model).collect(),
        verify,
        // Nothing is recorded here, so there is nothing to learn from trying another model.
        policy: Policy { explore: 0.0, ..policy.unwrap_or_default() },
        weights: weights.map(Arc::new),
    })
}

fn run(completer: Completer, mut inbox: UnboundedReceiver<Order>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    let completer = std::rc::Rc::new(completer);
    let tasks: std::rc::Rc<std::cell::RefCell<HashMap<u64, AbortHandle>>> = std::rc::Rc::default();
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        while let Some(order) = inbox.recv().await {
            let (handle, work) = match order {
                Order::GiveUp(handle) => {
                    if let Some(task) = tasks.borrow_mut().remove(&handle) {
                        task.abort();
                    }
                    continue;
                }
                Order::Complete(ask, reply) => {
                    let completer = completer.clone();
                    (ask.handle, Box::pin(complete(completer, ask, reply)) as LocalBoxFuture<()>)
                }
                Order::Stream(ask, state) => {
                    let completer = completer.clone();
                    (ask.handle, Box::pin(stream(completer, ask, state)) as LocalBoxFuture<()>)
                }
            };
            let ended = tasks.clone();
            let task = tokio::task::spawn_local(async move {
                work.await;
                ended.borrow_mut().remove(&handle);
            });
            tasks.borrow_mut().insert(handle, task.abort_handle());
        }
    });
}

async fn complete(completer: std::rc::Rc<Completer>, ask: Box<Ask>, reply: Reply<Completion>) {
    let request = match read(&ask) {
        Ok(request) => request,
        Err(error) => return reply(Err(error)),
    };
    let result = completer.complete(&ask.route, &request, &mut |_| {}).await;
    reply(result.map_err(|error| error.failure));
}

async fn stream(completer: std::rc::Rc<Completer>, ask: Box<Ask>, state: Arc<StreamState>) {
    let guard = StreamGuard(Arc::clone(&state));
    let request = match read(&ask) {
        Ok(request) => request,
        Err(error) => return guard.0.end(Err(error)),
    };
    let mut on_piece = |piece: Piece<'_>| state.piece(piece);
    let result = completer.complete(&ask.route, &request, &mut on_piece).await;
    state.end(result.map_err(|error| error.failure));
}

fn read(ask: &Ask) -> Result<CompletionRequest, Failure> {
    let chat = ChatRequest::parse(&ask.body).map_err(|BadRequest { message, .. }| {
        Failure::new(ErrorCode::AGENT_INVALID, format!("the request cannot be used: {message}"))
    })?;
    Ok(CompletionRequest {
        streaming: ask.streaming,
        may_restart: true,
        tenant: Arc::clone(&ask.tenant),
        timeout: ask.timeout,
        ..CompletionRequest::of_chat(chat)
    })
}

/// Ends a stream whose task was dropped.
struct StreamGuard(Arc<StreamState>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.end(Err(Failure::new(ErrorCode::ENGINE_CLOSED, "the model client was closed")));
    }
}

impl StreamState {
    fn piece(&self, piece: Piece<'_>) {
        let mut buffered = lock(&self.0);
        match piece {
            Piece::Delta(Delta::Text(text)) => buffered.pieces.text.push_str(text),
            Piece::Restart => {
                buffered.pieces = Pieces { restarted: true, ..Pieces::default() };
            }
            Piece::Begin { .. } | Piece::Delta(_) => return,
        }
        give(buffered);
    }

    fn end(&self, result: Result<Completion, Failure>) {
        let mut buffered = lock(&self.0);
        // Only the first end counts; the guard's comes after it.
        if buffered.failed.is_some() {
            return;
        }
        match result {
            Ok(done) => {
                buffered.pieces.done = Some(Box::new(done));
                let over = "the stream has ended";
                buffered.failed = Some(Failure::new(ErrorCode::CANCELLED, over));
            }
            Err(error) => buffered.failed = Some(error),
        }
        give(buffered);
    }

    fn ask(&self, reply: Reply<Pieces>) {
        let mut buffered = lock(&self.0);
        buffered.waiting = Some(reply);
        give(buffered);
    }
}

/// Gives what there is to whoever waits.
fn give(mut buffered: MutexGuard<'_, Buffered>) {
    let pieces = &buffered.pieces;
    let has_some = pieces.restarted || !pieces.text.is_empty() || pieces.done.is_some();
    let failed = if has_some { None } else { buffered.failed.clone() };
    if !has_some && failed.is_none() {
        return;
    }
    let Some(reply) = buffered.waiting.take() else { return };
    let pieces = std::mem::take(&mut buffered.pieces);
    drop(buffered);
    reply(failed.map_or(Ok(pieces), Err));
}

/// Verify functions that are being run.
#[derive(Default)]
struct Verdicts {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Option<String>>>>,
}

impl Verdicts {
    fn give(&self, ticket: u64, rejection: Option<String>) {
        let waiting = lock(&self.waiting).remove(&ticket);
        if let Some(waiting) = waiting {
            let _ = waiting.send(rejection);
        }
    }
}

/// A verify function in Python.
struct Verifier {
    bridge: Arc<Bridge>,
    verdicts: Arc<Verdicts>,
    verifier: u32,
}

impl Verify for Verifier {
    fn verify<'a>(&'a self, draft: &'a Completion) -> LocalBoxFuture<'a, Option<String>> {
        let ticket = self.verdicts.next.fetch_add(1, Ordering::Relaxed);
        let (verdict, answered) = oneshot::channel();
        lock(&self.verdicts.waiting).insert(ticket, verdict);
        let answer = serde_json::json!({
            "text": draft.answer.text,
            "tool_calls": draft.answer.tool_calls,
            "model": draft.model,
            "step": 0,
        });
        let item = Item::Verify { ticket, verifier: self.verifier, answer: answer.to_string() };
        let waiting = Waiting { bridge: &self.bridge, verdicts: &self.verdicts, ticket };
        self.bridge.push(item);
        Box::pin(async move {
            let verdict = answered.await;
            drop(waiting);
            verdict.unwrap_or_else(|_| Some("the verify function gave no verdict".to_owned()))
        })
    }
}

/// Stops a verify function whose verdict nobody waits for any more.
struct Waiting<'a> {
    bridge: &'a Bridge,
    verdicts: &'a Verdicts,
    ticket: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if lock(&self.verdicts.waiting).remove(&self.ticket).is_some() {
            self.bridge.push(Item::Cancel { ticket: self.ticket });
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
