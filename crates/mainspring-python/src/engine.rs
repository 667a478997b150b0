//! The engine as Python's `mainspring.engine` drives it. Every method returns at once, or lets go
//! of the interpreter while it waits; answers come by handle through `drain`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use mainspring_engine::{
    Agent, AgentConfig, Binding, ClaimRequest, DecideRequest, Decision, Edit, EndpointAccess,
    Engine, EngineConfig, ForkRequest, HostOutcome, HostResult, ModelAccess, OnChange, Opened,
    ResumeRequest, StartRequest, Ticket,
};
use mainspring_journal::{Durability, PruneQuery, SessionQuery, SessionStatus};
use mainspring_mcp::StdioConfig;
use mainspring_models::AdapterReport;
use mainspring_models::budget::AccountReport;
use mainspring_session::{
    ApprovalDecision, ApprovalId, BlobHash, Budget, CATALOGUE, CallIndex, EffectOutcome, ErrorCode,
    Failure, Origin, Part, Seq, SessionId, StepClass,
};
use mainspring_wire::{RetryHeaders, classify_error};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::bridge::{Bridge, Payload};
use crate::convert;
use crate::payment::{payment_of, report_json};

/// One engine.
#[pyclass(frozen, module = "mainspring._native")]
pub(crate) struct NativeEngine {
    engine: Arc<Engine>,
    bridge: Arc<Bridge>,
    agents: Mutex<Vec<Arc<Agent>>>,
    process: u32,
}

/// Where one tool runs, as Python says it.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum BindingJson {
    Host(u32),
    Mcp { server: Box<StdioConfig>, tool: String },
}

/// How one model is reached, as Python says it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessJson {
    api_key: Option<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    adapter: Option<u32>,
    #[serde(default)]
    endpoints: Vec<EndpointJson>,
}

#[derive(Deserialize)]
struct EndpointJson {
    base_url: Option<String>,
    api_key: Option<String>,
    weight: f64,
}

#[pymethods]
impl NativeEngine {
    #[new]
    #[pyo3(signature = (store, *, durability="full", shard_count=None, threads_max=32, sessions_max=None, lease_ms=None, node=None, budgets=None, model_queue_max=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords of the Python class")]
    fn new(
        py: Python<'_>,
        store: &str,
        durability: &str,
        shard_count: Option<u8>,
        threads_max: usize,
        sessions_max: Option<usize>,
        lease_ms: Option<u64>,
        node: Option<String>,
        budgets: Option<&[u8]>,
        model_queue_max: Option<usize>,
    ) -> PyResult<Self> {
        let mut config = EngineConfig::new(store);
        config.durability = match durability {
            "full" => Durability::Full,
            "normal" => Durability::Normal,
            other => {
                let message = format!("durability {other:?}, allowed are \"full\" and \"normal\"");
                return Err(convert::raise(Failure::new(ErrorCode::AGENT_INVALID, message)));
            }
        };
        config.shard_count = shard_count.unwrap_or(config.shard_count);
        config.lease_ms = lease_ms;
        config.node = node;
        if let Some(budgets) = budgets {
            let budgets: BTreeMap<String, Budget> =
                json(budgets, "the budgets").map_err(convert::raise)?;
            config.budgets = budgets.into_iter().collect();
        }
        config.admission.queue_max = model_queue_max.unwrap_or(config.admission.queue_max);
        config.limits.sessions_max = sessions_max.unwrap_or(config.limits.sessions_max);
        py.detach(|| Self::open(&config, threads_max)).map_err(convert::raise)
    }

    /// The descriptor to watch; readable when `drain` has something.
    fn fd(&self) -> i32 {
        self.bridge.fd()
    }

    /// Everything the engine wants from Python, as tuples.
    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for item in self.bridge.drain() {
            list.append(convert::item(py, item)?)?;
        }
        Ok(list)
    }

    /// Waits for a job of a sync tool; None once the engine is closed.
    fn take_sync<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let job = py.detach(|| self.bridge.next_job());
        job.map(|job| convert::sync_job(py, job)).transpose()
    }

    /// Tools of this number run in threads.
    fn mark_sync(&self, tool: u32) {
        self.bridge.mark_sync(tool);
    }

    /// Jobs that returned, as `(ticket, text)`.
    fn returned(&self, results: Vec<(u64, String)>) {
        let results = results
            .into_iter()
            .map(|(ticket, text)| result(ticket, HostOutcome::Returned(text)))
            .collect();
        self.engine.host_results(results);
    }

    /// A job that failed.
    fn failed(
        &self,
        ticket: u64,
        code: &str,
        message: String,
        hint: Option<String>,
        retryable: bool,
    ) {
        let code = ErrorCode::named(code);
        let error = Failure { code, message, hint, retryable };
        self.engine.host_results(vec![result(ticket, HostOutcome::Failed(error))]);
    }

    /// A job that was cancelled.
    fn cancelled(&self, ticket: u64) {
        self.engine.host_results(vec![result(ticket, HostOutcome::Cancelled)]);
    }

    /// A piece of the answer of a function behind a model.
    fn model_delta(&self, call: u64, text: String) {
        self.bridge.model_said(call, AdapterReport::Delta(text));
    }

    /// The whole answer of such a function: the body of a chat completion.
    fn model_answered(&self, call: u64, body: &[u8]) {
        self.bridge.model_said(call, AdapterReport::Answered(body.to_vec()));
    }

    /// Such a function failed.
    fn model_failed(
        &self,
        call: u64,
        code: &str,
        message: String,
        hint: Option<String>,
        retryable: bool,
    ) {
        let code = ErrorCode::named(code);
        let failure = Failure { code, message, hint, retryable };
        self.bridge.model_said(call, AdapterReport::Failed(failure.into()));
    }

    /// Such a function failed with the status of a server behind it.
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

    /// A job that was not run because `may_act` said no.
    fn withheld(&self, ticket: u64) {
        self.engine.host_results(vec![result(ticket, HostOutcome::Withheld)]);
    }

    /// A verdict: None to accept, else the reason why not.
    #[pyo3(signature = (ticket, rejection))]
    fn verified(&self, ticket: u64, rejection: Option<String>) {
        self.engine.host_results(vec![result(ticket, HostOutcome::Verified(rejection))]);
    }

    /// A policy's answer: whether a person must approve.
    fn policy_answered(&self, ticket: u64, needed: bool) {
        self.engine.host_results(vec![result(ticket, HostOutcome::Policy(needed))]);
    }

    /// What a tool's own function found out about a call: `done`, `not_done` or `undecided`.
    fn reconciled(&self, ticket: u64, outcome: &str, text: String) {
        let outcome = match outcome {
            "done" => EffectOutcome::Done { text },
            "not_done" => EffectOutcome::NotDone,
            _ => EffectOutcome::Undecided { message: text },
        };
        self.engine.host_results(vec![result(ticket, HostOutcome::Reconciled(outcome))]);
    }

    /// What is known of every key of every model, as JSON.
    fn models(&self) -> String {
        serde_json::to_string(&self.engine.models()).unwrap_or_default()
    }

    /// Whether a tool of a call taken in this tenure may still be run.
    fn may_act(&self, tenure: u64) -> bool {
        self.engine.may_act(tenure)
    }

    /// Whether other processes may own sessions of the store.
    fn is_shared(&self) -> bool {
        self.engine.is_shared()
    }

    /// Compiles an agent and returns its number. `judge` is how its judge is reached, `weights`
    /// the file of what was learnt.
    #[pyo3(signature = (spec, access, bindings, verifier, judge=None, weights=None))]
    #[expect(clippy::too_many_arguments, reason = "one call of one Python method")]
    fn register(
        &self,
        py: Python<'_>,
        spec: &[u8],
        access: &[u8],
        bindings: &[u8],
        verifier: Option<u32>,
        judge: Option<&[u8]>,
        weights: Option<&[u8]>,
    ) -> PyResult<u32> {
        self.check_process()?;
        let compiled = py.detach(|| compile(spec, access, bindings, (verifier, judge, weights)));
        let agent = compiled.map_err(convert::raise)?;
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.push(Arc::new(agent));
        Ok(u32::try_from(agents.len() - 1).expect("nobody registers four thousand million agents"))
    }

    /// The hash of an agent's spec.
    fn fingerprint(&self, agent: u32) -> PyResult<String> {
        Ok(self.agent(agent)?.fingerprint().as_str().to_owned())
    }

    /// Begins a turn; resolves to `(session, seq of the turn's first event)`. `payment` is JSON:
    /// `tenant` and `budget`, what changes about who pays. `step_class`
    /// says what its steps are for.
    #[pyo3(signature = (handle, agent, content, session, origin, submit, payment, step_class=None))]
    #[expect(clippy::too_many_arguments, reason = "one call of one Python method")]
    fn start(
        &self,
        handle: u64,
        agent: u32,
        content: &[u8],
        session: Option<&str>,
        origin: Option<String>,
        submit: bool,
        payment: Option<&[u8]>,
        step_class: Option<&str>,
    ) -> PyResult<()> {
        self.check_process()?;
        let content: Vec<Part> = json(content, "the input").map_err(convert::raise)?;
        let step_class = step_class.map(class_of).transpose().map_err(convert::raise)?;
        let session = session.map(session_id).transpose().map_err(convert::raise)?;
        let agent = self.agent(agent)?;
        let origin = origin.map(Origin);
        let reply = self.bridge.reply(handle, opened);
        let payment = payment_of(payment)?;
        let request = StartRequest { session, agent, content, origin, submit, payment, step_class };
        self.engine.start(request, reply);
        Ok(())
    }

    /// Begins a session with the first events of another; resolves like `start`. `edit` is a text
    /// or, as JSON, an input's parts.
    #[expect(clippy::too_many_arguments, reason = "one call of one Python method")]
    fn fork(
        &self,
        handle: u64,
        agent: u32,
        parent: &str,
        at: Option<u64>,
        session: Option<&str>,
        edit_text: Option<String>,
        edit_content: Option<&[u8]>,
        content: Option<&[u8]>,
        origin: Option<String>,
        payment: Option<&[u8]>,
    ) -> PyResult<()> {
        self.check_process()?;
        let parts = |bytes: &[u8]| json::<Vec<Part>>(bytes, "the input").map_err(convert::raise);
        let edit = match (edit_text, edit_content) {
            (Some(text), _) => Some(Edit::Text(text)),
            (None, content) => content.map(parts).transpose()?.map(Edit::Content),
        };
        let request = ForkRequest {
            parent: session_id(parent).map_err(convert::raise)?,
            at: at.map(Seq),
            session: session.map(session_id).transpose().map_err(convert::raise)?,
            agent: self.agent(agent)?,
            edit,
            content: content.map(parts).transpose()?,
            origin: origin.map(Origin),
            payment: payment_of(payment)?,
        };
        self.engine.fork(request, self.bridge.reply(handle, opened));
        Ok(())
    }

    /// Answers a request for approval; resolves to None. Granted unless there is a `denial`;
    /// `approval` None means whichever request is open; `agent` goes on with the session.
    #[expect(clippy::too_many_arguments, reason = "one call of one Python method")]
    fn decide_approval(
        &self,
        handle: u64,
        session: &str,
        call: u64,
        approval: Option<&str>,
        arguments: Option<String>,
        denial: Option<String>,
        by: Option<String>,
        agent: Option<u32>,
    ) -> PyResult<()> {
        let decision = match denial {
            Some(message) => ApprovalDecision::Denied { message },
            None => ApprovalDecision::Granted { arguments },
        };
        let decision = Decision::Approval(approval.map(ApprovalId::named), decision);
        self.decide(handle, session, call, decision, by, agent)
    }

    /// Says what became of a call whose process ended: `done`, `not_done` or `failed`; resolves to
    /// None.
    #[expect(clippy::too_many_arguments, reason = "one call of one Python method")]
    fn decide_effect(
        &self,
        handle: u64,
        session: &str,
        call: u64,
        outcome: &str,
        text: String,
        by: Option<String>,
        agent: Option<u32>,
    ) -> PyResult<()> {
        let outcome = match outcome {
            "done" => EffectOutcome::Done { text },
            "not_done" => EffectOutcome::NotDone,
            "failed" => EffectOutcome::Failed { message: text },
            other => {
                let message = format!("outcome {other:?}, allowed are done, not_done, failed");
                return Err(convert::raise(Failure::new(ErrorCode::AGENT_INVALID, message)));
            }
        };
        self.decide(handle, session, call, Decision::Effect(outcome), by, agent)
    }

    /// Resolves to what waits for decisions, in one session or in all that wait for nothing else.
    fn pending(&self, handle: u64, session: Option<&str>, limit: u32) -> PyResult<()> {
        self.check_process()?;
        let session = session.map(session_id).transpose().map_err(convert::raise)?;
        self.engine.pending(session, limit, self.bridge.reply(handle, Payload::Pending));
        Ok(())
    }

    /// Claims sessions of these agents, now and from then on; resolves to those there at once.
    fn claim(&self, handle: u64, agents: Vec<u32>, on_change: &str) -> PyResult<()> {
        self.check_process()?;
        let agents = agents.into_iter().map(|agent| self.agent(agent)).collect::<PyResult<_>>()?;
        let request = ClaimRequest { agents, on_change: on_change_of(on_change)? };
        self.engine.claim(request, self.bridge.reply(handle, Payload::OpenedAll));
        Ok(())
    }

    /// Shuts down step by step; resolves to `(finished, parked, cut)`.
    fn drain_sessions(&self, handle: u64, within_ms: u64) -> PyResult<()> {
        self.check_process()?;
        let reply = self.bridge.reply(handle, |report: mainspring_engine::DrainReport| {
            Payload::Counts(vec![report.finished, report.parked, report.cut])
        });
        self.engine.drain(Duration::from_millis(within_ms), reply);
        Ok(())
    }

    /// Resolves to how a replay of the session ended.
    fn replay(&self, handle: u64, session: &str) -> PyResult<()> {
        self.check_process()?;
        let session = session_id(session).map_err(convert::raise)?;
        self.engine.replay(session, self.bridge.reply(handle, Payload::Replay));
        Ok(())
    }

    /// Resolves to the report as of before a position, without waiting.
    fn report_at(&self, handle: u64, session: &str, until: Option<u64>) -> PyResult<()> {
        self.check_process()?;
        let session = session_id(session).map_err(convert::raise)?;
        let reply = self.bridge.reply(handle, Payload::Report);
        self.engine.report_at(session, until.map(Seq), reply);
        Ok(())
    }

    /// Resolves to the state as of before a position, as JSON.
    fn state_at(&self, handle: u64, session: &str, until: Option<u64>) -> PyResult<()> {
        self.check_process()?;
        let session = session_id(session).map_err(convert::raise)?;
        let reply = self.bridge.reply(handle, Payload::Text);
        self.engine.state_at(session, until.map(Seq), reply);
        Ok(())
    }

    /// Resolves to how the budget of a tenant stands, as JSON; to `null` if it has none here.
    fn budget(&self, handle: u64, tenant: String) -> PyResult<()> {
        self.check_process()?;
        let reply = self.bridge.reply(handle, |report: Option<AccountReport>| {
            Payload::Text(report_json(report.as_ref()))
        });
        self.engine.budget(tenant, reply);
        Ok(())
    }

    /// Removes ended sessions; resolves to `(sessions, kept for forks, events, blobs)`.
    fn prune(
        &self,
        handle: u64,
        before_us: i64,
        statuses: Vec<String>,
        agent: Option<String>,
        dry_run: bool,
    ) -> PyResult<()> {
        self.check_process()?;
        let statuses = statuses
            .iter()
            .map(|name| status(name))
            .collect::<Result<_, _>>()
            .map_err(convert::raise)?;
        let query = PruneQuery { before_us, statuses, agent, dry_run };
        let reply = self.bridge.reply(handle, |report: mainspring_journal::PruneReport| {
            let mainspring_journal::PruneReport { sessions, kept_for_forks, events, blobs } =
                report;
            Payload::Counts(vec![sessions, kept_for_forks, events, blobs])
        });
        self.engine.prune(query, reply);
        Ok(())
    }

    /// Gives room back to the system; resolves to `(bytes before, bytes after)`.
    fn compact(&self, handle: u64) -> PyResult<()> {
        self.check_process()?;
        let reply = self.bridge.reply(handle, |report: mainspring_journal::CompactReport| {
            Payload::Counts(vec![report.bytes_before, report.bytes_after])
        });
        self.engine.compact(reply);
        Ok(())
    }

    /// Continues a turn; resolves like `start`.
    fn resume(&self, handle: u64, agent: u32, session: &str, on_change: &str) -> PyResult<()> {
        self.check_process()?;
        let session = session_id(session).map_err(convert::raise)?;
        let agent = self.agent(agent)?;
        let on_change = on_change_of(on_change)?;
        let reply = self.bridge.reply(handle, opened);
        self.engine.resume(ResumeRequest { session, agent, on_change }, reply);
        Ok(())
    }

    /// Ends a turn; resolves to None.
    fn cancel(&self, handle: u64, session: &str, reason: String) -> PyResult<()> {
        self.check_process()?;
        let session = session_id(session).map_err(convert::raise)?;
        self.engine.cancel(session, reason, self.bridge.reply(handle, |()| Payload::Unit));
        Ok(())
    }

    /// Resolves to the report at the end of the turn.
    fn wait(&self, handle: u64, session: &str) -> PyResult<()> {
        self.check_process()?;
        let session = session_id(session).map_err(convert::raise)?;
        self.engine.wait(session, self.bridge.reply(handle, Payload::Report));
        Ok(())
    }

    /// Resolves to the next batch of events from `seq` on.
    fn watch(&self, handle: u64, session: &str, seq: u64) -> PyResult<()> {
        self.check_process()?;
        let session = session_id(session).map_err(convert::raise)?;
        self.engine.watch(session, Seq(seq), self.bridge.reply(handle, Payload::Batch));
        Ok(())
    }

    /// Resolves to session heads, the newest first.
    fn sessions(
        &self,
        handle: u64,
        status: Option<&str>,
        limit: u32,
        before: Option<&str>,
    ) -> PyResult<()> {
        self.check_process()?;
        let query = query(status, limit, before).map_err(convert::raise)?;
        self.engine.sessions(query, self.bridge.reply(handle, Payload::Heads));
        Ok(())
    }

    /// Resolves to the heads of the sessions with a turn to continue.
    fn open_sessions(&self, handle: u64) -> PyResult<()> {
        self.check_process()?;
        self.engine.open_sessions(self.bridge.reply(handle, Payload::Heads));
        Ok(())
    }

    /// Resolves to a session's records from `seq` on.
    fn load(&self, handle: u64, session: &str, seq: u64) -> PyResult<()> {
        self.check_process()?;
        let session = session_id(session).map_err(convert::raise)?;
        self.engine.load(session, Seq(seq), self.bridge.reply(handle, Payload::Records));
        Ok(())
    }

    /// Resolves to a blob's bytes, or None.
    fn blob(&self, handle: u64, hash: &str) -> PyResult<()> {
        self.check_process()?;
        let hash: BlobHash = serde_json::from_value(hash.into())
            .map_err(|error| convert::raise(unreadable("the hash", &error)))?;
        self.engine.blob(hash, self.bridge.reply(handle, Payload::Bytes));
        Ok(())
    }

    /// Resolves to the tools of an MCP server, a JSON list with the fields of MCP's `Tool`.
    fn mcp_tools(&self, handle: u64, config: &[u8]) -> PyResult<()> {
        self.check_process()?;
        let config: StdioConfig = json(config, "the MCP server").map_err(convert::raise)?;
        let server = self.engine.mcp_server(config);
        let reply = self.bridge.reply(handle, Payload::Text);
        self.engine.mcp_runtime().spawn(async move {
            reply(server.tools().await.map(|tools| tools_json(&tools)).map_err(mcp_failure));
        });
        Ok(())
    }

    /// `(commits, appends, events, bytes)` of the journal since it was opened.
    fn stats(&self) -> (u64, u64, u64, u64) {
        let stats = self.engine.stats();
        (stats.commits, stats.appends, stats.events, stats.bytes)
    }

    /// Stops everything; what is durable can be resumed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.process != std::process::id() {
            return Ok(());
        }
        self.bridge.close();
        py.detach(|| self.engine.close()).map_err(convert::raise)
    }
}

impl Drop for NativeEngine {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A forked child has none of the threads that closing would wait for, so the child's
            // copy of the engine is left as it is.
            std::mem::forget(Arc::clone(&self.engine));
        }
    }
}

impl NativeEngine {
    fn open(config: &EngineConfig, threads_max: usize) -> Result<Self, Failure> {
        let engine: Arc<OnceLock<Weak<Engine>>> = Arc::new(OnceLock::new());
        let late = Arc::clone(&engine);
        let ended = Box::new(move |results| {
            if let Some(engine) = late.get().and_then(Weak::upgrade) {
                engine.host_results(results);
            }
        });
        let bridge = Bridge::new(threads_max, ended).map_err(|error| {
            Failure::new(ErrorCode::INTERNAL, format!("no event descriptor: {error}"))
        })?;
        let bridge = Arc::new(bridge);
        let opened = Arc::new(Engine::open(config, bridge.clone())?);
        let _ = engine.set(Arc::downgrade(&opened));
        let process = std::process::id();
        Ok(Self { engine: opened, bridge, agents: Mutex::new(Vec::new()), process })
    }

    fn decide(
        &self,
        handle: u64,
        session: &str,
        call: u64,
        decision: Decision,
        by: Option<String>,
        agent: Option<u32>,
    ) -> PyResult<()> {
        self.check_process()?;
        let session = session_id(session).map_err(convert::raise)?;
        let agent = agent.map(|agent| self.agent(agent)).transpose()?;
        let request = DecideRequest { session, call: CallIndex(call), decision, by, agent };
        self.engine.decide(request, self.bridge.reply(handle, |()| Payload::Unit));
        Ok(())
    }

    fn agent(&self, number: u32) -> PyResult<Arc<Agent>> {
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.get(number as usize).cloned().ok_or_else(|| {
            let message = format!("agent number {number}, registered are {}", agents.len());
            convert::raise(Failure::new(ErrorCode::AGENT_INVALID, message))
        })
    }

    /// A forked child has none of the engine's threads.
    fn check_process(&self) -> PyResult<()> {
        if self.process == std::process::id() {
            return Ok(());
        }
        let message = "the engine belongs to another process: this one was forked from it";
        Err(convert::raise(
            Failure::new(ErrorCode::ENGINE_CLOSED, message)
                .with_hint("open an engine after the fork, or start processes by spawning"),
        ))
    }
}

/// The catalogue of errors, as `(code, retryable, meaning)`.
#[pyfunction]
pub(crate) fn error_catalogue() -> Vec<(String, bool, String)> {
    CATALOGUE
        .iter()
        .map(|entry| (entry.code.to_string(), entry.retryable, entry.meaning.to_owned()))
        .collect()
}

fn opened(opened: Opened) -> Payload {
    Payload::Opened(opened.session.as_str().to_owned(), opened.from.0)
}

fn result(ticket: u64, outcome: HostOutcome) -> HostResult {
    HostResult { ticket: Ticket(ticket), outcome }
}

fn compile(
    spec: &[u8],
    access: &[u8],
    bindings: &[u8],
    (verifier, judge, weights): (Option<u32>, Option<&[u8]>, Option<&[u8]>),
) -> Result<Agent, Failure> {
    let spec = json(spec, "the agent")?;
    let access: Vec<AccessJson> = json(access, "the models' access")?;
    let bindings: Vec<BindingJson> = json(bindings, "the tools' bindings")?;
    let judge: Option<AccessJson> =
        judge.map(|judge| json(judge, "the judge's access")).transpose()?;
    let reached = |access: AccessJson| ModelAccess {
        api_key: access.api_key,
        headers: access.headers,
        adapter: access.adapter,
        endpoints: access.endpoints.into_iter().map(endpoint_access).collect(),
    };
    let access = access.into_iter().map(reached).collect();
    let judge = judge.map(reached).unwrap_or_default();
    let weights = weights.map(Arc::from);
    let bindings = bindings
        .into_iter()
        .map(|binding| match binding {
            BindingJson::Host(number) => Binding::Host(number),
            BindingJson::Mcp { server, tool } => Binding::Mcp { server: Arc::from(server), tool },
        })
        .collect();
    Agent::new(AgentConfig { spec, access, bindings, verifier, judge, weights })
}

fn endpoint_access(endpoint: EndpointJson) -> EndpointAccess {
    let EndpointJson { base_url, api_key, weight } = endpoint;
    EndpointAccess { base_url, api_key, weight }
}

fn json<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| unreadable(what, &error))
}

fn unreadable(what: &str, error: &serde_json::Error) -> Failure {
    Failure::new(ErrorCode::AGENT_INVALID, format!("{what} cannot be read: {error}"))
}

/// Checks a session id.
pub(crate) fn session_id(id: &str) -> Result<SessionId, Failure> {
    SessionId::new(id).map_err(|error| {
        let text = error.to_string();
        let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
        Failure::new(ErrorCode::SESSION_INVALID_ID, message).with_hint(hint)
    })
}

/// Reads a query.
pub(crate) fn query(
    status: Option<&str>,
    limit: u32,
    before: Option<&str>,
) -> Result<SessionQuery, Failure> {
    let status = status.map(self::status).transpose()?;
    let before = before.map(session_id).transpose()?;
    Ok(SessionQuery { status, limit, before })
}

fn status(name: &str) -> Result<SessionStatus, Failure> {
    convert::status_of(name).ok_or_else(|| {
        let message = format!("status {name:?} of sessions is not known");
        Failure::new(ErrorCode::AGENT_INVALID, message)
            .with_hint("allowed are open, waiting, finished, failed, cancelled")
    })
}

fn class_of(name: &str) -> Result<StepClass, Failure> {
    StepClass::named(name).ok_or_else(|| {
        let allowed: Vec<_> = StepClass::ALL.iter().map(|class| class.as_str()).collect();
        let message = format!("step class {name:?}, allowed are {}", allowed.join(", "));
        Failure::new(ErrorCode::AGENT_INVALID, message)
    })
}

fn on_change_of(name: &str) -> PyResult<OnChange> {
    match name {
        "continue" => Ok(OnChange::Continue),
        "pin" => Ok(OnChange::Pin),
        "refuse" => Ok(OnChange::Refuse),
        other => {
            let message = format!("on_change {other:?}, allowed are continue, pin, refuse");
            Err(convert::raise(Failure::new(ErrorCode::AGENT_INVALID, message)))
        }
    }
}

fn tools_json(tools: &[mainspring_mcp::McpTool]) -> String {
    let listed: Vec<_> = tools
        .iter()
        .map(|tool| {
            serde_json::json!({
                "name": tool.name,
                "description": tool.description,
                "inputSchema": tool.input_schema,
                "annotations": {
                    "readOnlyHint": tool.read_only_hint,
                    "idempotentHint": tool.idempotent_hint,
                    "destructiveHint": tool.destructive_hint,
                },
            })
        })
        .collect();
    serde_json::Value::Array(listed).to_string()
}

fn mcp_failure(error: mainspring_mcp::McpError) -> Failure {
    Failure {
        code: ErrorCode::named(error.code()),
        message: error.message(),
        hint: error.hint(),
        retryable: error.retryable(),
    }
}
