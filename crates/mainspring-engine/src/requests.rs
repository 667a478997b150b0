//! What a shard does with a letter: requests from outside, and the ends of what it has begun.

use mainspring_journal::AppendMode;
use mainspring_session::{Epoch, ErrorCode, Fact, Failure, Part, Phase, Seq, SessionId, State};

use crate::live::{Key, Live};
use crate::loader::{self, Loaded};
use crate::mail::{Mail, OnChange, Opened, Reply, ResumeRequest, StartRequest};
use crate::outcome::SessionReport;
use crate::shard::Shard;
use crate::watch::{Lookup, WatchBatch};

impl Shard {
    pub(crate) fn handle(&mut self, mail: Mail) {
        match mail {
            Mail::Start(id, request, reply) => self.start(id, request, reply),
            Mail::Resume(request, reply) => self.resume(request, reply),
            Mail::Loaded(id, loaded) => self.loaded(id, *loaded),
            Mail::Cancel(id, reason, reply) => self.cancel(&id, reason, reply),
            Mail::Wait(id, reply) => self.wait(id, reply),
            Mail::Watch(id, from, reply) => self.watch(id, from, reply),
            Mail::Appended(acks) => self.appended(acks),
            Mail::Model { key, step, attempt, result } => {
                self.guarded(key, |shard| shard.model_ended(key, step, attempt, result));
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
        let key = self.keys.get(id).copied().filter(|key| !self.is_between_turns(*key));
        let Some((key, live)) = key.and_then(|key| Some((key, self.lives.get_mut(&key)?))) else {
            return reply(Err(not_running(id)));
        };
        live.cancelling.push(reply);
        self.tell(key, Fact::CancelRequested { reason });
    }

    fn admit(&self, id: &SessionId) -> Result<(), Failure> {
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
        if let Some(key) = self.keys.get(&id).copied().filter(|key| self.is_between_turns(*key)) {
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
    fn is_between_turns(&self, key: Key) -> bool {
        self.lives.get(&key).is_some_and(|live| {
            !live.state.is_open() && live.pending.is_none() && live.inbox.is_empty()
        })
    }

    /// Begins the next turn of a session that is still here.
    fn begin_next(&mut self, key: Key, request: StartRequest, reply: Reply<Opened>) {
        let Some(live) = self.lives.get_mut(&key) else { return };
        let epoch = Epoch(live.state.epoch.0 + 1);
        let fingerprint = request.agent.fingerprint.clone();
        live.opening.push((live.state.next_seq, reply));
        live.agent = request.agent;
        live.mode = AppendMode::TakeOver;
        self.tell(key, Fact::Reopened { epoch, fingerprint });
        self.tell(key, Fact::Input { content: request.content });
    }

    fn resume(&mut self, request: ResumeRequest, reply: Reply<Opened>) {
        let id = request.session.clone();
        if let Err(error) = self.admit(&id) {
            return reply(Err(error));
        }
        self.loading.insert(id.clone());
        let post = self.config.post.clone();
        self.config.loader.run(move |journal| {
            let state = loader::find_state(journal, &id)
                .and_then(|state| state.ok_or_else(|| loader::not_found(&id)));
            let loaded = Box::new(Loaded::Resume(request, reply, state));
            let _ = post.send(Mail::Loaded(id, loaded));
        });
    }

    fn loaded(&mut self, id: SessionId, loaded: Loaded) {
        self.loading.remove(&id);
        match loaded {
            Loaded::Start(_, reply, Err(error)) | Loaded::Resume(_, reply, Err(error)) => {
                reply(Err(error));
            }
            Loaded::Start(_, reply, Ok(Some(state))) if state.is_open() => reply(Err(busy(&id)
                .with_hint("its turn was interrupted: resume it first (`mainspring resume`)"))),
            Loaded::Start(request, reply, Ok(state)) => self.begin(id, request, reply, state),
            Loaded::Resume(request, reply, Ok(state)) => self.take_over(id, request, reply, state),
        }
    }

    /// Begins a turn, of a new session or of one that has been read.
    fn begin(
        &mut self,
        id: SessionId,
        request: StartRequest,
        reply: Reply<Opened>,
        state: Option<State>,
    ) {
        let StartRequest { agent, content, origin, .. } = request;
        let fingerprint = agent.fingerprint.clone();
        let (state, mode, first) = match state {
            None => {
                let agent = agent.spec.name.clone();
                let mode = AppendMode::Create { agent, origin: origin.clone() };
                (State::default(), mode, Fact::Started { session: id.clone(), origin, fingerprint })
            }
            Some(state) => {
                let epoch = Epoch(state.epoch.0 + 1);
                (state, AppendMode::TakeOver, Fact::Reopened { epoch, fingerprint })
            }
        };
        let from = state.next_seq;
        let mut live = Live::new(id, agent, state, mode);
        live.opening.push((from, reply));
        let key = self.add(live);
        self.tell(key, first);
        self.tell(key, Fact::Input { content });
    }

    fn take_over(
        &mut self,
        id: SessionId,
        request: ResumeRequest,
        reply: Reply<Opened>,
        state: State,
    ) {
        let agent = request.agent;
        if !state.is_open() {
            let message =
                format!("session \"{id}\" has no turn to continue: its last one has ended");
            return reply(Err(Failure::new(ErrorCode::SESSION_NOT_OPEN, message)
                .with_hint(format!("`mainspring show {id}` shows it"))));
        }
        let changed = state.fingerprint.as_ref() != Some(&agent.fingerprint);
        if changed && request.on_change == OnChange::Refuse {
            let message =
                format!("agent {:?} is not the one session \"{id}\" runs", agent.spec.name);
            return reply(Err(Failure::new(ErrorCode::AGENT_CHANGED, message)
                .with_hint("resume it with the agent as it was, or allow the change")));
        }
        let from = state.next_seq;
        let epoch = Epoch(state.epoch.0 + 1);
        let fingerprint = agent.fingerprint.clone();
        let mut live = Live::new(id, agent, state, AppendMode::TakeOver);
        live.opening.push((from, reply));
        let key = self.add(live);
        self.tell(key, Fact::Reopened { epoch, fingerprint });
    }

    fn wait(&mut self, id: SessionId, reply: Reply<SessionReport>) {
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
        self.config.loader.run(move |journal| reply(loader::report(journal, &id)));
    }

    fn watch(&mut self, id: SessionId, from: Seq, reply: Reply<WatchBatch>) {
        let live = self.keys.get(&id).and_then(|key| self.lives.get_mut(key));
        let alive = live.is_some();
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
            None => reply,
        };
        self.config.loader.run(move |journal| reply(loader::watch(journal, &id, from, alive)));
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

fn not_running(id: &SessionId) -> Failure {
    Failure::new(ErrorCode::SESSION_NOT_OPEN, format!("session \"{id}\" is not running here"))
}
