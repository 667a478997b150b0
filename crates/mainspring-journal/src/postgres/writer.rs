//! The writer: one thread with a connection of its own. It stores whatever has gathered while the
//! last statement was under way, many sessions in one, and answers only after the commit.
//!
//! Invariants: an append is answered exactly once; it is acknowledged only if it is stored, and
//! refused only if it is not. When an answer is lost, because the connection broke after a
//! statement was sent, the same appends are handed in again: the fence lets none of them pass
//! twice, and of what it refuses then the log says whether the first time it passed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use uuid::Uuid;

use super::append::{Columns, Source, source};
use super::lease::{self, Lease};
use super::link::{Link, Trouble};
use super::outage::Outage;
use super::place::Place;
use super::verdict::{Outcome, Refused};
use crate::delivery::{self, Counters};
use crate::error::JournalError;
use crate::limits::JournalLimits;
use crate::queue::Queue;
use crate::{Append, AppendMode, JournalStats, fence};

/// How often an append that the statement refuses and the fence allows is tried again: each time,
/// somebody else has let go of the session in between.
const TRIES_MAX: u32 = 8;

/// What the writer shares with the threads that append.
pub(super) struct Shared {
    pub(super) place: Arc<Place>,
    pub(super) limits: JournalLimits,
    pub(super) queue: Queue,
    pub(super) counters: Counters,
    pub(super) lease: Arc<Lease>,
    /// What a commit waits for, if that is not what the server does anyway.
    pub(super) commit: Option<&'static str>,
}

impl Shared {
    pub(super) fn outage(&self) -> Outage {
        Outage::new(std::time::Duration::from_millis(self.limits.outage_ms_max))
    }
}

/// See the module.
pub(super) struct Writer {
    shared: Arc<Shared>,
    link: Option<Link>,
}

/// What it takes to bring some appends to their outcomes.
struct Effort {
    /// Those without one.
    left: Vec<usize>,
    outage: Outage,
    tries: u32,
    /// Whether an answer was lost.
    uncertain: bool,
    /// The nodes as which they were handed in.
    nodes: Vec<Uuid>,
}

impl Effort {
    fn new(left: Vec<usize>, outage: Outage) -> Self {
        Self { left, outage, tries: 0, uncertain: false, nodes: Vec::new() }
    }

    /// The same for one of them alone.
    fn of_one(&self, idx: usize) -> Self {
        let nodes = self.nodes.clone();
        Self { left: vec![idx], outage: self.outage, tries: 0, uncertain: self.uncertain, nodes }
    }
}

/// Why a round did not come to its end.
enum Stop {
    Trouble(Trouble),
    /// The store no longer takes this node.
    Dead(Uuid),
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, link: Link) -> Self {
        Self { shared, link: Some(link) }
    }

    /// Writes until the queue ends, then lets go of everything this process owns.
    pub(super) fn run(mut self) -> Outcome {
        let _mourner = Mourner { shared: self.shared.clone() };
        while let Some(batch) = self.shared.queue.take(&self.shared.limits) {
            let outcomes = self.commit(&batch);
            delivery::answer_batch(batch, outcomes);
        }
        self.sign_off()
    }

    fn commit(&mut self, batch: &[Append]) -> Vec<Outcome> {
        let tried = catch_unwind(AssertUnwindSafe(|| {
            let mut outcomes: Vec<Option<Outcome>> = batch.iter().map(|_| None).collect();
            for round in rounds(batch) {
                self.settle(batch, Effort::new(round, self.shared.outage()), &mut outcomes);
            }
            outcomes
        }));
        match tried {
            Ok(outcomes) => {
                let settled = outcomes.into_iter();
                settled.map(|outcome| outcome.expect("a round settles all it was given")).collect()
            }
            Err(_) => {
                self.link = None;
                let error = JournalError::writer_panicked(&self.shared.place.name);
                vec![Err(error); batch.len()]
            }
        }
    }

    /// Brings appends of different sessions to their outcomes, however often that takes.
    fn settle(&mut self, batch: &[Append], effort: Effort, outcomes: &mut [Option<Outcome>]) {
        let mut effort = effort;
        while !effort.left.is_empty() {
            let tried = self.attempt(batch, &mut effort, outcomes);
            effort.left.retain(|&idx| outcomes[idx].is_none());
            effort.tries += 1;
            let name = &self.shared.place.name;
            let given_up = match tried {
                Ok(()) if effort.tries < TRIES_MAX => None,
                Ok(()) => Some(JournalError::writer_panicked(name)),
                Err(Stop::Dead(node)) => {
                    let replaced = self.shared.lease.replace(node, effort.outage.left());
                    (!replaced).then(|| JournalError::postgres_no_lease(name))
                }
                Err(Stop::Trouble(Trouble::Refused(cause)))
                    if cause.is_about_values() && effort.left.len() > 1 =>
                {
                    // One of them is what the server cannot take; the others are not at fault.
                    for idx in std::mem::take(&mut effort.left) {
                        self.settle(batch, effort.of_one(idx), outcomes);
                    }
                    None
                }
                Err(Stop::Trouble(trouble)) => {
                    if matches!(trouble, Trouble::Broken(_)) {
                        effort.uncertain = true;
                        self.link = None;
                    }
                    let given_up = effort.outage.wait_after(trouble).err();
                    given_up.map(|trouble| trouble.into_error(name, "written"))
                }
            };
            if let Some(error) = given_up {
                self.give_up(batch, &mut effort, outcomes);
                for idx in std::mem::take(&mut effort.left) {
                    outcomes[idx].get_or_insert(Err(error.clone()));
                }
            }
        }
    }

    /// Tries once, and notes the outcomes that are certain then.
    fn attempt(
        &mut self,
        batch: &[Append],
        effort: &mut Effort,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Stop> {
        let node = self.shared.lease.node();
        let commit = self.shared.commit;
        let link = self.link(&effort.outage)?;
        let mut columns = Columns::default();
        let mut sent = Vec::with_capacity(effort.left.len());
        let mut refused = Vec::new();
        for &idx in &effort.left {
            let append = &batch[idx];
            let source = fork_source(link, append)?;
            if is_bad_beginning(append, source) {
                refused.push((idx, source));
            } else {
                columns.push(append, source);
                sent.push((idx, source));
            }
        }
        if !effort.nodes.contains(&node) {
            effort.nodes.push(node);
        }
        if !columns.is_empty() {
            let done = columns.store(link, node, commit)?;
            if !done.live {
                return Err(Stop::Dead(node));
            }
            for (&(idx, source), passed) in sent.iter().zip(done.passed) {
                if passed {
                    outcomes[idx] = Some(Ok(()));
                } else {
                    refused.push((idx, source));
                }
            }
            self.count(batch, &effort.left, outcomes);
        }
        self.explain(batch, effort, &refused, outcomes)?;
        Ok(())
    }

    fn explain(
        &mut self,
        batch: &[Append],
        effort: &Effort,
        refused: &[(usize, Option<Source>)],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Trouble> {
        if refused.is_empty() {
            return Ok(());
        }
        let appends = refused.iter().map(|&(idx, source)| (&batch[idx], source)).collect();
        let asked = Refused { appends, nodes: &effort.nodes, uncertain: effort.uncertain };
        let explained = asked.explain(self.link(&effort.outage)?)?;
        for (&(idx, _), outcome) in refused.iter().zip(explained) {
            outcomes[idx] = outcome;
        }
        let asked: Vec<usize> = refused.iter().map(|&(idx, _)| idx).collect();
        self.count(batch, &asked, outcomes);
        Ok(())
    }

    /// Looks a last time whether any of what is given up was stored by a try whose answer was lost.
    fn give_up(&mut self, batch: &[Append], effort: &mut Effort, outcomes: &mut [Option<Outcome>]) {
        if !effort.uncertain || self.link.as_ref().is_none_or(|link| !link.is_sound()) {
            return;
        }
        let left: Vec<(usize, Option<Source>)> =
            effort.left.iter().map(|&idx| (idx, None)).collect();
        if self.explain(batch, effort, &left, outcomes).is_ok() {
            for &idx in &effort.left {
                // Why the others were given up is known.
                outcomes[idx].take_if(|outcome| outcome.is_err());
            }
        }
    }

    /// Counts those of these appends that have just been stored.
    fn count(&self, batch: &[Append], settled: &[usize], outcomes: &[Option<Outcome>]) {
        let mut stored = JournalStats::default();
        for &idx in settled {
            if matches!(outcomes[idx], Some(Ok(()))) {
                stored.count(&batch[idx]);
            }
        }
        stored.commits = u64::from(stored.appends > 0);
        self.shared.counters.add(&stored);
    }

    fn link(&mut self, outage: &Outage) -> Result<&mut Link, Trouble> {
        let within = outage.attempt();
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::connect(&self.shared.place, within)?,
        };
        link.allow(within);
        Ok(self.link.insert(link))
    }

    /// Lets go of everything, once. If it fails, the lease's end does the same.
    fn sign_off(&mut self) -> Outcome {
        self.shared.lease.stop();
        let node = self.shared.lease.node();
        let outage = self.shared.outage();
        let mut done = self.link(&outage).and_then(|link| lease::sign_off(link, node));
        if matches!(done, Err(Trouble::Broken(_))) {
            // The server may have been restarted since this connection was used last.
            self.link = None;
            done = self.link(&outage).and_then(|link| lease::sign_off(link, node));
        }
        if let Some(link) = self.link.take() {
            link.close();
        }
        done.map_err(|trouble| trouble.into_error(&self.shared.place.name, "closed"))
    }
}

/// Cuts a batch into rounds in which no session occurs twice, and none is the parent of a fork
/// after it was appended to.
fn rounds(batch: &[Append]) -> Vec<Vec<usize>> {
    let mut rounds: Vec<Vec<usize>> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (idx, append) in batch.iter().enumerate() {
        let again = seen.contains(&append.session)
            || matches!(&append.mode, AppendMode::Fork { parent, .. } if seen.contains(parent));
        if again || rounds.is_empty() {
            rounds.push(Vec::new());
            seen.clear();
        }
        seen.insert(&append.session);
        rounds.last_mut().expect("there is one").push(idx);
    }
    rounds
}

fn fork_source(link: &mut Link, append: &Append) -> Result<Option<Source>, Trouble> {
    match &append.mode {
        AppendMode::Fork { parent, .. } => source(link, parent, append),
        _ => Ok(None),
    }
}

/// Whether there is no use in handing a beginning in.
fn is_bad_beginning(append: &Append, source: Option<Source>) -> bool {
    match &append.mode {
        AppendMode::Fork { parent, .. } => {
            let point = source.map(|source| source.point);
            fence::check_fork(append, parent, false, point).is_err()
        }
        AppendMode::Create { .. } => fence::check(append, None).is_err(),
        _ => false,
    }
}

/// Answers what still waits if the writer's thread ends by a panic.
struct Mourner {
    shared: Arc<Shared>,
}

impl Drop for Mourner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = JournalError::writer_panicked(&self.shared.place.name);
            self.shared.queue.end(error.clone());
            let pending = self.shared.queue.drain();
            // Nothing can be written here any more: others may have the sessions.
            self.shared.lease.stop();
            delivery::answer_batch(pending, std::iter::repeat(Err(error)));
        }
    }
}
