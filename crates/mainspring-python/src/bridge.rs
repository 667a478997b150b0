//! The queue between the engine's threads and Python's.
//!
//! The engine pushes items and, when the queue was empty, signals one event descriptor. Python's
//! event loop watches that descriptor and drains everything at once, so that a batch of tool
//! calls costs one wake-up. Jobs for sync tools go to a second queue that Python threads wait on
//! without holding the interpreter.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mainspring_engine::{
    CallContext, Completion, Host, HostCall, HostJob, HostOutcome, HostResult, Opened, Pending,
    Replay, Reply, SessionReport, Ticket, WatchBatch,
};
use mainspring_journal::SessionHead;
use mainspring_models::{AdapterCall, AdapterReport, ModelHost};
use mainspring_session::{ErrorCode, Failure, Record};

use crate::models::Pieces;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::mpsc::UnboundedSender;

/// What the engine wants from Python's event loop.
pub(crate) enum Item {
    /// Run an async tool.
    Tool { ticket: u64, tool: u32, arguments: String, context: CallContext },
    /// Ask a tool's policy whether a person must approve a call.
    Policy { ticket: u64, tool: u32, arguments: String, context: CallContext },
    /// Ask a tool what became of a call.
    Reconcile { ticket: u64, tool: u32, arguments: String, context: CallContext },
    /// Ask a verifier.
    Verify { ticket: u64, verifier: u32, answer: String },
    /// Ask a function that stands behind a model.
    Model { id: u64, model: u32, body: Bytes },
    /// Stop a job.
    Cancel { ticket: u64 },
    /// Start one more thread for sync tools.
    StartThread,
    /// Resolve a future.
    Resolve { handle: u64, result: Result<Payload, Failure> },
}

/// What a future resolves to.
pub(crate) enum Payload {
    Unit,
    Opened(String, u64),
    Report(SessionReport),
    Batch(WatchBatch),
    Heads(Vec<SessionHead>),
    Records(Vec<Record>),
    Bytes(Option<Vec<u8>>),
    Text(String),
    OpenedAll(Vec<Opened>),
    Pending(Vec<Pending>),
    Replay(Replay),
    /// Some numbers.
    Counts(Vec<u64>),
    /// The answer to a model call without a session.
    Completion(Box<Completion>),
    /// The next of such an answer, streamed.
    Pieces(Pieces),
}

/// A job for a thread.
pub(crate) struct SyncJob {
    pub(crate) ticket: u64,
    pub(crate) tool: u32,
    pub(crate) arguments: String,
    pub(crate) context: CallContext,
}

#[derive(Default)]
struct SyncQueue {
    jobs: VecDeque<SyncJob>,
    idle: usize,
    threads: usize,
    closed: bool,
}

/// Both queues.
pub(crate) struct Bridge {
    items: Mutex<Vec<Item>>,
    signal: OwnedFd,
    sync: Mutex<SyncQueue>,
    job_ready: Condvar,
    threads_max: usize,
    /// Tools that run in threads.
    sync_tools: Mutex<HashSet<u32>>,
    /// Calls of functions behind models, by id.
    models: Mutex<HashMap<u64, UnboundedSender<AdapterReport>>>,
    /// Ends of jobs that never began, for the engine.
    ended: Box<dyn Fn(Vec<HostResult>) + Send + Sync>,
}

impl Bridge {
    pub(crate) fn new(
        threads_max: usize,
        ended: Box<dyn Fn(Vec<HostResult>) + Send + Sync>,
    ) -> std::io::Result<Self> {
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            items: Mutex::new(Vec::new()),
            signal,
            sync: Mutex::new(SyncQueue::default()),
            job_ready: Condvar::new(),
            threads_max: threads_max.max(1),
            sync_tools: Mutex::new(HashSet::new()),
            models: Mutex::new(HashMap::new()),
            ended,
        })
    }

    /// The descriptor that is readable when there are items.
    pub(crate) fn fd(&self) -> RawFd {
        self.signal.as_raw_fd()
    }

    pub(crate) fn mark_sync(&self, tool: u32) {
        lock(&self.sync_tools).insert(tool);
    }

    pub(crate) fn push(&self, item: Item) {
        self.push_all(std::iter::once(item));
    }

    fn push_all(&self, new: impl IntoIterator<Item = Item>) {
        let mut items = lock(&self.items);
        let was_empty = items.is_empty();
        items.extend(new);
        if was_empty && !items.is_empty() {
            // The counter cannot overflow: it is reset by every drain and adds 1 per drain.
            let _ = rustix::io::write(&self.signal, &1_u64.to_ne_bytes());
        }
    }

    /// Takes all items.
    pub(crate) fn drain(&self) -> Vec<Item> {
        let mut counter = [0_u8; 8];
        let mut items = lock(&self.items);
        let _ = rustix::io::read(&self.signal, &mut counter);
        std::mem::take(&mut *items)
    }

    /// Waits for a job; none once the bridge is closed. Called by a thread that has let go of the
    /// interpreter.
    pub(crate) fn next_job(&self) -> Option<SyncJob> {
        let mut queue = lock(&self.sync);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                queue.threads -= 1;
                return None;
            }
            queue.idle += 1;
            queue = self.job_ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    /// Ends the waiting of all threads.
    pub(crate) fn close(&self) {
        lock(&self.sync).closed = true;
        self.job_ready.notify_all();
    }

    /// Queues a job for a thread; true if one more thread should be started for it.
    fn queue_job(&self, job: SyncJob) -> bool {
        let mut queue = lock(&self.sync);
        queue.jobs.push_back(job);
        let start = queue.jobs.len() > queue.idle && queue.threads < self.threads_max;
        if start {
            queue.threads += 1;
        }
        drop(queue);
        self.job_ready.notify_one();
        start
    }

    /// A reply that resolves a future; a reply that is dropped unused resolves it with an error,
    /// so that nobody waits for ever.
    pub(crate) fn reply<T: 'static>(
        self: &std::sync::Arc<Self>,
        handle: u64,
        convert: impl FnOnce(T) -> Payload + Send + 'static,
    ) -> Reply<T> {
        let mut guard = ReplyGuard { bridge: std::sync::Arc::clone(self), handle, used: false };
        Box::new(move |result: Result<T, Failure>| {
            guard.used = true;
            let result = result.map(convert);
            guard.bridge.push(Item::Resolve { handle, result });
        })
    }
}

impl Bridge {
    /// Passes on what one call of a function behind a model said.
    pub(crate) fn model_said(&self, id: u64, report: AdapterReport) {
        let mut waiting = lock(&self.models);
        if matches!(report, AdapterReport::Delta(_)) {
            if let Some(reports) = waiting.get(&id) {
                // Whoever asked may be gone: then it has told so, and the function is being stopped.
                let _ = reports.send(report);
            }
        } else if let Some(reports) = waiting.remove(&id) {
            let _ = reports.send(report);
        }
    }
}

impl ModelHost for Bridge {
    fn ask(&self, call: AdapterCall) {
        lock(&self.models).insert(call.id, call.reports);
        self.push(Item::Model { id: call.id, model: call.model, body: call.body });
    }

    fn give_up(&self, id: u64) {
        if lock(&self.models).remove(&id).is_some() {
            self.push(Item::Cancel { ticket: id });
        }
    }
}

struct ReplyGuard {
    bridge: std::sync::Arc<Bridge>,
    handle: u64,
    used: bool,
}

impl Drop for ReplyGuard {
    fn drop(&mut self) {
        if !self.used {
            let error =
                Failure::new(ErrorCode::ENGINE_CLOSED, "the engine ended before it answered");
            self.bridge.push(Item::Resolve { handle: self.handle, result: Err(error) });
        }
    }
}

impl Host for Bridge {
    fn run(&self, calls: Vec<HostCall>) {
        let mut items = Vec::with_capacity(calls.len());
        for HostCall { ticket, job } in calls {
            let ticket = ticket.0;
            match job {
                HostJob::Tool { tool, arguments, context } => {
                    if lock(&self.sync_tools).contains(&tool) {
                        let job = SyncJob { ticket, tool, arguments, context };
                        if self.queue_job(job) {
                            items.push(Item::StartThread);
                        }
                    } else {
                        items.push(Item::Tool { ticket, tool, arguments, context });
                    }
                }
                HostJob::Policy { tool, arguments, context } => {
                    items.push(Item::Policy { ticket, tool, arguments, context });
                }
                HostJob::Reconcile { tool, arguments, context } => {
                    items.push(Item::Reconcile { ticket, tool, arguments, context });
                }
                HostJob::Verify { verifier, answer } => {
                    items.push(Item::Verify { ticket, verifier, answer });
                }
            }
        }
        self.push_all(items);
    }

    fn cancel(&self, tickets: Vec<Ticket>) {
        let mut never_began = Vec::new();
        let mut items = Vec::new();
        for ticket in tickets {
            let mut queue = lock(&self.sync);
            let waiting = queue.jobs.iter().position(|job| job.ticket == ticket.0);
            match waiting {
                Some(at) => {
                    queue.jobs.remove(at);
                    never_began.push(HostResult { ticket, outcome: HostOutcome::Cancelled });
                }
                None => items.push(Item::Cancel { ticket: ticket.0 }),
            }
        }
        self.push_all(items);
        if !never_began.is_empty() {
            (self.ended)(never_began);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
