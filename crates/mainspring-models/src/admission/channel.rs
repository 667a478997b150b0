//! One key of one model at one server: its limits, its health, and the calls that wait for it.
//!
//! Everything that is learnt of a channel is learnt here, when a call begins, when its headers
//! arrive and when it ends; whether another call may be made is [`Channel::ready`].

use std::sync::Arc;
use std::time::Duration;

use mainspring_session::{ErrorCode, Failure, ModelLimits, Usage};
use tokio::time::Instant;

use super::allowance::Allowance;
use super::breaker::{Breaker, Gate};
use super::bucket::{Bucket, Used};
use super::headers::Rates;
use super::limits::AdmissionLimits;
use super::pace::Pace;
use super::quantiles::Quantiles;
use super::queue::FairQueue;
use crate::endpoint_set::ChannelKey;

/// Bytes of a request for each of its tokens, before a server has counted any.
const BYTES_PER_TOKEN: f64 = 4.0;
/// Weight of the newest call in running means.
const NEWEST: f64 = 0.05;
/// Characters of the last failure that others are told.
const LAST_FAILURE_CHARS_MAX: usize = 200;

/// The state of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) key: Arc<ChannelKey>,
    /// Tells keys of one model at one host apart, from 1.
    pub(crate) number: u32,
    pub(crate) requests: Bucket,
    pub(crate) tokens: Bucket,
    pub(crate) pace: Pace,
    pub(crate) breaker: Breaker,
    pub(crate) retries: Allowance,
    pub(crate) hedges: Allowance,
    pub(crate) first_tokens: Quantiles,
    pub(crate) queue: FairQueue,
    /// The waiting call that keeps the time for all of them.
    pub(crate) leader: Option<u64>,
    /// When that call wakes by itself.
    pub(crate) wake_at: Option<Instant>,
    pub(crate) used_at: Instant,
    pub(crate) counts: Counts,
    scout: Scout,
    /// Mean time of a call, in seconds; 0 before the first.
    mean_s: f64,
    bytes_per_token: f64,
    last_failure: String,
}

/// The first call goes alone for a moment: its answer may tell a limit that those behind it would
/// else run into together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scout {
    /// No call has been made.
    Due,
    /// It is under way since then.
    Out(Instant),
    /// It is back, or there is none.
    Back,
}

/// What happened on a channel since it is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) refused: u64,
    pub(crate) failed: u64,
    pub(crate) hedged: u64,
}

/// Why a call cannot be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing before this time.
    Until(Instant),
    /// As many calls are under way as may be; one of them must end.
    ForRoom,
    /// The breaker is open, at least until then.
    Open(Instant),
}

/// A call that was let in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    pub(crate) at: Instant,
    pub(crate) is_probe: bool,
    pub(crate) is_scout: bool,
    kind: Kind,
    body_bytes: usize,
    requests: Used,
    tokens: Used,
}

/// What a call asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) body_bytes: usize,
    pub(crate) output_tokens_max: u64,
    pub(crate) kind: Kind,
}

/// Whether a call is one that was asked for, or one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first attempt.
    First,
    /// A later attempt.
    Retry,
    /// A second call beside one whose first token is late.
    Hedge,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) enum Ended<'a> {
    /// With an answer.
    Answered { usage: Usage, first_token_us: u64 },
    /// With a failure.
    Failed { failure: &'a Failure, retry_after_ms: Option<u64>, is_overload: bool },
    /// Another call was faster.
    Beaten,
    /// Nobody wanted it any more.
    Dropped,
}

/// What the end of a call changes for those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing but room.
    None,
    /// The channel rests: who can go elsewhere should.
    Paused,
    /// The breaker has opened: nobody can stay.
    Opened,
}

impl Channel {
    pub(crate) fn new(
        key: Arc<ChannelKey>,
        number: u32,
        (now, is_own): (Instant, bool),
        limits: &AdmissionLimits,
    ) -> Self {
        Self {
            // A server on this machine keeps no accounts of keys.
            scout: if is_own { Scout::Back } else { Scout::Due },
            key,
            number,
            requests: Bucket::new(None, now),
            tokens: Bucket::new(None, now),
            pace: Pace::new(limits.concurrency_max),
            breaker: Breaker::new(now),
            retries: Allowance::new(limits.retry_share, limits.retry_reserve, now),
            hedges: Allowance::new(limits.hedge_share, 0.0, now),
            first_tokens: Quantiles::new(),
            queue: FairQueue::default(),
            leader: None,
            wake_at: None,
            used_at: now,
            counts: Counts::default(),
            mean_s: 0.0,
            bytes_per_token: BYTES_PER_TOKEN,
            last_failure: String::new(),
        }
    }

    pub(crate) fn configure(&mut self, limits: &ModelLimits) {
        if limits.requests_per_minute.is_some() && self.scout == Scout::Due {
            self.scout = Scout::Back;
        }
        self.requests.configure(limits.requests_per_minute);
        self.tokens.configure(limits.tokens_per_minute);
        self.pace.configure(limits.concurrency_max);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pace.in_flight() == 0 && self.queue.len() == 0
    }

    /// Whether a call may be made now, leaving aside who else waits.
    pub(crate) fn ready(
        &mut self,
        now: Instant,
        ask: Ask,
        limits: &AdmissionLimits,
    ) -> Result<(), Wait> {
        if let Gate::Open(until) = self.breaker.gate(now) {
            return Err(Wait::Open(until));
        }
        let at = self.turn_at(now, ask, 0).max(self.scout_back_at(now, limits));
        if at > now {
            return Err(Wait::Until(at));
        }
        if self.pace.has_room() { Ok(()) } else { Err(Wait::ForRoom) }
    }

    /// When the first call has told what it can, at the latest.
    fn scout_back_at(&self, now: Instant, limits: &AdmissionLimits) -> Instant {
        match self.scout {
            Scout::Out(since) => since + limits.scout,
            Scout::Due | Scout::Back => now,
        }
    }

    /// When pause and buckets allow a call, so many others being let in before it.
    pub(crate) fn turn_at(&mut self, now: Instant, ask: Ask, ahead: usize) -> Instant {
        let ahead = ahead as f64;
        let tokens = self.estimate(ask);
        let requests_at = self.requests.ready_at(now, 1.0, ahead);
        // Those who wait are taken to be like this one.
        let tokens_at = self.tokens.ready_at(now, tokens, ahead * tokens);
        let at = requests_at.max(tokens_at);
        match self.pace.paused_until(now) {
            // After a pause one goes first, and the buckets fill meanwhile.
            Some(until) => at.max(until),
            None => at,
        }
    }

    /// How long a call of a tenant is likely to wait.
    pub(crate) fn wait_of(&mut self, now: Instant, ask: Ask, ahead: usize) -> Duration {
        let by_limits = self.turn_at(now, ask, ahead).saturating_duration_since(now);
        let limit = f64::from(self.pace.limit());
        let over = f64::from(self.pace.in_flight()) + ahead as f64 + 1.0 - limit;
        let by_room = if over > 0.0 { over / limit * self.mean_s } else { 0.0 };
        by_limits.max(super::bucket::seconds(by_room))
    }

    /// Lets a call in.
    pub(crate) fn begin(&mut self, now: Instant, ask: Ask) -> Begun {
        let tokens = self.estimate(ask);
        let is_scout = self.scout == Scout::Due;
        if is_scout {
            self.scout = Scout::Out(now);
        }
        self.used_at = now;
        self.counts.calls += 1;
        self.pace.begin();
        match ask.kind {
            Kind::First => {
                self.retries.earn();
                self.hedges.earn();
            }
            Kind::Retry => {
                self.retries.spend();
                self.hedges.earn();
            }
            Kind::Hedge => self.counts.hedged += 1,
        }
        Begun {
            at: now,
            is_probe: self.breaker.begin(),
            is_scout,
            kind: ask.kind,
            body_bytes: ask.body_bytes,
            requests: self.requests.take(now, 1.0),
            tokens: self.tokens.take(now, tokens),
        }
    }

    /// Takes back a call that was let in and then not made.
    pub(crate) fn take_back(&mut self, now: Instant, begun: &Begun) {
        self.counts.calls -= 1;
        if begun.is_scout {
            self.scout = Scout::Due;
        }
        self.requests.correct(now, begun.requests, 0.0);
        self.tokens.correct(now, begun.tokens, 0.0);
        if begun.kind == Kind::Retry {
            self.retries.give_back();
        }
        self.pace.end();
        if begun.is_probe {
            self.breaker.probe_dropped();
        }
    }

    /// Hears what the headers of an answer say.
    pub(crate) fn hear(&mut self, now: Instant, begun: &Begun, rates: &Rates) {
        self.scout = Scout::Back;
        let Rates { requests, tokens } = rates;
        self.requests.hear(now, begun.requests, requests.limit, requests.remaining);
        self.tokens.hear(now, begun.tokens, tokens.limit, tokens.remaining);
    }

    /// Takes in how a call ended. `has_others` says whether the model has other endpoints.
    pub(crate) fn end(
        &mut self,
        now: Instant,
        begun: &Begun,
        ended: &Ended<'_>,
        has_others: bool,
        limits: &AdmissionLimits,
    ) -> Turn {
        self.pace.end();
        if begun.is_scout {
            self.scout = Scout::Back;
        }
        match ended {
            Ended::Answered { usage, first_token_us } => {
                self.answered(now, begun, *usage, *first_token_us);
                Turn::None
            }
            Ended::Failed { failure, retry_after_ms, is_overload } => {
                self.counts.failed += 1;
                self.last_failure = failure.message.chars().take(LAST_FAILURE_CHARS_MAX).collect();
                let asked = retry_after_ms.map(Duration::from_millis);
                let cause = Cause::of(failure, *is_overload || asked.is_some(), has_others);
                self.failed(now, begun, (cause, asked), limits)
            }
            // A channel that hangs is always beaten, and would else never be noticed.
            Ended::Beaten => match self.breaker.failed(now, begun.is_probe, limits) {
                true => Turn::Opened,
                false => Turn::None,
            },
            Ended::Dropped => {
                if begun.is_probe {
                    self.breaker.probe_dropped();
                }
                Turn::None
            }
        }
    }

    /// What the last failure said.
    pub(crate) fn last_failure(&self) -> &str {
        &self.last_failure
    }

    fn estimate(&self, ask: Ask) -> f64 {
        ask.body_bytes as f64 / self.bytes_per_token + ask.output_tokens_max as f64
    }

    fn answered(&mut self, now: Instant, begun: &Begun, usage: Usage, first_token_us: u64) {
        if self.breaker.succeeded(now) {
            self.pace.start_gently();
        }
        self.pace.succeeded();
        self.first_tokens.add(first_token_us);
        let took_s = now.saturating_duration_since(begun.at).as_secs_f64();
        self.mean_s = if self.mean_s == 0.0 { took_s } else { mean(self.mean_s, took_s) };
        if usage.input_tokens > 0 {
            self.tokens.correct(now, begun.tokens, usage.total() as f64);
            let ratio = begun.body_bytes as f64 / usage.input_tokens as f64;
            self.bytes_per_token = mean(self.bytes_per_token, ratio.clamp(0.25, 64.0));
        }
    }

    fn failed(
        &mut self,
        now: Instant,
        begun: &Begun,
        (cause, asked): (Cause, Option<Duration>),
        limits: &AdmissionLimits,
    ) -> Turn {
        match cause {
            Cause::Refused => {
                self.counts.refused += 1;
                self.requests.empty(now);
                // A server that refuses is there: that is what a probe was to find out.
                self.breaker.succeeded(now);
                self.rest(now, begun, asked, limits)
            }
            Cause::Overloaded => {
                let opened = self.breaker.failed(now, begun.is_probe, limits);
                // A server that does not ask for a rest gets fewer calls at once, and goes on.
                let turn = match asked {
                    Some(_) => self.rest(now, begun, asked, limits),
                    None => {
                        self.pace.cut(now, begun.at, limits);
                        Turn::None
                    }
                };
                if opened { Turn::Opened } else { turn }
            }
            Cause::Slow | Cause::Broken => {
                if cause == Cause::Slow {
                    self.pace.cut(now, begun.at, limits);
                }
                match self.breaker.failed(now, begun.is_probe, limits) {
                    true => Turn::Opened,
                    false => Turn::None,
                }
            }
            Cause::Useless => {
                self.breaker.trip(now, limits);
                Turn::Opened
            }
            Cause::Own => {
                if self.breaker.succeeded(now) {
                    self.pace.start_gently();
                }
                Turn::None
            }
        }
    }

    fn rest(
        &mut self,
        now: Instant,
        begun: &Begun,
        asked: Option<Duration>,
        limits: &AdmissionLimits,
    ) -> Turn {
        if asked.is_some_and(|asked| asked > limits.pause_max) {
            // Nobody waits for a server that asks for so much patience.
            self.breaker.leave(now, limits.pause_max);
            return Turn::Opened;
        }
        let is_resting = self.pace.paused_until(now).is_some();
        self.pace.cut(now, begun.at, limits);
        self.pace.pause(now, asked, self.counts.calls.wrapping_mul(0x9e37_79b9), limits);
        // Who waits has been looked at when the rest began.
        if is_resting { Turn::None } else { Turn::Paused }
    }
}

/// What a failure says of its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Too many requests.
    Refused,
    /// The server has more to do than it can.
    Overloaded,
    /// It did not answer in time.
    Slow,
    /// It failed.
    Broken,
    /// No call of this key will succeed, and other keys may.
    Useless,
    /// The request was at fault, or nobody is.
    Own,
}

impl Cause {
    fn of(failure: &Failure, is_overload: bool, has_others: bool) -> Self {
        let code = &failure.code;
        let is = |codes: &[ErrorCode]| codes.contains(code);
        if *code == ErrorCode::MODEL_RATE_LIMITED {
            let is_lasting = !failure.retryable && has_others;
            return if is_lasting { Cause::Useless } else { Cause::Refused };
        }
        if is(&[ErrorCode::MODEL_AUTH, ErrorCode::MODEL_NOT_FOUND]) {
            return if has_others { Cause::Useless } else { Cause::Own };
        }
        if *code == ErrorCode::MODEL_TIMEOUT {
            return Cause::Slow;
        }
        if *code == ErrorCode::MODEL_SERVER_ERROR {
            return if is_overload { Cause::Overloaded } else { Cause::Broken };
        }
        let broken =
            [ErrorCode::MODEL_CONNECT, ErrorCode::MODEL_INTERRUPTED, ErrorCode::MODEL_BAD_RESPONSE];
        if is(&broken) { Cause::Broken } else { Cause::Own }
    }
}

fn mean(old: f64, newest: f64) -> f64 {
    old + (newest - old) * NEWEST
}
