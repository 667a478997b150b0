//! What is decided under admission's lock: where a call goes, and what its end changes. Who waits, and
//! whose turn it is, is in `turns.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mainspring_wire::HttpFailure;
use tokio::time::Instant;

use super::channel::{Ask, Begun, Channel, Ended, Kind, Turn, Wait};
use super::headers::Rates;
use super::limits::AdmissionLimits;
use super::refusal;
use super::report::{ChannelReport, Readiness};
use super::turns::Waiter;
use crate::client::ModelRequest;
use crate::endpoint_set::{ChannelKey, EndpointSet, Member};

/// The shortest sleep of a leader, tokio's own resolution.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// Channels, and the calls that wait for them.
#[derive(Debug)]
pub(super) struct State {
    pub(super) limits: AdmissionLimits,
    by_key: HashMap<Arc<ChannelKey>, usize>,
    pub(super) channels: Vec<Channel>,
    pub(super) waiters: HashMap<u64, Waiter>,
    /// Numbers calls in the order in which they began to wait.
    pub(super) next_number: u64,
}

/// What a call is to admission.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) endpoints: Arc<EndpointSet>,
    pub(super) tenant: Arc<str>,
    pub(super) affinity: u64,
    pub(super) attempt: u32,
    pub(super) deadline: Option<Instant>,
    pub(super) ask: Ask,
}

/// A call that has its turn.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) channel: usize,
    /// Position of the endpoint in the call's set.
    pub(super) member: usize,
    pub(super) begun: Begun,
}

/// What becomes of a new call.
#[derive(Debug)]
pub(super) enum Entry {
    Admitted(Placed),
    Waits(u64),
}

/// What a waiting call hears.
#[derive(Debug)]
pub(super) enum Heard {
    Ended(Result<Placed, HttpFailure>),
    /// It goes on waiting, and is to look again at this time.
    Waits(Option<Instant>),
}

/// An endpoint of a set and its channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) member: usize,
    pub(super) channel: usize,
}

/// Where a call is best placed.
#[derive(Debug)]
pub(super) enum Choice {
    /// Here, and at once.
    Now(Place),
    /// Here, after waiting.
    Later(Place),
    /// Nowhere before that time.
    Open(Place, Instant),
}

impl Caller {
    pub(super) fn of(request: &ModelRequest) -> Self {
        let kind = if request.attempt > 1 { Kind::Retry } else { Kind::First };
        Self {
            endpoints: Arc::clone(&request.endpoints),
            tenant: Arc::clone(&request.tenant),
            affinity: request.affinity,
            attempt: request.attempt,
            deadline: request.deadline,
            ask: Ask {
                body_bytes: request.body.len(),
                output_tokens_max: request.endpoints.policy.output_tokens_max,
                kind,
            },
        }
    }
}

impl State {
    pub(super) fn new(limits: AdmissionLimits) -> Self {
        Self {
            limits,
            by_key: HashMap::new(),
            channels: Vec::new(),
            waiters: HashMap::new(),
            next_number: 0,
        }
    }

    /// Lets a call in, or puts it into a queue.
    pub(super) fn enter(&mut self, now: Instant, caller: Caller) -> Result<Entry, HttpFailure> {
        let places = self.places(now, &caller)?;
        match self.choose(now, &caller, &places) {
            Choice::Now(place) => {
                self.check_retry(now, &caller, place)?;
                Ok(Entry::Admitted(self.begin(now, caller.ask, place)))
            }
            Choice::Later(place) => {
                self.check_retry(now, &caller, place)?;
                self.check_wait(now, &caller, place)?;
                Ok(Entry::Waits(self.enqueue(now, caller, place)))
            }
            Choice::Open(place, until) => Err(self.unavailable(now, &caller, place, until)),
        }
    }

    /// Hears what a server says of its limits.
    pub(super) fn hear(&mut self, now: Instant, placed: &Placed, rates: &Rates) {
        let channel = &mut self.channels[placed.channel];
        channel.hear(now, &placed.begun, rates);
        if let Some(hold_ms) = rates.requests.hold_ms {
            let hold = Duration::from_millis(hold_ms);
            channel.pace.pause(now, Some(hold), 0, &self.limits);
        }
        if placed.begun.is_scout {
            self.pump(now, placed.channel);
        }
    }

    /// Takes in how a call ended, and lets in who can go now.
    pub(super) fn end(
        &mut self,
        now: Instant,
        placed: &Placed,
        ended: &Ended<'_>,
        endpoints: &EndpointSet,
    ) {
        let has_others = endpoints.count() > 1;
        let channel = &mut self.channels[placed.channel];
        match channel.end(now, &placed.begun, ended, has_others, &self.limits) {
            Turn::None => {}
            Turn::Paused => self.scatter(now, placed.channel, Waiter::is_movable),
            Turn::Opened => self.scatter(now, placed.channel, |_| true),
        }
        self.pump(now, placed.channel);
    }

    /// Whether another endpoint of a set could take a call.
    pub(super) fn has_other(
        &mut self,
        now: Instant,
        placed: &Placed,
        endpoints: &EndpointSet,
    ) -> bool {
        let others = endpoints.members.iter().enumerate();
        let others = others.filter(|(member, _)| *member != placed.member);
        let mut channels = others.map(|(_, member)| self.by_key.get(&member.channel).copied());
        channels.any(|channel| {
            let Some(channel) = channel else { return true };
            !matches!(self.channels[channel].breaker.gate(now), super::breaker::Gate::Open(_))
        })
    }

    /// A place for a second call beside one that is under way.
    pub(super) fn hedge(
        &mut self,
        now: Instant,
        mut caller: Caller,
        first: &Placed,
    ) -> Option<Placed> {
        caller.ask.kind = Kind::Hedge;
        let half = self.channels[first.channel].first_tokens.at(0.5)?;
        let left = caller.deadline.map(|deadline| deadline.saturating_duration_since(now));
        if left.is_some_and(|left| left < Duration::from_micros(half)) {
            return None;
        }
        if !self.channels[first.channel].hedges.has(now) {
            return None;
        }
        let places = self.places(now, &caller).ok()?;
        let own = Place { member: first.member, channel: first.channel };
        let others = places.into_iter().filter(|place| place.channel != first.channel);
        let place = others.chain([own]).find(|place| self.is_free(now, &caller, *place))?;
        self.channels[first.channel].hedges.spend();
        Some(self.begin(now, caller.ask, place))
    }

    /// When a first token is late on the channel of a call.
    pub(super) fn late_after(&self, placed: &Placed) -> Option<Duration> {
        let first_tokens = &self.channels[placed.channel].first_tokens;
        let is_enough = first_tokens.seen() >= self.limits.hedge_count_min;
        let us = first_tokens.at(0.95).filter(|_| is_enough)?;
        Some(Duration::from_micros(us).max(TICK))
    }

    pub(super) fn readiness(&mut self, now: Instant, endpoints: &EndpointSet) -> Readiness {
        let mut soonest: Option<Duration> = None;
        let ask = Ask { body_bytes: 0, output_tokens_max: 0, kind: Kind::First };
        for member in &endpoints.members {
            let wait = match self.by_key.get(&member.channel) {
                None => Duration::ZERO,
                Some(channel) => {
                    let channel = &mut self.channels[*channel];
                    if let Err(Wait::Open(_)) = channel.ready(now, ask, &self.limits) {
                        continue;
                    }
                    channel.wait_of(now, ask, channel.queue.len())
                }
            };
            soonest = Some(soonest.map_or(wait, |known| known.min(wait)));
        }
        let wait_ms = soonest.map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(0));
        Readiness { breaker_open: soonest.is_none(), wait_ms }
    }

    pub(super) fn report(&self, now: Instant) -> Vec<ChannelReport> {
        let ms = |us: Option<u64>| us.map(|us| us as f64 / 1000.0);
        let rest = |channel: &Channel| {
            let until = channel.pace.paused_until(now);
            until.map_or(0, |until| u64::try_from((until - now).as_millis()).unwrap_or(0))
        };
        let report = |channel: &Channel| ChannelReport {
            host: channel.key.host.clone(),
            model: channel.key.model.clone(),
            key: channel.number,
            requests_per_minute: channel.requests.limit(),
            tokens_per_minute: channel.tokens.limit(),
            concurrency: channel.pace.limit(),
            in_flight: channel.pace.in_flight(),
            queued: channel.queue.len(),
            breaker: channel.breaker.name(now),
            paused_ms: rest(channel),
            calls: channel.counts.calls,
            refused: channel.counts.refused,
            failed: channel.counts.failed,
            hedged: channel.counts.hedged,
            first_token_p50_ms: ms(channel.first_tokens.at(0.5)),
            first_token_p95_ms: ms(channel.first_tokens.at(0.95)),
        };
        self.channels.iter().map(report).collect()
    }

    /// A call's endpoints with their channels, the one it wants most at the front.
    pub(super) fn places(
        &mut self,
        now: Instant,
        caller: &Caller,
    ) -> Result<Vec<Place>, HttpFailure> {
        let endpoints = &caller.endpoints;
        let mut places = Vec::with_capacity(endpoints.members.len());
        for member in 0..endpoints.members.len() {
            let channel = self.channel(now, endpoints, member)?;
            places.push(Place { member, channel });
        }
        if places.len() > 1 {
            self.next_number += u64::from(caller.affinity == 0);
            let affinity = if caller.affinity == 0 { self.next_number } else { caller.affinity };
            let wish = |place: &Place| -endpoints.wish(place.member, affinity);
            places.sort_by(|a, b| wish(a).total_cmp(&wish(b)));
            // What failed at one endpoint is tried at the next.
            let turns = caller.attempt.saturating_sub(1) as usize % places.len();
            places.rotate_left(turns);
        }
        Ok(places)
    }

    fn channel(
        &mut self,
        now: Instant,
        endpoints: &EndpointSet,
        member: usize,
    ) -> Result<usize, HttpFailure> {
        let key = &endpoints.members[member].channel;
        let channel = match self.by_key.get(key) {
            Some(channel) => *channel,
            None => self.add_channel(now, &endpoints.members[member]).ok_or_else(|| {
                refusal::too_many_channels(endpoints, member, self.limits.channels_max)
            })?,
        };
        self.channels[channel].configure(&endpoints.policy.limits);
        Ok(channel)
    }

    fn add_channel(&mut self, now: Instant, member: &Member) -> Option<usize> {
        let key = &member.channel;
        let alike =
            |channel: &&Channel| channel.key.host == key.host && channel.key.model == key.model;
        let number = self.channels.iter().filter(alike).map(|channel| channel.number).max();
        let new = Channel::new(
            Arc::clone(key),
            number.unwrap_or(0) + 1,
            (now, member.endpoint.is_loopback()),
            &self.limits,
        );
        let at = if self.channels.len() < self.limits.channels_max {
            self.channels.push(new);
            self.channels.len() - 1
        } else {
            let idle = self.channels.iter().enumerate().filter(|(_, channel)| channel.is_idle());
            let (at, _) = idle.min_by_key(|(_, channel)| channel.used_at)?;
            self.by_key.remove(&self.channels[at].key);
            self.channels[at] = new;
            at
        };
        self.by_key.insert(Arc::clone(key), at);
        Some(at)
    }

    /// A session's own endpoint is the first that neither rests nor is left alone. It waits there a
    /// little; where it would wait longer, it goes where it waits least.
    pub(super) fn choose(&mut self, now: Instant, caller: &Caller, places: &[Place]) -> Choice {
        let mut best: Option<(Duration, Place)> = None;
        let mut closed: Option<(Instant, Place)> = None;
        let mut has_own = false;
        for place in places {
            let channel = &mut self.channels[place.channel];
            let wait = match channel.ready(now, caller.ask, &self.limits) {
                Err(Wait::Open(until)) => {
                    if closed.is_none_or(|(known, _)| until < known) {
                        closed = Some((until, *place));
                    }
                    continue;
                }
                Ok(()) if channel.queue.len() == 0 => Duration::ZERO,
                _ => {
                    let ahead = channel.queue.ahead_of(&caller.tenant);
                    channel.wait_of(now, caller.ask, ahead).max(TICK)
                }
            };
            let is_resting = channel.pace.paused_until(now).is_some();
            if best.is_none_or(|(known, _)| wait < known) {
                best = Some((wait, *place));
            }
            if !has_own && !is_resting {
                has_own = true;
                if wait <= self.limits.stick {
                    best = Some((wait, *place));
                    break;
                }
            }
        }
        match (best, closed) {
            (Some((wait, place)), _) if wait.is_zero() => Choice::Now(place),
            (Some((_, place)), _) => Choice::Later(place),
            (None, Some((until, place))) => Choice::Open(place, until),
            (None, None) => Choice::Open(Place { member: 0, channel: 0 }, now),
        }
    }

    fn check_retry(
        &mut self,
        now: Instant,
        caller: &Caller,
        place: Place,
    ) -> Result<(), HttpFailure> {
        let is_retry = caller.ask.kind == Kind::Retry;
        if is_retry && !self.channels[place.channel].retries.has(now) {
            let share = self.limits.retry_share;
            return Err(refusal::no_retries(&caller.endpoints, place.member, share));
        }
        Ok(())
    }

    fn check_wait(
        &mut self,
        now: Instant,
        caller: &Caller,
        place: Place,
    ) -> Result<(), HttpFailure> {
        let channel = &mut self.channels[place.channel];
        let ahead = channel.queue.ahead_of(&caller.tenant);
        let turn_at = channel.turn_at(now, caller.ask, ahead);
        if let Some(deadline) = caller.deadline.filter(|deadline| turn_at > *deadline) {
            let left = deadline.saturating_duration_since(now);
            let wait = turn_at - now;
            return Err(refusal::too_late(&caller.endpoints, place.member, left, wait));
        }
        let count = channel.queue.len();
        if count >= self.limits.queue_max {
            let wait = channel.wait_of(now, caller.ask, count);
            return Err(refusal::queue_full(&caller.endpoints, place.member, count, wait));
        }
        Ok(())
    }

    pub(super) fn unavailable(
        &self,
        now: Instant,
        caller: &Caller,
        place: Place,
        until: Instant,
    ) -> HttpFailure {
        let last = self.channels.get(place.channel).map_or("", Channel::last_failure);
        let wait = until.saturating_duration_since(now);
        refusal::unavailable(&caller.endpoints, place.member, wait, last)
    }

    pub(super) fn begin(&mut self, now: Instant, ask: Ask, place: Place) -> Placed {
        let begun = self.channels[place.channel].begin(now, ask);
        Placed { channel: place.channel, member: place.member, begun }
    }
}
