//! One account: its budget, what is spent, and the rule that lets a call pass.
//!
//! A call is *sure* if the most that it can use fits beside all that is spent and held; then the
//! most is held until it settles. Any other call goes *alone*: only if no other such call of this
//! account is under way, and only what it is expected to use is held.
//!
//! Proof that the budget is exceeded by no more than one call's unknown output. Let S be spent, H
//! held, L the budget. Calls are only let pass while S + H (their own part included) is at most L.
//! A sure call settles at no more than was held for it, so S + H never grows by that. The one call
//! that goes alone may settle above its part, by the excess X of its output over its estimate, so
//! that S + H is at most L + X. While S + H is above L nothing is let pass; once it is not, the
//! bound holds anew. So there is never more than one X above L.

use std::collections::VecDeque;

use mainspring_session::{Amount, Budget};

use super::wanted::Wanted;

/// What a budget can count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Usd,
    Tokens,
    Calls,
}

const UNITS: [Unit; 3] = [Unit::Usd, Unit::Tokens, Unit::Calls];

impl Unit {
    pub(super) fn of(self, amount: Amount) -> u64 {
        match self {
            Unit::Usd => amount.usd_nanos,
            Unit::Tokens => amount.tokens,
            Unit::Calls => amount.calls,
        }
    }

    fn set(self, amount: &mut Amount, value: u64) {
        match self {
            Unit::Usd => amount.usd_nanos = value,
            Unit::Tokens => amount.tokens = value,
            Unit::Calls => amount.calls = value,
        }
    }

    pub(super) fn bound(self, budget: &Budget) -> Option<u64> {
        match self {
            Unit::Usd => budget.usd_nanos,
            Unit::Tokens => budget.tokens,
            Unit::Calls => budget.calls,
        }
    }

    fn most(self, wanted: &Wanted) -> Option<u64> {
        match self {
            Unit::Usd => wanted.most.usd_nanos,
            Unit::Tokens => wanted.most.tokens,
            Unit::Calls => Some(wanted.likely.calls),
        }
    }
}

/// What one level holds for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) counted: Amount,
    pub(super) alone: bool,
}

/// Whether a call may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Fits(Held),
    /// Not now, but what others hold may come free.
    Waits(Unit),
    /// Not even if all that is held came free.
    Never(Unit),
}

/// The state of one account.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) budget: Budget,
    /// Spent elsewhere or before, as the store tells.
    pub(super) base: Amount,
    /// Spent here.
    pub(super) spent: Amount,
    /// Held for the calls under way.
    pub(super) held: Amount,
    /// What the calls under way are expected to use.
    pub(super) likely: Amount,
    pub(super) calls: usize,
    /// Whether one of them goes alone.
    pub(super) alone: bool,
    /// What the store's total has of what was spent here.
    pub(super) committed: Amount,
    /// Whether its budget is known; until then everything passes.
    pub(super) kept: bool,
    /// Whether it is forgotten once no call of it is under way.
    pub(super) closing: bool,
    /// Calls that wait here, the first to come first.
    pub(super) queue: VecDeque<u64>,
}

impl Level {
    /// All that is spent.
    pub(super) fn total(&self) -> Amount {
        self.base.plus(self.spent)
    }

    pub(super) fn judge(&self, wanted: &Wanted) -> Verdict {
        let mut held = Held { counted: wanted.likely, alone: false };
        for unit in UNITS {
            let Some(bound) = unit.bound(&self.budget) else { continue };
            let (likely, most) = (unit.of(wanted.likely), unit.most(wanted));
            let spent = unit.of(self.total());
            let sure = spent.saturating_add(unit.of(self.held));
            match most {
                // What costs nothing is never in the way.
                Some(0) => {}
                Some(most) if sure.saturating_add(most) <= bound => {
                    unit.set(&mut held.counted, most.max(likely));
                }
                _ if spent.saturating_add(likely) > bound => return Verdict::Never(unit),
                _ if self.alone || sure.saturating_add(likely) > bound => {
                    return Verdict::Waits(unit);
                }
                _ => held.alone = true,
            }
        }
        Verdict::Fits(held)
    }

    pub(super) fn hold(&mut self, held: Held, likely: Amount) {
        self.held = self.held.plus(held.counted);
        self.likely = self.likely.plus(likely);
        self.alone |= held.alone;
        self.calls += 1;
    }

    pub(super) fn settle(&mut self, held: Held, likely: Amount, used: Amount) {
        self.held = self.held.minus(held.counted);
        self.likely = self.likely.minus(likely);
        self.alone &= !held.alone;
        self.calls -= 1;
        self.spent = self.spent.plus(used);
    }
}
