//! Names of accounts, and the way from a call up to whoever pays for it.

use std::fmt;
use std::sync::Arc;

use mainspring_session::{Period, SessionId};

/// Somebody whose spending is counted: a tenant, for good or in one period, or a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account(Arc<str>);

const SESSION: &str = "session ";
/// Stands between a tenant's name and the period; no name has control characters.
const PERIOD: char = '\u{1f}';
const MICROS_PER_DAY: i64 = 86_400_000_000;

impl Account {
    /// A tenant's account at a time, in microseconds since the epoch. Each period has its own.
    #[must_use]
    pub fn tenant(name: &str, period: Period, at_us: i64) -> Self {
        let (year, month, day) = date(at_us.div_euclid(MICROS_PER_DAY));
        match period {
            Period::Ever => Self(name.into()),
            Period::Day => Self(format!("{name}{PERIOD}{year:04}-{month:02}-{day:02}").into()),
            Period::Month => Self(format!("{name}{PERIOD}{year:04}-{month:02}").into()),
        }
    }

    /// A session's account.
    #[must_use]
    pub fn session(id: &SessionId) -> Self {
        Self(format!("{PERIOD}{SESSION}{id}").into())
    }

    /// The account that is stored under a name.
    #[must_use]
    pub fn stored(name: &Arc<str>) -> Self {
        Self(Arc::clone(name))
    }

    /// The account as it is stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The account as it is stored, shared.
    #[must_use]
    pub fn to_shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0.strip_prefix(PERIOD).and_then(|rest| rest.strip_prefix(SESSION));
        match (id, self.0.split_once(PERIOD)) {
            (Some(id), _) => write!(f, "session \"{id}\""),
            (None, Some((name, period))) => write!(f, "tenant \"{name}\" for {period}"),
            (None, None) => write!(f, "tenant \"{}\"", self.0),
        }
    }
}

/// Who pays for a call: the outermost account first, such as tenant, session, child.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BudgetPath(Arc<[Account]>);

impl BudgetPath {
    /// A path of these accounts, the outermost first.
    #[must_use]
    pub fn new(accounts: Vec<Account>) -> Self {
        Self(accounts.into())
    }

    /// Its accounts, the outermost first.
    #[must_use]
    pub fn accounts(&self) -> &[Account] {
        &self.0
    }
}

/// Year, month and day of a day since 1970.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        let dates = [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (-1, (1969, 12, 31)),
            (20_782, (2026, 11, 25)),
        ];
        for (day, expected) in dates {
            assert_eq!(date(day), expected, "day {day}");
        }
    }

    #[test]
    fn a_period_has_an_account_of_its_own() {
        let at_us = 20_782 * MICROS_PER_DAY + 5;
        let names = [Period::Ever, Period::Day, Period::Month]
            .map(|period| Account::tenant("acme", period, at_us).to_string());
        assert_eq!(
            names,
            ["tenant \"acme\"", "tenant \"acme\" for 2026-11-25", "tenant \"acme\" for 2026-11"]
        );
        let before = Account::tenant("acme", Period::Day, 20_782 * MICROS_PER_DAY - 1);
        assert_eq!(before.to_string(), "tenant \"acme\" for 2026-11-24");
    }
}
