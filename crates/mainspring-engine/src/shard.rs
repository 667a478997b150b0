//! A shard: one thread, one mailbox, many sessions.
//!
//! Letters are taken in batches. Each puts facts into the mailboxes of sessions; then every
//! session touched decides all its facts at once and hands the events to the journal. When the
//! journal says that they are durable, their commands are carried out (`dispatch.rs`). So three
//! tools that return together cost one append, and a slow disk makes larger batches, not queues.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mainspring_journal::{AckSink, Acked, Append, AppendMode, Journal};
use mainspring_mcp::McpBroker;
use mainspring_models::ModelClient;
use mainspring_session::{Command, ErrorCode, Event, Fact, Failure, Seq, SessionId};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;

use crate::dispatch::Job;
use crate::engine::EngineLimits;
use crate::host::{HostCall, SharedHost, Ticket};
use crate::live::{Key, Letter, Live, Pending};
use crate::loader::{self, Loader};
use crate::mail::{Mail, Opened, Reply};
use crate::outcome::SessionReport;
use crate::timers::{Timer, Timers};
use crate::watch::WatchBatch;

/// What a shard is made with.
pub(crate) struct ShardConfig {
    pub(crate) index: u8,
    pub(crate) host: SharedHost,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) client: ModelClient,
    pub(crate) broker: McpBroker,
    pub(crate) loader: Loader,
    pub(crate) limits: EngineLimits,
    pub(crate) post: UnboundedSender<Mail>,
}

/// Forwards a journal's acknowledgements to a shard's mailbox.
struct Sink(UnboundedSender<Mail>);

impl AckSink for Sink {
    fn acked(&self, acks: Vec<Acked>) {
        // A shard that has ended needs no acknowledgement.
        let _ = self.0.send(Mail::Appended(acks));
    }
}

/// The state of the thread.
pub(crate) struct Shard {
    pub(crate) config: ShardConfig,
    sink: Arc<dyn AckSink>,
    pub(crate) keys: HashMap<SessionId, Key>,
    pub(crate) lives: HashMap<Key, Live>,
    /// Sessions that are being read from the journal.
    pub(crate) loading: HashSet<SessionId>,
    /// Why sessions were dropped, for those who ask later; the oldest is forgotten first.
    pub(crate) abandoned: VecDeque<(SessionId, Failure)>,
    next_key: Key,
    pub(crate) jobs: HashMap<u64, Job>,
    next_job: u64,
    pub(crate) timers: Timers,
    touched: Vec<Key>,
    pub(crate) host_calls: Vec<HostCall>,
    pub(crate) host_cancels: Vec<Ticket>,
    random: u64,
    closing: bool,
}

const BATCH_MAX: usize = 1024;
const ABANDONED_MAX: usize = 1024;

impl Shard {
    pub(crate) fn new(config: ShardConfig) -> Self {
        let sink = Arc::new(Sink(config.post.clone()));
        Self {
            sink,
            keys: HashMap::new(),
            lives: HashMap::new(),
            loading: HashSet::new(),
            abandoned: VecDeque::new(),
            next_key: 0,
            jobs: HashMap::new(),
            next_job: 0,
            timers: Timers::default(),
            touched: Vec::new(),
            host_calls: Vec::new(),
            host_cancels: Vec::new(),
            random: first_random(),
            closing: false,
            config,
        }
    }

    /// Runs until told to close.
    pub(crate) async fn run(mut self, mut inbox: UnboundedReceiver<Mail>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while !self.closing {
            let far = Instant::now() + Duration::from_secs(3600);
            let wake = self.timers.next().unwrap_or(far);
            tokio::select! {
                biased;
                count = inbox.recv_many(&mut batch, BATCH_MAX) => {
                    if count == 0 {
                        break;
                    }
                    for mail in batch.drain(..) {
                        self.handle(mail);
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
            }
            self.fire_timers();
            self.process_touched();
            self.flush_host();
        }
        self.close_all();
    }

    /// Now, in microseconds since the epoch.
    pub(crate) fn now_us(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    pub(crate) fn add(&mut self, live: Live) -> Key {
        self.abandoned.retain(|(id, _)| *id != live.id);
        self.next_key += 1;
        self.keys.insert(live.id.clone(), self.next_key);
        self.lives.insert(self.next_key, live);
        self.next_key
    }

    pub(crate) fn next_ticket(&mut self) -> Ticket {
        self.next_job += 1;
        Ticket::new(self.config.index, self.next_job)
    }

    /// Puts a fact into a session's mailbox.
    pub(crate) fn tell(&mut self, key: Key, letter: impl Into<Letter>) {
        if let Some(live) = self.lives.get_mut(&key) {
            live.inbox.push_back(letter.into());
            self.touched.push(key);
        }
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        while let Some(timer) = self.timers.due(now) {
            match timer {
                Timer::Wake(key, until_us) => {
                    self.tell(key, Letter { fact: Fact::TimerFired, not_before_us: until_us });
                }
                Timer::Job(number) => self.job_timed_out(Ticket(number)),
                Timer::Turn(key, turn) => {
                    if self.lives.get(&key).is_some_and(|live| live.turn == turn) {
                        self.tell(key, Fact::TurnTimedOut);
                    }
                }
            }
        }
        let (jobs, lives) = (&self.jobs, &self.lives);
        self.timers.compact(|timer| match timer {
            Timer::Wake(key, _) => lives.contains_key(key),
            Timer::Job(number) => jobs.contains_key(number),
            Timer::Turn(key, turn) => lives.get(key).is_some_and(|live| live.turn == *turn),
        });
    }

    fn process_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for key in touched.drain(..) {
            self.guarded(key, |shard| shard.process(key));
        }
        self.touched = touched;
    }

    /// Runs a session's own work; a panic in it ends the session, never the process.
    pub(crate) fn guarded(&mut self, key: Key, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_ok() {
            return;
        }
        let message = "a broken invariant stopped the session; its log is as it was";
        self.abandon(key, &Failure::new(ErrorCode::INTERNAL, message));
    }

    /// Decides a session's facts and hands the events to the journal.
    fn process(&mut self, key: Key) {
        let at_us = self.now_us();
        let Some(live) = self.lives.get_mut(&key) else {
            return;
        };
        if live.pending.is_some() || live.inbox.is_empty() {
            return;
        }
        let first = live.state.next_seq;
        let decided = live.decide_all(at_us, || xorshift(&mut self.random));
        for refused in &decided.refused {
            tracing::debug!(session = %live.id, %refused, "a fact was refused");
        }
        if decided.begins_turn {
            let after = Duration::from_millis(live.agent.spec.limits.turn_ms_max);
            self.timers.set(Instant::now() + after, Timer::Turn(key, live.turn));
        }
        if decided.events.is_empty() {
            self.end_if_over(key);
            return;
        }
        let (lines, count) = encode(&decided.events);
        let ends = decided.commands.contains(&Command::Finish);
        live.pending = Some(Pending {
            commands: decided.commands,
            first,
            at_us,
            count,
            lines: lines.clone(),
            report: ends.then(|| SessionReport::of(&live.id, &live.state)),
        });
        let mode = std::mem::replace(&mut live.mode, AppendMode::Continue);
        let blobs = match mode {
            AppendMode::Continue => Vec::new(),
            _ => vec![(live.agent.fingerprint.clone(), Arc::clone(&live.agent.spec_json))],
        };
        let append = Append {
            session: live.id.clone(),
            epoch: live.state.epoch,
            expected_seq: first,
            events: lines,
            count,
            at_us,
            mode,
            status: live.status(),
            blobs,
            token: key,
            sink: Arc::clone(&self.sink),
        };
        self.config.journal.append(append);
    }

    /// Takes the journal's word that appends are durable, or not.
    pub(crate) fn appended(&mut self, acks: Vec<Acked>) {
        for ack in acks {
            let key = ack.token;
            match ack.result {
                Ok(()) => self.guarded(key, |shard| shard.durable(key)),
                Err(error) => self.abandon(key, &error.failure()),
            }
        }
    }

    fn durable(&mut self, key: Key) {
        let Some(live) = self.lives.get_mut(&key) else {
            return;
        };
        let Some(pending) = live.pending.take() else {
            return;
        };
        live.durable = Seq(pending.first.0 + u64::from(pending.count));
        publish(live, &pending);
        for (from, reply) in live.opening.drain(..) {
            reply(Ok(Opened { session: live.id.clone(), from }));
        }
        if !live.inbox.is_empty() {
            self.touched.push(key);
        }
        if let Some(report) = pending.report {
            live.waiting.drain(..).for_each(|reply| reply(Ok(report.clone())));
            live.cancelling.drain(..).for_each(|reply| reply(Ok(())));
            live.report = Some(report);
        }
        let (id, ended) = (live.id.clone(), live.report.is_some());
        for (from, reply) in live.watch.flush(live.durable, ended) {
            self.read_events(&id, from, reply);
        }
        for command in pending.commands {
            self.carry_out(key, command);
        }
        self.end_if_over(key);
    }

    /// Answers a watcher from the journal; more may come.
    pub(crate) fn read_events(&self, id: &SessionId, from: Seq, reply: Reply<WatchBatch>) {
        let id = id.clone();
        self.config.loader.run(move |journal| reply(loader::watch(journal, &id, from, true)));
    }

    /// Forgets a session that has nothing left to do; its log is all there is to keep.
    pub(crate) fn end_if_over(&mut self, key: Key) {
        if self.lives.get(&key).is_none_or(|live| !live.is_over()) {
            return;
        }
        if let Some(mut live) = self.lives.remove(&key) {
            self.keys.remove(&live.id);
            for (from, reply) in live.watch.flush(live.durable, true) {
                self.read_events(&live.id, from, reply);
            }
            for reply in live.cancelling.drain(..) {
                reply(Ok(()));
            }
        }
    }

    /// Drops a session that cannot go on here, and tells everybody who waits for it why.
    pub(crate) fn abandon(&mut self, key: Key, error: &Failure) {
        let Some(mut live) = self.lives.remove(&key) else {
            return;
        };
        self.keys.remove(&live.id);
        self.stop_work(&mut live);
        for number in live.jobs.drain(..) {
            self.jobs.remove(&number);
        }
        live.opening.drain(..).for_each(|(_, reply)| reply(Err(error.clone())));
        live.waiting.drain(..).for_each(|reply| reply(Err(error.clone())));
        live.cancelling.drain(..).for_each(|reply| reply(Err(error.clone())));
        live.watch.take_waiting().for_each(|reply| reply(Err(error.clone())));
        if self.abandoned.len() == ABANDONED_MAX {
            self.abandoned.pop_front();
        }
        self.abandoned.push_back((live.id, error.clone()));
    }

    fn flush_host(&mut self) {
        if !self.host_calls.is_empty() {
            self.config.host.run(std::mem::take(&mut self.host_calls));
        }
        if !self.host_cancels.is_empty() {
            self.config.host.cancel(std::mem::take(&mut self.host_cancels));
        }
    }

    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    fn close_all(&mut self) {
        let error = Failure::new(ErrorCode::ENGINE_CLOSED, "the engine was closed")
            .with_hint("the session's log is kept: resume it with another engine");
        let keys: Vec<_> = self.lives.keys().copied().collect();
        for key in keys {
            self.abandon(key, &error);
        }
        self.flush_host();
    }
}

fn publish(live: &mut Live, pending: &Pending) {
    if !live.watched.get() {
        return;
    }
    let lines = pending.lines.split(|byte| *byte == b'\n');
    for (seq, line) in (pending.first.0..).zip(lines) {
        let json = std::str::from_utf8(line).expect("serde_json writes UTF-8");
        live.watch.event(Seq(seq), pending.at_us, json);
    }
}

fn encode(events: &[Event]) -> (Vec<u8>, u32) {
    let mut lines = Vec::with_capacity(events.len() * 160);
    for event in events {
        if !lines.is_empty() {
            lines.push(b'\n');
        }
        event.write_json(&mut lines);
    }
    (lines, u32::try_from(events.len()).expect("one decision makes few events"))
}

/// A number that differs from process to process, never zero.
fn first_random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() | 1
}

/// The next number of Marsaglia's xorshift64, good enough to spread retries.
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 11
}
