//! Taking up sessions that have a turn to continue and no owner: interrupted, submitted or decided
//! about elsewhere. The first shard asks the journal, and hands each session to its shard.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mainspring_journal::SessionHead;
use mainspring_session::{Failure, SessionId};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::engine::shard_of;
use crate::mail::{ClaimRequest, Mail, OnChange, Opened, Reply, ResumeRequest};
use crate::shard::Shard;
use crate::timers::Timer;

/// Sessions claimed at once.
const CLAIM_MAX: u32 = 1_000;

/// What an engine claims by itself.
pub(crate) struct Claiming {
    agents: HashMap<String, Arc<Agent>>,
    on_change: OnChange,
    /// Whether the journal is being asked.
    asking: bool,
    /// Whether a timer will ask it again; one at a time, however often somebody claims.
    due: bool,
}

impl Shard {
    /// Begins to claim, and answers with what was there at once.
    pub(crate) fn claim(&mut self, request: ClaimRequest, reply: Reply<Vec<Opened>>) {
        let ClaimRequest { agents, on_change } = request;
        let agents = agents.into_iter().map(|agent| (agent.spec.name.clone(), agent)).collect();
        let due = self.claiming.as_ref().is_some_and(|claiming| claiming.due);
        self.claiming = Some(Claiming { agents, on_change, asking: false, due });
        self.ask_for_claims(Some(reply));
    }

    /// Whether some shard of this engine claims sessions.
    pub(crate) fn claiming_anywhere(&self) -> bool {
        self.config.claims.load(Ordering::Relaxed)
    }

    pub(crate) fn claim_more(&mut self) {
        if let Some(claiming) = &mut self.claiming {
            claiming.due = false;
        }
        self.ask_for_claims(None);
    }

    fn ask_for_claims(&mut self, reply: Option<Reply<Vec<Opened>>>) {
        let busy = self.claiming.as_ref().is_none_or(|claiming| claiming.asking);
        if busy || self.draining.is_some() {
            if let Some(reply) = reply {
                reply(Ok(Vec::new()));
            }
            return;
        }
        let Some(claiming) = &mut self.claiming else { return };
        claiming.asking = true;
        self.config.claims.store(true, Ordering::Relaxed);
        let names: Vec<String> = claiming.agents.keys().cloned().collect();
        let room = self.config.limits.sessions_max.saturating_sub(self.lives.len());
        let limit = u32::try_from(room).unwrap_or(u32::MAX).min(CLAIM_MAX);
        let post = self.config.post.clone();
        self.config.loader.run(move |journal| {
            let claimed = journal.claim(&names, limit).map_err(|error| error.failure());
            let _ = post.send(Mail::Claimed(claimed, reply));
        });
    }

    fn claim_again(&mut self, wait: Duration) {
        let Some(claiming) = &mut self.claiming else { return };
        if !std::mem::replace(&mut claiming.due, true) {
            self.timers.set(Instant::now() + wait, Timer::Claim);
        }
    }

    pub(crate) fn claimed(
        &mut self,
        claimed: Result<Vec<SessionHead>, Failure>,
        reply: Option<Reply<Vec<Opened>>>,
    ) {
        let every = Duration::from_millis(self.config.limits.claim_ms);
        let Some(claiming) = &mut self.claiming else { return };
        claiming.asking = false;
        let heads = match claimed {
            Ok(heads) => heads,
            Err(error) => {
                tracing::warn!(%error, "sessions could not be claimed, this is tried again");
                self.claim_again(every);
                if let Some(reply) = reply {
                    reply(Err(error));
                }
                return;
            }
        };
        // Whoever waits for the first ones asks again until there are no more.
        let more = heads.len() == CLAIM_MAX as usize;
        let wait = if more && reply.is_none() { Duration::ZERO } else { every };
        self.claim_again(wait);
        let gathering = Arc::new(Gathering::new(heads.len(), reply));
        for head in heads {
            self.take_up(head, &gathering);
        }
    }

    fn take_up(&self, head: SessionHead, gathering: &Arc<Gathering>) {
        let Some(claiming) = &self.claiming else { return };
        let Some(agent) = claiming.agents.get(&head.agent) else { return };
        let session = head.id.clone();
        let request =
            ResumeRequest { session, agent: Arc::clone(agent), on_change: claiming.on_change };
        let (gathering, peers) = (Arc::clone(gathering), Arc::clone(&self.config.peers));
        let reply: Reply<Opened> = Box::new(move |opened| match opened {
            Ok(opened) => gathering.add(Some(opened)),
            Err(error) => {
                tracing::warn!(session = %head.id, %error, "a claimed session was not resumed");
                post_to(&peers, &head.id, Mail::Unreleased(vec![head.id.clone()]));
                gathering.add(None);
            }
        });
        let id = request.session.clone();
        post_to(&self.config.peers, &id, Mail::Resume(request, reply));
    }
}

/// Posts a letter to the shard of a session.
fn post_to(peers: &OnceLock<Vec<UnboundedSender<Mail>>>, session: &SessionId, mail: Mail) {
    let Some(peers) = peers.get() else { return };
    let _ = peers[shard_of(session, peers.len())].send(mail);
}

/// Waits until all of a number of sessions have been taken up, and answers with those that were.
struct Gathering(Mutex<Gathered>);

struct Gathered {
    /// Sessions of which nothing has been heard, and one for whoever counts them.
    left: usize,
    opened: Vec<Opened>,
    reply: Option<Reply<Vec<Opened>>>,
}

impl Gathering {
    fn new(count: usize, reply: Option<Reply<Vec<Opened>>>) -> Self {
        let gathered = Gathered { left: count + 1, opened: Vec::new(), reply };
        let gathering = Self(Mutex::new(gathered));
        gathering.add(None);
        gathering
    }

    fn add(&self, opened: Option<Opened>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.left -= 1;
        state.opened.extend(opened);
        if state.left == 0
            && let Some(reply) = state.reply.take()
        {
            let all = std::mem::take(&mut state.opened);
            drop(state);
            reply(Ok(all));
        }
    }
}
