//! What a session or a tenant may spend, and what has been spent, as plain data.
//!
//! Money is counted in whole nano-dollars, so that sums are exact in any order. Who lets a call
//! pass is the ledger of `mainspring-models`; here is what stands in the log.

use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, Failure};
use crate::ids::SessionId;
use crate::message::Usage;

/// Nano-dollars in a dollar.
pub const NANOS_PER_USD: f64 = 1e9;

/// Characters in a tenant's name, at most.
pub const TENANT_CHARS_MAX: usize = 128;

/// Something that was, or may be, spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Amount {
    /// US dollars, in billionths.
    #[serde(skip_serializing_if = "is_zero")]
    pub usd_nanos: u64,
    /// Tokens read and written.
    #[serde(skip_serializing_if = "is_zero")]
    pub tokens: u64,
    /// Model calls; every attempt is one.
    #[serde(skip_serializing_if = "is_zero")]
    pub calls: u64,
}

impl Amount {
    /// What one call used.
    #[must_use]
    pub fn of_call(usage: Usage, cost_usd: Option<f64>) -> Self {
        let usd_nanos = cost_usd.map_or(0, usd_to_nanos);
        Self { usd_nanos, tokens: usage.total(), calls: 1 }
    }

    /// One call that used nothing.
    #[must_use]
    pub fn one_call() -> Self {
        Self { calls: 1, ..Self::default() }
    }

    /// As many of the same together.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        (0..count).fold(Self::default(), |sum, _| sum.plus(self))
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            usd_nanos: self.usd_nanos.saturating_add(other.usd_nanos),
            tokens: self.tokens.saturating_add(other.tokens),
            calls: self.calls.saturating_add(other.calls),
        }
    }

    /// What is left when another is taken away; never below nothing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            usd_nanos: self.usd_nanos.saturating_sub(other.usd_nanos),
            tokens: self.tokens.saturating_sub(other.tokens),
            calls: self.calls.saturating_sub(other.calls),
        }
    }

    /// Whether it is nothing at all.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// US dollars.
    #[must_use]
    pub fn usd(&self) -> f64 {
        self.usd_nanos as f64 / NANOS_PER_USD
    }
}

/// US dollars in billionths, rounded to the nearest; nothing for what is no amount of money.
#[must_use]
pub fn usd_to_nanos(usd: f64) -> u64 {
    // A cast of a float ends at the bounds of the integer, and gives 0 for what is no number.
    (usd * NANOS_PER_USD).round() as u64
}

/// After which time a tenant's budget is there again in full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// Never.
    #[default]
    Ever,
    /// With every day, in UTC.
    Day,
    /// With every month, in UTC.
    Month,
}

impl Period {
    fn is_ever(&self) -> bool {
        *self == Period::Ever
    }
}

/// What may be spent. What is not named is not bounded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// US dollars, in billionths. Nothing means: only calls that cost nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd_nanos: Option<u64>,
    /// Tokens read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Model calls; every attempt is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Wall time of a session's turns while a process runs them, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// Share of the budget, 0 to 1, from which on only the cheapest model is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft: Option<f64>,
    /// After which time it is there again in full.
    #[serde(skip_serializing_if = "Period::is_ever")]
    pub per: Period,
}

impl Budget {
    /// Whether it bounds anything.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.usd_nanos.is_some() || self.bounds_use() || self.ms.is_some()
    }

    fn bounds_use(&self) -> bool {
        self.tokens.is_some() || self.calls.is_some()
    }

    /// Refuses a budget that bounds nothing or that no call could pass.
    ///
    /// # Errors
    /// `budget_invalid`.
    pub fn check(&self) -> Result<(), Failure> {
        let invalid = |what: String| Err(Failure::new(ErrorCode::BUDGET_INVALID, what));
        if !self.is_bounded() {
            return invalid(
                "a budget bounds nothing, give usd, tokens, calls or seconds".to_owned(),
            );
        }
        let bounds = [("tokens", self.tokens), ("calls", self.calls), ("seconds", self.ms)];
        if let Some((name, _)) = bounds.iter().find(|(_, bound)| *bound == Some(0)) {
            return invalid(format!("the {name} of a budget are 0, must be above 0"));
        }
        match self.soft {
            Some(soft) if !(soft > 0.0 && soft <= 1.0) => {
                invalid(format!("the soft limit of a budget is {soft}, must be above 0, at most 1"))
            }
            _ => Ok(()),
        }
    }

    /// Whether so much has been spent that the soft limit is passed.
    #[must_use]
    pub fn is_low(&self, spent: Amount) -> bool {
        let Some(soft) = self.soft else { return false };
        let passed = |bound: Option<u64>, seen: u64| {
            bound.is_some_and(|bound| seen as f64 >= soft * bound as f64 && bound > 0)
        };
        passed(self.usd_nanos, spent.usd_nanos)
            || passed(self.tokens, spent.tokens)
            || passed(self.calls, spent.calls)
    }

    /// What is left of it when so much is spent: none where it bounds nothing.
    #[must_use]
    pub fn left(&self, spent: Amount) -> Left {
        Left {
            usd_nanos: self.usd_nanos.map(|bound| bound.saturating_sub(spent.usd_nanos)),
            tokens: self.tokens.map(|bound| bound.saturating_sub(spent.tokens)),
            calls: self.calls.map(|bound| bound.saturating_sub(spent.calls)),
        }
    }
}

/// What is left of a budget; none where nothing is bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// US dollars, in billionths.
    pub usd_nanos: Option<u64>,
    /// Tokens.
    pub tokens: Option<u64>,
    /// Model calls.
    pub calls: Option<u64>,
}

/// Who pays for a session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Funding {
    /// The tenant; empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// The sessions that this one is a child of, the outermost first: it spends of theirs as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<SessionId>,
    /// The session's own budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

impl Funding {
    /// Whether nobody keeps an account of the session.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenant.is_empty() && self.within.is_empty() && self.budget.is_none()
    }

    /// Refuses a tenant's name or a budget that cannot be used.
    ///
    /// # Errors
    /// `budget_invalid`.
    pub fn check(&self) -> Result<(), Failure> {
        check_tenant(&self.tenant)?;
        self.budget.as_ref().map_or(Ok(()), Budget::check)?;
        match &self.budget {
            Some(budget) if !budget.per.is_ever() => Err(Failure::new(
                ErrorCode::BUDGET_INVALID,
                "the budget of a session comes back after a time, only a tenant's may",
            )),
            _ => Ok(()),
        }
    }
}

/// Refuses a tenant's name that is too long or not printable.
///
/// # Errors
/// `budget_invalid`.
pub fn check_tenant(tenant: &str) -> Result<(), Failure> {
    let seen = tenant.chars().count();
    if seen > TENANT_CHARS_MAX || tenant.chars().any(char::is_control) {
        let message = format!(
            "a tenant's name has {seen} characters, allowed are {TENANT_CHARS_MAX} printable ones"
        );
        return Err(Failure::new(ErrorCode::BUDGET_INVALID, message));
    }
    Ok(())
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
