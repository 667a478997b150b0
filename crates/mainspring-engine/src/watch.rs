//! Following a session: events by cursor, text as it streams.
//!
//! A watcher asks for what comes after a position and gets a batch; it may break off and come
//! back at any time. Nothing is buffered without bound: what a slow watcher has missed is read
//! from the journal, and pending text of one answer is joined.

use std::collections::VecDeque;

use mainspring_session::{Record, Seq};

use crate::mail::Reply;

/// One thing a watcher gets.
#[derive(Debug, Clone)]
pub enum WatchItem {
    /// An event, durable.
    Event {
        /// Its position.
        seq: Seq,
        /// When, in microseconds since the epoch.
        at_us: i64,
        /// The event as stored.
        json: String,
    },
    /// Text of an answer that is being written. Not part of the log.
    Delta {
        /// The step.
        step: u32,
        /// The attempt.
        attempt: u32,
        /// The text since the last delta.
        text: String,
    },
}

/// What a watcher gets at once.
#[derive(Debug, Clone, Default)]
pub struct WatchBatch {
    /// The items in order; empty only if `ended`.
    pub items: Vec<WatchItem>,
    /// True when the turn has ended and nothing more comes.
    pub ended: bool,
}

impl WatchItem {
    pub(crate) fn of(record: &Record) -> Self {
        WatchItem::Event {
            seq: record.seq,
            at_us: record.at_us,
            json: record.json.get().to_owned(),
        }
    }
}

/// The recent events of a watched session and who waits for the next.
#[derive(Default)]
pub(crate) struct Watch {
    recent: VecDeque<(Seq, i64, String)>,
    delta: Option<(u32, u32, String)>,
    waiting: Vec<(Seq, Reply<WatchBatch>)>,
    /// How much of the answer of an attempt watchers have got: step, attempt, characters.
    shown: (u32, u32, u64),
}

/// What to do about a request for events.
pub(crate) enum Lookup {
    /// Here they are.
    Ready(WatchBatch, Reply<WatchBatch>),
    /// They are older than what is kept: read the journal.
    Old(Reply<WatchBatch>),
    /// There is nothing yet; the request has been kept.
    Kept,
}

impl Watch {
    /// Events kept for watchers that keep up.
    const RECENT_MAX: usize = 256;
    /// Bytes of streamed text kept for a watcher that is busy; the rest comes with the event.
    const DELTA_BYTES_MAX: usize = 256 * 1024;

    /// Answers a request for the events from `from` on, or keeps it. `next` is the position of
    /// the next event to be published.
    pub(crate) fn ask(&mut self, from: Seq, next: Seq, reply: Reply<WatchBatch>) -> Lookup {
        if from < next {
            let kept = self.recent.front().is_some_and(|(seq, ..)| *seq <= from);
            if !kept {
                return Lookup::Old(reply);
            }
            let items = self.recent.iter().filter(|(seq, ..)| *seq >= from).map(event).collect();
            return Lookup::Ready(WatchBatch { items, ended: false }, reply);
        }
        if let Some((step, attempt, text)) = self.delta.take() {
            self.note_shown(step, attempt, &text);
            let items = vec![WatchItem::Delta { step, attempt, text }];
            return Lookup::Ready(WatchBatch { items, ended: false }, reply);
        }
        self.waiting.push((from, reply));
        Lookup::Kept
    }

    /// Publishes one durable event.
    pub(crate) fn event(&mut self, seq: Seq, at_us: i64, json: &str) {
        self.delta = None;
        if self.recent.len() == Self::RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((seq, at_us, json.to_owned()));
    }

    /// Publishes streamed text.
    pub(crate) fn delta(&mut self, step: u32, attempt: u32, text: &str) {
        match &mut self.delta {
            Some((at_step, at_attempt, kept)) if (*at_step, *at_attempt) == (step, attempt) => {
                if kept.len() + text.len() <= Self::DELTA_BYTES_MAX {
                    kept.push_str(text);
                }
            }
            slot => *slot = Some((step, attempt, text.to_owned())),
        }
        if self.waiting.is_empty() {
            return;
        }
        if let Some((step, attempt, text)) = self.delta.take() {
            self.note_shown(step, attempt, &text);
            for (_, reply) in self.waiting.drain(..) {
                let item = WatchItem::Delta { step, attempt, text: text.clone() };
                reply(Ok(WatchBatch { items: vec![item], ended: false }));
            }
        }
    }

    /// An attempt failed: what nobody has got of its answer is dropped. Returns how many characters
    /// somebody has got.
    pub(crate) fn break_off(&mut self, step: u32, attempt: u32) -> u64 {
        self.delta = None;
        let (at_step, at_attempt, characters) = self.shown;
        if (at_step, at_attempt) == (step, attempt) { characters } else { 0 }
    }

    fn note_shown(&mut self, step: u32, attempt: u32, text: &str) {
        if (self.shown.0, self.shown.1) != (step, attempt) {
            self.shown = (step, attempt, 0);
        }
        self.shown.2 += text.chars().count() as u64;
    }

    /// Answers those who wait with the events published since; with an empty batch if the turn
    /// has ended. Gives back those who wait for more than is kept: the journal has it.
    pub(crate) fn flush(&mut self, next: Seq, ended: bool) -> Vec<(Seq, Reply<WatchBatch>)> {
        let kept_from = self.recent.front().map_or(next, |(seq, ..)| *seq);
        let mut behind = Vec::new();
        for (from, reply) in std::mem::take(&mut self.waiting) {
            if from >= next && !ended {
                self.waiting.push((from, reply));
            } else if from < kept_from {
                behind.push((from, reply));
            } else {
                let kept = self.recent.iter().filter(|(seq, ..)| *seq >= from);
                reply(Ok(WatchBatch { items: kept.map(event).collect(), ended }));
            }
        }
        behind
    }

    /// Those who wait, and what for, to be told of an error or to wait elsewhere.
    pub(crate) fn take_waiting(&mut self) -> Vec<(Seq, Reply<WatchBatch>)> {
        std::mem::take(&mut self.waiting)
    }
}

fn event((seq, at_us, json): &(Seq, i64, String)) -> WatchItem {
    WatchItem::Event { seq: *seq, at_us: *at_us, json: json.clone() }
}
