//! What a shard does with a letter: requests from outside, and the ends of what it has begun.

use std::sync::Arc;

use mainspring_journal::AppendMode;
use mainspring_session::{
    AgentSpec, CallIndex, Epoch, ErrorCode, Fact, Failure, ForkEdit, Funding, Part, Phase, Seq,
    SessionId,
};

use crate::agent::Agent;
use crate::follow::Followed;
use crate::live::{Key, Live};
use crate::loader::{self, Folded, Loaded};
use crate::mail::{
    DecideRequest, Decision, ForkRequest, Mail, OnChange, Opened, Payment, Reply, ResumeRequest,
    StartRequest,
};
use crate::outcome::SessionReport;
use crate::shard::Shard;
use crate::watch::{Lookup, WatchBatch};

impl Shard {
    pub(crate) fn handle(&mut self, mail: Mail) {
        match mail {
            Mail::Start(id, request, reply) => self.start(id, request, reply),
            Mail::Resume(request, reply) => self.resume(request, reply),
            Mail::Fork(id, request, reply) => self.fork(id, request, reply),
            Mail::Loaded(id, loaded) => self.loaded(id, *loaded),
            Mail::Decide(request, reply) => self.decide(request, reply),
            Mail::Decided(request, reply, result) => self.decided(request, reply, result),
            Mail::Claim(request, reply) => self.claim(request, reply),
            Mail::Claimed(claimed, reply) => self.claimed(claimed, reply),
            Mail::Found(id, head, who) => self.found(id, head, who),
            Mail::Heads(heads) => self.looked_after(heads),
            Mail::Unreleased(sessions) => self.release_later(sessions),
            Mail::Drain(deadline, reply) => self.drain(deadline, reply),
            Mail::Cancel(id, reason, reply) => self.cancel(&id, reason, reply),
            Mail::Wait(id, reply) => self.wait(id, reply),
            Mail::Watch(id, from, reply) => self.watch(id, from, reply),
            Mail::Appended(acks) => self.appended(acks),
            Mail::Model { key, step, attempt, result } => {
                self.guarded(key, |shard| shard.model_ended(key, step, attempt, result));
            }
            Mail::Summary { key, step, result } => {
                self.guarded(key, |shard| shard.summary_ended(key, step, result));
            }
            Mail::Checked { key, step, check, finding } => {
                self.guarded(key, |shard| shard.check_ended(key, step, check, finding));
            }
            Mail::Delta { key, step, attempt, text } => {
                if let Some(live) = self.lives.get_mut(&key) {
                    live.watch.delta(step, attempt, &text);
                }
            }
            Mail::Host(results) => results.into_iter().for_each(|result| self.job_ended(result)),
            Mail::Close => self.close(),
        }
    }

    fn cancel(&mut self, id: &SessionId, reason: String, reply: Reply<()>) {
        match self.keys.get(id).copied() {
            Some(key) if !self.is_between_turns(key) => {
                if let Some(live) = self.lives.get_mut(&key) {
                    live.cancelling.push(reply);
                }
                self.tell(key, Fact::CancelRequested { reason });
            }
            Some(_) => reply(Err(not_running(id))),
            // One that waits for a person, or whose process is gone.
            None => {
                let (session, call, by, agent) = (id.clone(), CallIndex(0), None, None);
                let decision = Decision::Cancel(reason);
                self.decide(DecideRequest { session, call, decision, by, agent }, reply);
            }
        }
    }

    fn admit(&self, id: &SessionId) -> Result<(), Failure> {
        self.refuse_while_draining()?;
        if self.keys.contains_key(id) || self.loading.contains(id) {
            return Err(busy(id));
        }
        let (seen, allowed) =
            (self.lives.len() + self.loading.len(), self.config.limits.sessions_max);
        if seen >= allowed {
            let message = format!("{seen} sessions are running here, limit {allowed}");
            return Err(Failure::new(ErrorCode::ENGINE_OVERLOADED, message)
                .with_hint("try again when some have ended, or raise sessions_max of the Engine"));
        }
        Ok(())
    }

    fn start(&mut self, id: SessionId, request: StartRequest, reply: Reply<Opened>) {
        if let Err(error) = check_size(&request) {
            return reply(Err(error));
        }
        let between = self.keys.get(&id).copied().filter(|key| self.is_between_turns(*key));
        if let (Some(key), Ok(())) = (between, self.refuse_while_draining()) {
            return self.begin_next(key, request, reply);
        }
        if let Err(error) = self.admit(&id) {
            return reply(Err(error));
        }
        if request.session.is_none() {
            return self.begin(id, request, reply, None);
        }
        self.loading.insert(id.clone());
        let post = self.config.post.clone();
        self.config.loader.run(move |journal| {
            let state = loader::find_state(journal, &id);
            let loaded = Box::new(Loaded::Start(request, reply, state));
            let _ = post.send(Mail::Loaded(id, loaded));
        });
    }

    /// Whether a session is still here although its turn has ended: a job outlived it.
    pub(crate) fn is_between_turns(&self, key: Key) -> bool {
        self.lives.get(&key).is_some_and(|live| {
            !live.state.is_open() && live.pending.is_none() && live.inbox.is_empty()
        })
    }

    /// Begins the next turn of a session that is still here.
    fn begin_next(&mut self, key: Key, request: StartRequest, reply: Reply<Opened>) {
        let Some(live) = self.lives.get(&key) else { return };
        let before = Some(&live.state.spending.funding);
        let funding = match self.fund(&request.agent, request.payment, before) {
            Ok(funding) => funding,
            Err(error) => return reply(Err(error)),
        };
        let Some(live) = self.lives.get_mut(&key) else { return };
        let epoch = Epoch(live.state.epoch.0 + 1);
        let fingerprint = request.agent.fingerprint.clone();
        live.opening.push((live.state.next_seq, reply));
        live.agent = request.agent;
        live.mode = AppendMode::TakeOver;
        live.tenure = self.config.journal.tenure();
        let store = self.config.journal.identity().to_owned();
        let held = request.submit;
        self.tell(key, Fact::Reopened { epoch, fingerprint, store, held });
        if let Some(funding) = funding {
            self.tell(key, Fact::Funded { funding });
        }
        let (content, step_class) = (request.content, request.step_class);
        self.tell(key, Fact::Input { content, step_class });
    }

    fn fork(&mut self, id: SessionId, request: ForkRequest, reply: Reply<Opened>) {
        if let Err(error) = self.admit(&id) {
            return reply(Err(error));
        }
        self.loading.insert(id.clone());
        let post = self.config.post.clone();
        self.config.loader.run(move |journal| {
            let parent = loader::for_fork(journal, &request);
            let loaded = Box::new(Loaded::Fork(request, reply, parent));
            let _ = post.send(Mail::Loaded(id, loaded));
        });
    }

    pub(crate) fn resume(&mut self, request: ResumeRequest, reply: Reply<Opened>) {
        let id = request.session.clone();
        // One that is alive here may have been taken over elsewhere since: the journal knows.
        let admitted = match self.keys.contains_key(&id) && !self.loading.contains(&id) {
            true => self.refuse_while_draining(),
            false => self.admit(&id),
        };
        if let Err(error) = admitted {
            return reply(Err(error));
        }
        self.loading.insert(id.clone());
        let post = self.config.post.clone();
        self.config.loader.run(move |journal| {
            let with_spec = request.on_change == OnChange::Pin;
            let state = loader::for_resume(journal, &id, with_spec);
            let loaded = Box::new(Loaded::Resume(request, reply, state));
            let _ = post.send(Mail::Loaded(id, loaded));
        });
    }

    fn loaded(&mut self, id: SessionId, loaded: Loaded) {
        self.loading.remove(&id);
        let again = id.clone();
        match loaded {
            Loaded::Start(_, reply, Err(error))
            | Loaded::Resume(_, reply, Err(error))
            | Loaded::Fork(_, reply, Err(error)) => reply(Err(error)),
            Loaded::Start(_, reply, Ok(Some(folded))) if folded.state.is_open() => {
                reply(Err(busy(&id)
                    .with_hint("its turn was interrupted: resume it first (`mainspring resume`)")));
            }
            Loaded::Start(request, reply, Ok(folded)) => self.begin(id, request, reply, folded),
            Loaded::Resume(request, reply, Ok((folded, spec))) => {
                self.take_over(id, request, reply, folded, spec);
            }
            Loaded::Fork(request, reply, Ok((folded, edit))) => {
                self.branch_off(id, request, reply, folded, edit);
            }
        }
        self.decide_deferred(&again);
        self.look_up_unfollowed(&again);
    }

    /// Those who asked for a session while it was being read, when it did not come alive.
    pub(crate) fn look_up_unfollowed(&mut self, id: &SessionId) {
        if self.keys.contains_key(id) || self.loading.contains(id) {
            return;
        }
        for who in self.followed.remove(id).unwrap_or_default() {
            self.ask_elsewhere(id.clone(), who);
        }
    }

    /// Begins a turn, of a new session or of one that has been read.
    fn begin(
        &mut self,
        id: SessionId,
        request: StartRequest,
        reply: Reply<Opened>,
        folded: Option<Folded>,
    ) {
        let StartRequest { agent, content, origin, submit: held, payment, step_class, .. } =
            request;
        let before = folded.as_ref().map(|folded| &folded.state.spending.funding);
        let funding = match self.fund(&agent, payment, before) {
            Ok(funding) => funding,
            Err(error) => return reply(Err(error)),
        };
        let fingerprint = agent.fingerprint.clone();
        let store = self.config.journal.identity().to_owned();
        let (folded, mode, first) = match folded {
            None => {
                let agent = agent.spec.name.clone();
                let mode = AppendMode::Create { agent, origin: origin.clone() };
                let session = id.clone();
                let started = Fact::Started { session, origin, fingerprint, store, held };
                (Folded::default(), mode, started)
            }
            Some(folded) => {
                let epoch = Epoch(folded.state.epoch.0 + 1);
                let reopened = Fact::Reopened { epoch, fingerprint, store, held };
                (folded, AppendMode::TakeOver, reopened)
            }
        };
        let key = self.add_opening(id, agent, folded, mode, reply);
        self.tell(key, first);
        if let Some(funding) = funding {
            self.tell(key, Fact::Funded { funding });
        }
        self.tell(key, Fact::Input { content, step_class });
    }

    /// Who pays for a session from now on; none if nothing changes.
    fn fund(
        &self,
        agent: &Agent,
        payment: Payment,
        before: Option<&Funding>,
    ) -> Result<Option<Funding>, Failure> {
        let none = Funding::default();
        let before = before.unwrap_or(&none);
        let funding = payment.of(before)?;
        self.config.budgets.check(funding.as_ref().unwrap_or(before), &agent.spec)?;
        Ok(funding)
    }

    fn add_opening(
        &mut self,
        id: SessionId,
        agent: Arc<Agent>,
        folded: Folded,
        mode: AppendMode,
        reply: Reply<Opened>,
    ) -> Key {
        let from = folded.state.next_seq;
        let tenure = self.config.journal.tenure();
        let mut live = Live::new(id, agent, folded, mode, tenure);
        live.opening.push((from, reply));
        self.add(live)
    }

    fn take_over(
        &mut self,
        id: SessionId,
        request: ResumeRequest,
        reply: Reply<Opened>,
        folded: Folded,
        spec: Option<AgentSpec>,
    ) {
        let mut agent = request.agent;
        if let Some(key) = self.keys.get(&id).copied() {
            let here = self.lives.get(&key).map(|live| live.state.epoch);
            let elsewhere = here < Some(folded.state.epoch);
            if !elsewhere && (folded.state.is_open() || !self.is_between_turns(key)) {
                return reply(Err(busy(&id)));
            }
            if elsewhere {
                // What is still under way here is late for an owner that is gone.
                self.abandon(key, &busy(&id));
            }
        }
        if !folded.state.is_open() {
            let message =
                format!("session \"{id}\" has no turn to continue: its last one has ended");
            return reply(Err(Failure::new(ErrorCode::SESSION_NOT_OPEN, message)
                .with_hint(format!("`mainspring show {id}` shows it"))));
        }
        if folded.state.fingerprint.as_ref() != Some(&agent.fingerprint) {
            match changed_agent(&id, &agent, request.on_change, spec) {
                Ok(chosen) => agent = chosen,
                Err(error) => return reply(Err(error)),
            }
        }
        let epoch = Epoch(folded.state.epoch.0 + 1);
        let fingerprint = agent.fingerprint.clone();
        let store = self.config.journal.identity().to_owned();
        let key = self.add_opening(id, agent, folded, AppendMode::TakeOver, reply);
        self.tell(key, Fact::Reopened { epoch, fingerprint, store, held: false });
    }

    /// Begins a session with the first events of another.
    fn branch_off(
        &mut self,
        id: SessionId,
        request: ForkRequest,
        reply: Reply<Opened>,
        mut folded: Folded,
        edit: Option<ForkEdit>,
    ) {
        let ForkRequest { parent, agent, content, origin, payment, .. } = request;
        let funding = match self.fund(&agent, payment, Some(&folded.state.spending.funding)) {
            Ok(funding) => funding,
            Err(error) => return reply(Err(error)),
        };
        if folded.state.is_open() && content.is_some() {
            let message = format!("session \"{parent}\" has a turn under way where it is forked");
            return reply(Err(Failure::new(ErrorCode::AGENT_INVALID, message)
                .with_hint("leave the input out, or fork at the end of a turn")));
        }
        folded.covered.edited(edit.as_ref());
        let fingerprint = agent.fingerprint.clone();
        let store = self.config.journal.identity().to_owned();
        let name = agent.spec.name.clone();
        let mode = AppendMode::Fork { parent, agent: name, origin: origin.clone() };
        let key = self.add_opening(id.clone(), agent, folded, mode, reply);
        self.tell(key, Fact::Forked { session: id, origin, fingerprint, store, edit, funding });
        if let Some(content) = content {
            self.tell(key, Fact::Input { content, step_class: None });
        }
    }

    pub(crate) fn wait(&mut self, id: SessionId, reply: Reply<SessionReport>) {
        let live = self.keys.get(&id).and_then(|key| self.lives.get_mut(key));
        if let Some(live) = live {
            return match &live.report {
                Some(report) => reply(Ok(report.clone())),
                None => live.waiting.push(reply),
            };
        }
        if let Some((_, error)) = self.abandoned.iter().find(|(other, _)| *other == id) {
            return reply(Err(error.clone()));
        }
        self.ask_elsewhere(id, Followed::End(reply));
    }

    pub(crate) fn watch(&mut self, id: SessionId, from: Seq, reply: Reply<WatchBatch>) {
        let live = self.keys.get(&id).and_then(|key| self.lives.get_mut(key));
        let reply = match live {
            Some(live) => {
                if let (false, Phase::Calling(call)) = (live.watched.get(), &live.state.phase) {
                    let text = live.unwatched_text.take();
                    if !text.is_empty() {
                        live.watch.delta(call.step, call.attempt, &text);
                    }
                }
                live.watched.set(true);
                if live.report.is_some() && from >= live.durable {
                    return reply(Ok(WatchBatch { items: Vec::new(), ended: true }));
                }
                match live.watch.ask(from, live.durable, reply) {
                    Lookup::Ready(batch, reply) => return reply(Ok(batch)),
                    Lookup::Kept => return,
                    Lookup::Old(reply) => reply,
                }
            }
            None => return self.ask_elsewhere(id, Followed::Events(from, reply)),
        };
        self.read_events(&id, from, reply);
    }
}

/// Who goes on with a session whose agent has changed.
fn changed_agent(
    id: &SessionId,
    agent: &Arc<Agent>,
    on_change: OnChange,
    spec: Option<AgentSpec>,
) -> Result<Arc<Agent>, Failure> {
    match (on_change, spec) {
        (OnChange::Pin, Some(spec)) => agent.pinned(spec).map(Arc::new),
        (OnChange::Refuse, _) => {
            let name = &agent.spec.name;
            let message = format!("agent {name:?} is not the one session \"{id}\" runs");
            Err(Failure::new(ErrorCode::AGENT_CHANGED, message)
                .with_hint("resume it with the agent as it was, or allow the change"))
        }
        _ => Ok(Arc::clone(agent)),
    }
}

fn check_size(request: &StartRequest) -> Result<(), Failure> {
    let size = |part: &Part| match part {
        Part::Text { text } => text.len() as u64,
        Part::Image { url } => url.len() as u64,
    };
    let seen: u64 = request.content.iter().map(size).sum();
    let allowed = request.agent.spec.limits.input_bytes_max;
    if seen <= allowed {
        return Ok(());
    }
    let message = format!("the input has {seen} bytes, limit {allowed}");
    Err(Failure::new(ErrorCode::AGENT_INVALID, message)
        .with_hint("raise Limits.input_bytes_max, or let a tool read the text piece by piece"))
}

fn busy(id: &SessionId) -> Failure {
    Failure::new(ErrorCode::SESSION_BUSY, format!("session \"{id}\" is running a turn"))
        .with_hint("wait for its end, or use another session")
}

pub(crate) fn not_running(id: &SessionId) -> Failure {
    Failure::new(ErrorCode::SESSION_NOT_OPEN, format!("session \"{id}\" is not running here"))
}
