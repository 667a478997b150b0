//! Calls that wait for one channel: tenants take turns, and each tenant's calls keep their order.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// Waiting calls by number; a number is higher the later its call came.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    /// The tenants that wait, the one whose turn it is at the front.
    turns: VecDeque<Arc<str>>,
    lines: HashMap<Arc<str>, BTreeSet<u64>>,
    count: usize,
}

impl FairQueue {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn push(&mut self, tenant: &Arc<str>, number: u64) {
        let line = self.lines.entry(Arc::clone(tenant)).or_default();
        if line.is_empty() {
            self.turns.push_back(Arc::clone(tenant));
        }
        self.count += usize::from(line.insert(number));
    }

    /// The call whose turn it is.
    pub(crate) fn first(&self) -> Option<u64> {
        self.lines.get(self.turns.front()?)?.first().copied()
    }

    /// Takes out the call whose turn it is; its tenant goes to the end of the row.
    pub(crate) fn pop(&mut self) -> Option<u64> {
        let tenant = self.turns.pop_front()?;
        let line = self.lines.get_mut(&tenant)?;
        let number = line.pop_first()?;
        self.count -= 1;
        if line.is_empty() {
            self.lines.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        Some(number)
    }

    /// Takes out a call that waits no longer.
    pub(crate) fn remove(&mut self, tenant: &Arc<str>, number: u64) {
        let Some(line) = self.lines.get_mut(tenant) else { return };
        self.count -= usize::from(line.remove(&number));
        if line.is_empty() {
            self.lines.remove(tenant);
            self.turns.retain(|other| other != tenant);
        }
    }

    /// All that wait, in the order in which they came.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.lines.values().flatten().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// How many calls get their turn before the next one of a tenant would.
    pub(crate) fn ahead_of(&self, tenant: &Arc<str>) -> usize {
        let own = self.lines.get(tenant).map_or(0, BTreeSet::len);
        let others = self.lines.iter().filter(|(name, _)| *name != tenant);
        own + others.map(|(_, line)| line.len().min(own + 1)).sum::<usize>()
    }
}
