//! Whose turn it is: calls that wait for a channel, who leads them, and where they go when it rests.
//!
//! Invariant: a number in a channel's queue is that of a call in `waiters` which waits there, and
//! every queue with somebody in it has a leader, a waiting call that keeps the time.

use std::task::Waker;

use mainspring_wire::HttpFailure;
use tokio::time::Instant;

use super::channel::Wait;
use super::refusal;
use super::state::{Caller, Choice, Heard, Place, Placed, State, TICK};

/// A call that waits, or that has its turn and has not heard of it yet.
#[derive(Debug)]
pub(super) struct Waiter {
    caller: Caller,
    place: Place,
    since: Instant,
    waker: Option<Waker>,
    ended: Option<Result<Placed, HttpFailure>>,
}

impl State {
    /// What a waiting call hears; the leader of a queue lets in whoever can go.
    pub(super) fn look(&mut self, now: Instant, number: u64, waker: &Waker) -> Heard {
        let Some(channel) = self.waiters.get(&number).map(|waiter| waiter.place.channel) else {
            return Heard::Waits(None);
        };
        if self.channels[channel].leader == Some(number) {
            self.pump(now, channel);
        }
        let Some(waiter) = self.waiters.get_mut(&number) else { return Heard::Waits(None) };
        if waiter.ended.is_some() {
            let ended = self.waiters.remove(&number).and_then(|waiter| waiter.ended);
            return ended.map_or(Heard::Waits(None), Heard::Ended);
        }
        if waiter.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            waiter.waker = Some(waker.clone());
        }
        let channel = &self.channels[waiter.place.channel];
        Heard::Waits(channel.wake_at.filter(|_| channel.leader == Some(number)))
    }

    /// A waiting call's deadline has passed.
    pub(super) fn expire(&mut self, now: Instant, number: u64) -> HttpFailure {
        let waiter = self.waiters.get(&number);
        let failure = waiter.map(|waiter| {
            refusal::expired(&waiter.caller.endpoints, waiter.place.member, now - waiter.since)
        });
        self.leave(now, number);
        failure.unwrap_or_else(refusal::lost)
    }

    /// A waiting call is dropped.
    pub(super) fn leave(&mut self, now: Instant, number: u64) {
        let Some(waiter) = self.waiters.remove(&number) else { return };
        match waiter.ended {
            Some(Ok(placed)) => {
                self.channels[placed.channel].take_back(now, &placed.begun);
                self.pump(now, placed.channel);
            }
            Some(Err(_)) => {}
            None => {
                let channel = &mut self.channels[waiter.place.channel];
                channel.queue.remove(&waiter.caller.tenant, number);
                self.pump(now, waiter.place.channel);
            }
        }
    }

    /// Puts a call into a queue.
    pub(super) fn enqueue(&mut self, now: Instant, caller: Caller, place: Place) -> u64 {
        self.next_number += 1;
        let number = self.next_number;
        self.channels[place.channel].queue.push(&caller.tenant, number);
        let waiter = Waiter { caller, place, since: now, waker: None, ended: None };
        self.waiters.insert(number, waiter);
        self.lead(now, place.channel);
        number
    }

    /// Lets in everybody who can go, and sees to it that somebody keeps the time.
    pub(super) fn pump(&mut self, now: Instant, channel: usize) {
        while let Some(number) = self.channels[channel].queue.first() {
            let Some(waiter) = self.waiters.get(&number) else {
                self.channels[channel].queue.pop();
                continue;
            };
            let (ask, place) = (waiter.caller.ask, waiter.place);
            let place = match self.channels[channel].ready(now, ask, &self.limits) {
                Ok(()) => Some(place),
                Err(Wait::Open(_)) => {
                    self.scatter(now, channel, |_| true);
                    break;
                }
                Err(_) => self.free_elsewhere(now, number, channel),
            };
            let Some(place) = place else { break };
            self.channels[channel].queue.pop();
            let placed = self.begin(now, ask, place);
            self.tell(number, Ok(placed));
        }
        self.lead(now, channel);
    }

    /// A free endpoint for a call that would wait for long where it is.
    fn free_elsewhere(&mut self, now: Instant, number: u64, channel: usize) -> Option<Place> {
        let caller = self.waiters.get(&number)?.caller.clone();
        if caller.endpoints.count() == 1 {
            return None;
        }
        let wait = self.channels[channel].wait_of(now, caller.ask, 0);
        if wait <= self.limits.stick {
            return None;
        }
        let places = self.places(now, &caller).ok()?;
        places
            .into_iter()
            .find(|place| place.channel != channel && self.is_free(now, &caller, *place))
    }

    pub(super) fn is_free(&mut self, now: Instant, caller: &Caller, place: Place) -> bool {
        let channel = &mut self.channels[place.channel];
        channel.queue.len() == 0 && channel.ready(now, caller.ask, &self.limits).is_ok()
    }

    /// Places the waiting calls of a channel anew: those for which `moves` holds.
    pub(super) fn scatter(
        &mut self,
        now: Instant,
        channel: usize,
        moves: impl Fn(&Waiter) -> bool,
    ) {
        let numbers = self.channels[channel].queue.numbers();
        let waits = |number: &u64| self.waiters.get(number).is_some_and(&moves);
        let moving: Vec<u64> = numbers.into_iter().filter(waits).collect();
        for number in moving {
            let Some(waiter) = self.waiters.get(&number) else { continue };
            let caller = waiter.caller.clone();
            self.channels[channel].queue.remove(&caller.tenant, number);
            let choice = match self.places(now, &caller) {
                Ok(places) => self.choose(now, &caller, &places),
                Err(failure) => {
                    self.tell(number, Err(failure));
                    continue;
                }
            };
            match choice {
                Choice::Now(place) => {
                    let placed = self.begin(now, caller.ask, place);
                    self.tell(number, Ok(placed));
                }
                Choice::Later(place) => {
                    self.channels[place.channel].queue.push(&caller.tenant, number);
                    if let Some(waiter) = self.waiters.get_mut(&number) {
                        waiter.place = place;
                    }
                    self.lead(now, place.channel);
                }
                Choice::Open(place, until) => {
                    let failure = self.unavailable(now, &caller, place, until);
                    self.tell(number, Err(failure));
                }
            }
        }
    }

    fn tell(&mut self, number: u64, ended: Result<Placed, HttpFailure>) {
        if let Some(waiter) = self.waiters.get_mut(&number) {
            waiter.ended = Some(ended);
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }

    /// Sees to it that a waiting call keeps the time of its queue, and wakes when it must.
    fn lead(&mut self, now: Instant, channel: usize) {
        let Some(first) = self.channels[channel].queue.first() else {
            self.channels[channel].leader = None;
            self.channels[channel].wake_at = None;
            return;
        };
        let waits_here = |number: u64| {
            let waiter = self.waiters.get(&number);
            waiter.is_some_and(|waiter| waiter.place.channel == channel && waiter.ended.is_none())
        };
        let leader = self.channels[channel].leader.filter(|leader| waits_here(*leader));
        let wake_at = self.next_turn(now, channel, first);
        let state = &mut self.channels[channel];
        let is_earlier = match (wake_at, state.wake_at) {
            (Some(new), Some(known)) => new < known,
            (Some(_), None) => true,
            (None, _) => false,
        };
        state.leader = Some(leader.unwrap_or(first));
        state.wake_at = wake_at;
        if (leader.is_none() || is_earlier)
            && let Some(waiter) = self.waiters.get(&leader.unwrap_or(first))
            && let Some(waker) = &waiter.waker
        {
            waker.wake_by_ref();
        }
    }

    /// When the first in a queue may be let in; none if that hangs on a call's end alone.
    fn next_turn(&mut self, now: Instant, channel: usize, first: u64) -> Option<Instant> {
        let waiter = self.waiters.get(&first)?;
        let (ask, is_movable) = (waiter.caller.ask, waiter.is_movable());
        let own = match self.channels[channel].ready(now, ask, &self.limits) {
            Ok(()) => Some(now),
            Err(Wait::Until(at) | Wait::Open(at)) => Some(at),
            Err(Wait::ForRoom) => None,
        };
        // Another endpoint may become free without a word to this queue.
        let other = is_movable.then(|| now + self.limits.stick);
        let at = match (own, other) {
            (Some(own), Some(other)) => own.min(other),
            (own, other) => own.or(other)?,
        };
        Some(at.max(now + TICK))
    }
}

impl Waiter {
    /// Whether there is another endpoint that it could wait for.
    pub(super) fn is_movable(&self) -> bool {
        self.caller.endpoints.count() > 1
    }
}
