//! The alarm for lost prompt caches: compares what each model call begins with to the call before it
//! of the same session and model, and what the provider took from its cache to what it could have.
//!
//! Nothing of a request is kept but hashes, one number for each message (`history.rs`), and only what
//! is new is hashed: a call costs the same at any length of the conversation. Changes for a reason
//! (another model, another agent, a compaction) are no alarm.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use mainspring_session::{
    ActiveModelCall, Api, BlobHash, CacheBust, CacheBustReason, ModelSpec, SessionId, Usage,
};
use tokio::time::Instant;

use crate::history::History;

/// How long providers keep a prefix at least (OpenAI and Anthropic: 5 minutes since its last use).
const KEPT: Duration = Duration::from_secs(300);
/// A prefix of fewer tokens is not expected to be cached: providers begin at 1,024 to 4,096.
const TOKENS_MIN: u64 = 4_096;
/// Models whose last call is remembered, for each session; routes are shorter.
const TIERS_MAX: u32 = 32;
/// Sessions between two turns whose last calls are remembered, on each shard.
const SESSIONS_MAX: usize = 4_096;
/// Letters of a `prompt_cache_key`; OpenAI takes 64.
const KEY_CHARS: usize = 32;

/// The last calls of a session.
#[derive(Debug, Default)]
pub(crate) struct CacheWatch {
    /// By position in the agent's list of models.
    calls: Vec<Option<Sent>>,
    /// What the call under way was found to have changed.
    changed: Option<CacheBust>,
    /// Tokens that the call under way could take from the cache; 0 if none.
    expected: u64,
}

/// The last calls of sessions that are between two turns.
#[derive(Debug, Default)]
pub(crate) struct CacheMemory {
    watches: HashMap<SessionId, CacheWatch>,
    /// The one that was put in first at the front; it may hold some that have been taken since.
    order: VecDeque<SessionId>,
}

impl CacheMemory {
    /// Remembers the last calls of a session; the session that was put in first is forgotten for it.
    pub(crate) fn keep(&mut self, session: &SessionId, watch: CacheWatch) {
        if watch.calls.is_empty() {
            return;
        }
        self.watches.insert(session.clone(), watch);
        self.order.push_back(session.clone());
        while self.order.len() > SESSIONS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.watches.remove(&oldest);
            }
        }
    }

    /// What is remembered of a session.
    pub(crate) fn take(&mut self, session: &SessionId) -> CacheWatch {
        self.watches.remove(session).unwrap_or_default()
    }
}

/// What is remembered of a call.
#[derive(Debug, Clone)]
struct Sent {
    agent: BlobHash,
    generation: u32,
    /// Hash of what the body has beside the messages.
    head: u64,
    /// How many messages it had, and the hash of them.
    count: usize,
    hash: u64,
    at: Instant,
    /// Tokens that it had; 0 while it is under way or if it failed.
    tokens: u64,
    /// Whether this provider has been seen to cache.
    caches: bool,
}

/// What a call begins with.
pub(crate) struct Beginning<'a> {
    /// The agent in force.
    pub(crate) agent: &'a BlobHash,
    /// The view of the conversation in force.
    pub(crate) generation: u32,
    /// Hash of what the body has beside the messages.
    pub(crate) head: u64,
    /// The messages.
    pub(crate) history: &'a History,
}

impl CacheWatch {
    /// A call is made.
    pub(crate) fn sent(&mut self, call: ActiveModelCall, beginning: &Beginning<'_>, now: Instant) {
        self.changed = None;
        self.expected = 0;
        if call.tier >= TIERS_MAX {
            return;
        }
        let tier = call.tier as usize;
        if self.calls.len() <= tier {
            self.calls.resize(tier + 1, None);
        }
        let chain = beginning.history.chain();
        let before = self.calls[tier].take();
        let comparable = before.as_ref().filter(|before| {
            before.agent == *beginning.agent && before.generation == beginning.generation
        });
        if let Some(before) = comparable {
            let same_head = before.head == beginning.head;
            let at = before.count.checked_sub(1).and_then(|last| chain.get(last));
            let same = same_head && (before.count == 0 || at == Some(&before.hash));
            let fresh = now.duration_since(before.at) < KEPT;
            if !same {
                let message = beginning.history.first_changed().filter(|_| same_head);
                let reason = CacheBustReason::PrefixChanged;
                self.changed = Some(CacheBust { reason, message, lost_tokens: before.tokens });
            } else if fresh && before.caches {
                self.expected = before.tokens;
            }
        }
        self.calls[tier] = Some(Sent {
            agent: beginning.agent.clone(),
            generation: beginning.generation,
            head: beginning.head,
            count: chain.len(),
            hash: chain.last().copied().unwrap_or(0),
            at: now,
            tokens: before.as_ref().map_or(0, |before| before.tokens),
            caches: before.is_some_and(|before| before.caches),
        });
    }

    /// The call was answered. What was lost, if something was.
    pub(crate) fn answered(&mut self, tier: u32, usage: Usage) -> Option<CacheBust> {
        let sent = self.calls.get_mut(tier as usize).and_then(Option::as_mut)?;
        sent.tokens = usage.input_tokens;
        sent.caches |= usage.cached_tokens > 0 || usage.cache_write_tokens > 0;
        let changed = self.changed.take().filter(|bust| bust.lost_tokens >= TOKENS_MIN);
        let expected = std::mem::take(&mut self.expected);
        changed.or_else(|| {
            let missed = expected >= TOKENS_MIN && usage.cached_tokens < expected / 2;
            missed.then(|| CacheBust {
                reason: CacheBustReason::NotCached,
                message: None,
                lost_tokens: expected.saturating_sub(usage.cached_tokens),
            })
        })
    }
}

/// Goes on hashing: a multiply and a rotation for every 8 bytes. Made to notice changes, not to
/// withstand somebody who looks for bytes of equal hash.
pub(crate) fn hash(start: u64, bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut chunks = bytes.chunks_exact(8);
    let mut hash = start.wrapping_add(bytes.len() as u64).wrapping_mul(FACTOR);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        hash = (hash ^ word).wrapping_mul(FACTOR).rotate_left(29);
    }
    for byte in chunks.remainder() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(FACTOR).rotate_left(29);
    }
    hash
}

/// Whether a model's provider takes `prompt_cache_key`, and the user sets none: only OpenAI's own API
/// is known to take it.
pub(crate) fn takes_key(model: &ModelSpec) -> bool {
    let host = model.base_url.split_once("://").map_or("", |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    let openai = host == "api.openai.com" || host.ends_with(".api.openai.com");
    let params = model.params.as_ref().map_or("", |params| params.get());
    openai && model.api != Api::Messages && !params.contains("\"prompt_cache_key\"")
}

/// Adds `prompt_cache_key` to a request body: the same for all calls of a session, so that they reach
/// the machine that has their beginning in its cache. A hash, since an id may say something.
pub(crate) fn add_key(body: &mut Vec<u8>, session: &SessionId) {
    if body.pop() != Some(b'}') {
        return;
    }
    let hash = BlobHash::of(session.as_str().as_bytes());
    let key: String = hash.as_str().chars().take(KEY_CHARS).collect();
    body.extend_from_slice(format!(",\"prompt_cache_key\":\"{key}\"}}").as_bytes());
}

#[cfg(test)]
mod tests {
    use mainspring_session::{AgentSpec, Message, State};
    use mainspring_wire::Codec;

    use super::*;

    /// A session that calls a model, and the watch over it.
    struct Talk {
        codec: Codec,
        state: State,
        history: History,
        watch: CacheWatch,
        agent: BlobHash,
        now: Instant,
        head: u64,
    }

    impl Talk {
        fn new() -> Self {
            let model = ModelSpec { name: "m".to_owned(), ..ModelSpec::default() };
            let codec = Codec::new(&AgentSpec::default(), &model, false).unwrap();
            let mut talk = Self {
                codec,
                state: State::default(),
                history: History::default(),
                watch: CacheWatch::default(),
                agent: BlobHash::of(b"agent"),
                now: Instant::now(),
                head: 1,
            };
            talk.say(9);
            talk
        }

        fn say(&mut self, count: usize) {
            let says = |at| Message::user(format!("message {at}, and more than eight bytes"));
            let from = self.state.messages.len();
            self.state.messages.extend((from..from + count).map(says));
        }

        fn call(&mut self, tier: u32, input_tokens: u64, cached_tokens: u64) -> Option<CacheBust> {
            self.history.update(&self.codec, &self.state);
            let beginning = Beginning {
                agent: &self.agent,
                generation: self.state.context.view.generation,
                head: self.head,
                history: &self.history,
            };
            self.watch.sent(ActiveModelCall { step: 0, attempt: 1, tier }, &beginning, self.now);
            let usage = Usage { input_tokens, cached_tokens, ..Usage::default() };
            self.watch.answered(tier, usage)
        }
    }

    #[test]
    fn a_conversation_that_grows_at_its_end_is_no_alarm() {
        let mut talk = Talk::new();
        for turn in 1..50 {
            assert_eq!(talk.call(0, turn * 10_000, (turn - 1) * 10_000), None);
            talk.say(2);
        }
    }

    #[test]
    fn a_message_that_changed_is_found_by_its_position() {
        for changed in [0, 3, 8] {
            let mut talk = Talk::new();
            talk.call(0, 10_000, 0);
            talk.state.messages[changed] = Message::user("something else");
            talk.say(1);
            // What an encoding anew comes to, for whatever cause.
            talk.state.messages.truncate(9);
            talk.history.count = 99;
            let message = u32::try_from(changed).ok();
            let reason = CacheBustReason::PrefixChanged;
            let expected = CacheBust { reason, message, lost_tokens: 10_000 };
            assert_eq!(talk.call(0, 10_000, 0), Some(expected));
            assert_eq!(talk.call(0, 10_000, 0), None, "it is told once");
        }
    }

    #[test]
    fn other_instructions_are_an_alarm_and_another_agent_is_none() {
        let mut talk = Talk::new();
        talk.call(0, 10_000, 0);
        talk.head = 2;
        let bust = talk.call(0, 10_000, 0).unwrap();
        assert_eq!((bust.reason, bust.message), (CacheBustReason::PrefixChanged, None));
        talk.head = 3;
        talk.agent = BlobHash::of(b"another agent");
        assert_eq!(talk.call(0, 10_000, 0), None);
    }

    #[test]
    fn another_model_and_another_view_are_no_alarm() {
        let mut talk = Talk::new();
        talk.call(0, 10_000, 9_000);
        assert_eq!(talk.call(1, 10_000, 0), None);
        assert_eq!(talk.call(99, 10_000, 0), None, "a route longer than any");
        talk.state.context.view.generation = 1;
        talk.state.context.view.kept = vec![(5, 9)];
        assert_eq!(talk.call(0, 5_000, 0), None);
    }

    #[test]
    fn a_provider_that_does_not_use_its_cache_is_an_alarm_while_it_should_have_it() {
        let mut talk = Talk::new();
        assert_eq!(talk.call(0, 10_000, 0), None);
        assert_eq!(talk.call(0, 10_000, 0), None, "one that was never seen to cache");
        assert_eq!(talk.call(0, 10_000, 9_000), None);
        let expected = CacheBust {
            reason: CacheBustReason::NotCached,
            message: None,
            lost_tokens: 10_000 - 100,
        };
        assert_eq!(talk.call(0, 10_000, 100), Some(expected));
        talk.now += KEPT;
        assert_eq!(talk.call(0, 10_000, 0), None, "it may be gone by now");
    }

    #[test]
    fn a_key_is_added_for_openai_alone_and_is_the_same_for_a_session() {
        let model = |base_url: &str, params: Option<&str>| ModelSpec {
            base_url: base_url.to_owned(),
            params: params.map(|it| serde_json::value::RawValue::from_string(it.into()).unwrap()),
            ..ModelSpec::default()
        };
        assert!(takes_key(&model("https://api.openai.com/v1", None)));
        assert!(takes_key(&model("https://eu.api.openai.com/v1", None)));
        assert!(!takes_key(&model("https://api.openai.com.evil.org/v1", None)));
        assert!(!takes_key(&model("http://127.0.0.1:8000/v1", None)));
        let own = Some(r#"{"prompt_cache_key":"mine"}"#);
        assert!(!takes_key(&model("https://api.openai.com/v1", own)));
        let session = SessionId::new("s-1").unwrap();
        let (mut one, mut two) = (b"{\"a\":1}".to_vec(), b"{\"a\":1}".to_vec());
        add_key(&mut one, &session);
        add_key(&mut two, &session);
        assert_eq!(one, two);
        let value: serde_json::Value = serde_json::from_slice(&one).unwrap();
        assert_eq!(value["prompt_cache_key"].as_str().map(str::len), Some(KEY_CHARS));
        assert!(!one.windows(3).any(|it| it == b"s-1"), "the id is not told");
    }

    #[test]
    fn what_is_remembered_between_turns_has_a_bound() {
        let mut memory = CacheMemory::default();
        let id = |at: usize| SessionId::new(&format!("s-{at}")).unwrap();
        for at in 0..SESSIONS_MAX + 10 {
            let mut talk = Talk::new();
            talk.call(0, 10_000, 9_000);
            memory.keep(&id(at), talk.watch);
        }
        assert_eq!(memory.watches.len(), SESSIONS_MAX);
        assert!(memory.take(&id(9)).calls.is_empty(), "the first are forgotten");
        assert_eq!(memory.take(&id(10)).calls.len(), 1);
        memory.keep(&id(0), CacheWatch::default());
        assert!(memory.take(&id(0)).calls.is_empty());
    }

    #[test]
    fn hashes_differ_where_bytes_do() {
        let seen: std::collections::BTreeSet<u64> = (0..64)
            .map(|at| {
                let mut bytes = [7_u8; 64];
                bytes[at] = 8;
                hash(0, &bytes)
            })
            .collect();
        assert_eq!(seen.len(), 64);
        assert_ne!(hash(0, b"ab"), hash(0, b"ab\0"));
        assert_ne!(hash(1, b"ab"), hash(2, b"ab"));
    }
}
