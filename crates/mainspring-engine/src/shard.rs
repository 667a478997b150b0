//! A shard: one thread, one mailbox, many sessions.
//!
//! Letters are taken in batches. Each puts facts into the mailboxes of sessions; then every
//! session touched decides all its facts at once and hands the events to the journal. When the
//! journal says that they are durable, their commands are carried out (`dispatch.rs`). So three
//! tools that return together cost one append, and a slow disk makes larger batches, not queues.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mainspring_journal::{AckSink, Acked, Append, AppendMode, Journal, SessionStatus};
use mainspring_mcp::McpBroker;
use mainspring_session::{BlobHash, Command, ErrorCode, Event, Fact, Failure, Seq, SessionId};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;

use crate::budgets::{Budgets, charged_before};
use crate::cache::CacheMemory;
use crate::claims::Claiming;
use crate::decisions;
use crate::dispatch::{self, Job};
use crate::drain::Draining;
use crate::engine::EngineLimits;
use crate::follow::Followed;
use crate::host::{HostCall, SharedHost, Ticket};
use crate::live::{Decided, Key, Letter, Live, Pending, key_of};
use crate::loader::{self, Loader};
use crate::mail::{DecideRequest, Mail, Opened, Reply};
use crate::outcome::SessionReport;
use crate::ports::{SharedClock, SharedModels};
use crate::timers::{Timer, Timers};
use crate::watch::WatchBatch;

/// What a shard is made with.
pub(crate) struct ShardConfig {
    pub(crate) index: u8,
    pub(crate) host: SharedHost,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) models: SharedModels,
    pub(crate) clock: SharedClock,
    /// None where there are no MCP servers, as in a simulation.
    pub(crate) broker: Option<McpBroker>,
    pub(crate) loader: Loader,
    pub(crate) budgets: Budgets,
    pub(crate) limits: EngineLimits,
    pub(crate) post: UnboundedSender<Mail>,
    /// The mailboxes of all shards, this one's included, in their order.
    pub(crate) peers: Arc<OnceLock<Vec<UnboundedSender<Mail>>>>,
    /// Whether a shard of this engine claims sessions.
    pub(crate) claims: Arc<AtomicBool>,
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
    /// Who waits for sessions that are not alive here but go on or will.
    pub(crate) followed: BTreeMap<SessionId, Vec<Followed>>,
    /// Whether a look at them is due or under way.
    pub(crate) follow_due: bool,
    /// What is remembered of sessions' last model calls between their turns.
    pub(crate) caches: CacheMemory,
    /// Decisions about sessions that are being read or decided about.
    pub(crate) deferred: HashMap<SessionId, Vec<(DecideRequest, Reply<()>)>>,
    /// What waits for the lease to be certain again.
    pub(crate) paused: Vec<(Key, Command)>,
    pub(crate) claiming: Option<Claiming>,
    pub(crate) draining: Option<Draining>,
    /// Sessions to let go of in the store.
    pub(crate) releasing: Vec<SessionId>,
    /// Those that could not be let go of yet, and are tried again.
    unreleased: Vec<SessionId>,
    /// Sessions that were dropped while an append was under way, by its token: it may have made
    /// this process their owner.
    unsettled: HashMap<u64, SessionId>,
    next_key: Key,
    pub(crate) jobs: HashMap<u64, Job>,
    next_job: u64,
    pub(crate) timers: Timers,
    touched: Vec<Key>,
    pub(crate) host_calls: Vec<HostCall>,
    pub(crate) host_cancels: Vec<Ticket>,
    closing: bool,
    /// The tenure that was seen last.
    tenure: u64,
}

const BATCH_MAX: usize = 1024;
const ABANDONED_MAX: usize = 1024;
/// How soon a session that could not be let go of is tried again.
const RELEASE_AGAIN: Duration = Duration::from_millis(500);

impl Shard {
    pub(crate) fn new(config: ShardConfig) -> Self {
        let sink = Arc::new(Sink(config.post.clone()));
        let tenure = config.journal.tenure();
        Self {
            sink,
            keys: HashMap::new(),
            lives: HashMap::new(),
            loading: HashSet::new(),
            abandoned: VecDeque::new(),
            followed: BTreeMap::new(),
            follow_due: false,
            caches: CacheMemory::default(),
            deferred: HashMap::new(),
            paused: Vec::new(),
            claiming: None,
            draining: None,
            releasing: Vec::new(),
            unreleased: Vec::new(),
            unsettled: HashMap::new(),
            next_key: 0,
            jobs: HashMap::new(),
            next_job: 0,
            timers: Timers::default(),
            touched: Vec::new(),
            host_calls: Vec::new(),
            host_cancels: Vec::new(),
            closing: false,
            tenure,
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
            self.drop_lost();
            self.fire_timers();
            self.process_touched();
            self.flush_host();
            self.flush_releases();
            self.report_drain();
        }
        self.close_all();
    }

    /// Drops what was taken in an earlier tenure, also where nothing is done that would show that
    /// it is lost: somebody may wait for it here.
    fn drop_lost(&mut self) {
        let tenure = self.config.journal.tenure();
        if tenure == self.tenure {
            return;
        }
        self.tenure = tenure;
        for key in self.all_keys() {
            if self.lives.get(&key).is_some_and(|live| live.tenure != tenure) {
                self.lose(key, &dispatch::lease_lost());
            }
        }
    }

    /// Now, in microseconds since the epoch.
    pub(crate) fn now_us(&self) -> i64 {
        self.config.clock.now_us()
    }

    pub(crate) fn add(&mut self, mut live: Live) -> Key {
        live.cache = self.caches.take(&live.id);
        self.abandoned.retain(|(id, _)| *id != live.id);
        self.next_key += 1;
        let id = live.id.clone();
        self.keys.insert(id.clone(), self.next_key);
        self.lives.insert(self.next_key, live);
        self.follow_here(&id);
        self.next_key
    }

    /// The sessions that are alive, the one that came first first.
    pub(crate) fn all_keys(&self) -> Vec<Key> {
        let mut keys: Vec<Key> = self.lives.keys().copied().collect();
        keys.sort_unstable();
        keys
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
                    let not_before_us = until_us;
                    self.tell(key, Letter { fact: Fact::TimerFired, not_before_us, reply: None });
                }
                Timer::Job(number) => self.job_timed_out(Ticket(number)),
                Timer::Turn(key, turn) => {
                    let live = self.lives.get_mut(&key).filter(|live| live.turn == turn);
                    if let Some(live) = live {
                        live.turn_ends = None;
                        self.tell(key, Fact::TurnTimedOut);
                    }
                }
                Timer::Hold => self.retry_paused(),
                Timer::Claim => self.claim_more(),
                Timer::Follow => self.look_after_followed(),
                Timer::Drain => self.end_drain(),
                Timer::Release => self.releasing.append(&mut self.unreleased),
            }
        }
        let (jobs, lives) = (&self.jobs, &self.lives);
        self.timers.compact(|timer| match timer {
            Timer::Wake(key, _) => lives.contains_key(key),
            Timer::Job(number) => jobs.contains_key(number),
            Timer::Turn(key, turn) => lives.get(key).is_some_and(|live| live.turn == *turn),
            Timer::Hold | Timer::Claim | Timer::Follow | Timer::Drain | Timer::Release => true,
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
        let charged = charged_before(live);
        let decided = live.decide_all(at_us);
        for refused in &decided.refused {
            tracing::debug!(session = %live.id, %refused, "a fact was refused");
        }
        decided.stale.into_iter().for_each(|reply| reply(Err(decisions::used(&live.id))));
        let decided = Decided { stale: Vec::new(), ..decided };
        if decided.begins_turn {
            let budget_ms = live.state.spending.ms_left(at_us).unwrap_or(u64::MAX);
            let after = Duration::from_millis(live.agent.spec.limits.turn_ms_max.min(budget_ms));
            let ends = Instant::now() + after;
            live.turn_ends = Some(ends);
            self.timers.set(ends, Timer::Turn(key, live.turn));
        }
        if decided.events.is_empty() {
            if !live.state.is_open() {
                // The turn had ended when the wish to cancel it came up.
                live.cancelling.drain(..).for_each(|reply| reply(Ok(())));
            }
            self.end_if_over(key);
            return;
        }
        let budgets = &self.config.budgets;
        budgets.note_lost(live, &decided.events, at_us);
        let charges = budgets.charges(live, charged, at_us);
        let limits = &self.config.limits;
        let append = make_append(live, decided, (first, at_us), key, limits, &self.sink);
        if let Some(pending) = &mut live.pending {
            pending.charges.clone_from(&charges);
        }
        self.config.journal.append(Append { charges, ..append });
    }

    /// Takes the journal's word that appends are durable, or not.
    pub(crate) fn appended(&mut self, acks: Vec<Acked>) {
        for ack in acks {
            let key = key_of(ack.token);
            let pending = self.lives.get(&key).and_then(|live| live.pending.as_ref());
            if pending.is_none_or(|pending| pending.token != ack.token) {
                // The session was dropped meanwhile, or this has been heard before.
                if let (Some(id), Ok(())) = (self.unsettled.remove(&ack.token), &ack.result) {
                    self.releasing.push(id);
                }
                continue;
            }
            match ack.result {
                Ok(()) => self.guarded(key, |shard| shard.durable(key)),
                Err(error) => {
                    self.lose(key, &error.failure());
                    self.unsettled.remove(&ack.token);
                }
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
        live.settle_weights(true);
        live.decided_us = pending.at_us;
        live.covered = pending.covered.unwrap_or(live.covered);
        live.released = pending.release;
        self.config.budgets.committed(&pending.charges);
        publish(live, &pending);
        pending.replies.into_iter().for_each(|reply| reply(Ok(())));
        for (from, reply) in live.opening.drain(..) {
            let agent = live.agent.spec.name.clone();
            reply(Ok(Opened { session: live.id.clone(), agent, from }));
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
        if let Some(live) = self.lives.get_mut(&key) {
            live.wait_us_max = u64::MAX;
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
        let Some(mut live) = self.lives.remove(&key) else { return };
        self.keys.remove(&live.id);
        self.config.budgets.close(&live);
        self.caches.keep(&live.id, std::mem::take(&mut live.cache));
        self.count_drained(&live);
        for number in live.jobs.drain(..) {
            self.jobs.remove(&number);
        }
        let ended = !live.state.is_open();
        for (from, reply) in live.watch.flush(live.durable, ended) {
            self.read_events(&live.id, from, reply);
        }
        for reply in live.cancelling.drain(..) {
            reply(Ok(()));
        }
        if !ended {
            if !live.released {
                self.releasing.push(live.id.clone());
            }
            self.follow_elsewhere(&mut live);
        }
    }

    /// Drops a session that cannot go on here, and tells everybody who waits for it why.
    pub(crate) fn abandon(&mut self, key: Key, error: &Failure) {
        let Some(mut live) = self.lives.remove(&key) else {
            return;
        };
        self.keys.remove(&live.id);
        self.config.budgets.close(&live);
        live.settle_weights(false);
        self.stop_work(&mut live);
        for number in live.jobs.drain(..) {
            self.jobs.remove(&number);
        }
        live.opening.drain(..).for_each(|(_, reply)| reply(Err(error.clone())));
        live.waiting.drain(..).for_each(|reply| reply(Err(error.clone())));
        live.cancelling.drain(..).for_each(|reply| reply(Err(error.clone())));
        if let Some(pending) = &live.pending {
            self.unsettled.insert(pending.token, live.id.clone());
        }
        let letters = live.inbox.drain(..).filter_map(|letter| letter.reply);
        let pending = live.pending.take().map(|pending| pending.replies).unwrap_or_default();
        letters.chain(pending).for_each(|reply| reply(Err(error.clone())));
        let watching = live.watch.take_waiting();
        watching.into_iter().for_each(|(_, reply)| reply(Err(error.clone())));
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

    fn flush_releases(&mut self) {
        if self.releasing.is_empty() {
            return;
        }
        let all = std::mem::take(&mut self.releasing);
        // What has come alive here again meanwhile is let go of when it is not alive. A turn that has
        // ended here is not the one that was to be let go of.
        let runs = |key: &Key| !self.is_between_turns(*key);
        let here =
            |id: &SessionId| self.keys.get(id).is_some_and(runs) || self.loading.contains(id);
        let (here, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(here);
        self.release_later(here);
        if gone.is_empty() {
            return;
        }
        let post = self.config.post.clone();
        self.config.loader.run(move |journal| {
            if let Err(error) = journal.release(&gone) {
                tracing::warn!(%error, "sessions could not be released, this is tried again");
                let _ = post.send(Mail::Unreleased(gone));
            }
        });
    }

    /// Lets go of sessions in a while: this process holds none for long that it does not run, or
    /// nobody would run them as long as it lives.
    pub(crate) fn release_later(&mut self, sessions: Vec<SessionId>) {
        if self.unreleased.is_empty() && !sessions.is_empty() {
            self.timers.set(Instant::now() + RELEASE_AGAIN, Timer::Release);
        }
        for session in sessions {
            if !self.unreleased.contains(&session) {
                self.unreleased.push(session);
            }
        }
    }

    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    fn close_all(&mut self) {
        let error = Failure::new(ErrorCode::ENGINE_CLOSED, "the engine was closed")
            .with_hint("the session's log is kept: resume it with another engine");
        for key in self.all_keys() {
            self.abandon(key, &error);
        }
        self.fail_followed(&error);
        self.flush_host();
    }
}

/// What goes to the journal for what was decided; keeps in the session what follows from it.
fn make_append(
    live: &mut Live,
    decided: Decided,
    (first, at_us): (Seq, i64),
    key: Key,
    limits: &EngineLimits,
    sink: &Arc<dyn AckSink>,
) -> Append {
    let (lines, count) = encode(&decided.events);
    let ends = decided.commands.contains(&Command::Finish);
    let asks = decided
        .commands
        .iter()
        .any(|command| matches!(command, Command::AskPolicy { .. } | Command::Reconcile { .. }));
    let status = live.status(asks);
    let idle = live.jobs.is_empty() && status == SessionStatus::Waiting;
    let release = live.state.held || idle;
    let (snapshot, covered) = live.due_snapshot(limits).unzip();
    let token = live.next_token(key);
    live.pending = Some(Pending {
        token,
        commands: decided.commands,
        first,
        at_us,
        count,
        lines: lines.clone(),
        report: ends.then(|| SessionReport::of(&live.id, &live.state)),
        replies: decided.replies,
        covered,
        charges: Vec::new(),
        release,
    });
    let mode = std::mem::replace(&mut live.mode, AppendMode::Continue);
    let blobs = match mode {
        AppendMode::Continue => Vec::new(),
        _ => blobs_of(live),
    };
    Append {
        session: live.id.clone(),
        epoch: live.state.epoch,
        expected_seq: first,
        events: lines,
        count,
        at_us,
        mode,
        status,
        blobs,
        snapshot,
        charges: Vec::new(),
        release,
        token,
        sink: Arc::clone(sink),
    }
}

/// What a new owner stores beside its events: the agent's spec, and its weights once.
fn blobs_of(live: &mut Live) -> Vec<(BlobHash, Arc<[u8]>)> {
    let spec = (live.agent.fingerprint.clone(), Arc::clone(&live.agent.spec_json));
    let weights = live.agent.weights.take();
    live.stores_weights = weights.is_some();
    std::iter::once(spec).chain(weights).collect()
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

pub(crate) fn encode(events: &[Event]) -> (Vec<u8>, u32) {
    let mut lines = Vec::with_capacity(events.len() * 160);
    for event in events {
        if !lines.is_empty() {
            lines.push(b'\n');
        }
        event.write_json(&mut lines);
    }
    (lines, u32::try_from(events.len()).expect("one decision makes few events"))
}
