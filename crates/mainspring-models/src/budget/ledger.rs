//! The ledger: all accounts of one engine behind one short lock, and the calls that wait for them.
//!
//! A reservation is made at every account of its path or at none. What is refused only because of
//! what others hold waits, in the order of coming, and is looked at again with every settlement; what
//! not even that could help is refused at once. So nobody waits for nothing: whoever waits at an
//! account waits for a call that is under way there.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainspring_session::{Amount, Budget, ErrorCode, Failure, Left};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::account::{Account, BudgetPath};
use super::level::{Held, Level, Unit, Verdict};
use super::wanted::Wanted;

/// Bounds of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLimits {
    /// Calls that wait for others to settle, at once. Default 100,000.
    pub waiting_max: usize,
}

impl Default for LedgerLimits {
    fn default() -> Self {
        Self { waiting_max: 100_000 }
    }
}

/// An account in a few numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct AccountReport {
    /// What may be spent.
    pub budget: Budget,
    /// What is spent.
    pub spent: Amount,
    /// What the calls under way are expected to use.
    pub reserved: Amount,
    /// Calls under way.
    pub calls: usize,
    /// Calls that wait.
    pub waiting: usize,
}

impl AccountReport {
    /// What is neither spent nor reserved; none where nothing is bounded.
    #[must_use]
    pub fn left(&self) -> Left {
        self.budget.left(self.spent.plus(self.reserved))
    }

    /// Whether the soft limit is passed.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.budget.is_low(self.spent.plus(self.reserved))
    }
}

/// See the module. Clones are the same ledger.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    books: Arc<Mutex<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    limits: LedgerLimits,
    levels: HashMap<Account, Level>,
    waiting: HashMap<u64, Waiter>,
    last_waiter: u64,
}

#[derive(Debug)]
struct Waiter {
    path: BudgetPath,
    wanted: Wanted,
    /// Whose queue it stands in.
    account: Account,
    answer: oneshot::Sender<Result<Grant, Failure>>,
}

/// What a reservation holds at each account of its path that the ledger knows.
type Parts = Vec<(Account, Held)>;

/// Something to be told once the lock is let go of.
type News = (oneshot::Sender<Result<Grant, Failure>>, Result<(Parts, Amount), Failure>);

/// An account that did not let a call pass.
struct Refused {
    account: Account,
    verdict: Verdict,
}

impl Ledger {
    /// A ledger without accounts.
    #[must_use]
    pub fn new(limits: LedgerLimits) -> Self {
        let books = Books { limits, ..Books::default() };
        Self { books: Arc::new(Mutex::new(books)) }
    }

    /// Begins to keep an account, of which so much was spent before. One that is kept already takes
    /// the new budget, and what is spent stays.
    pub fn open(&self, account: &Account, budget: Budget, spent: Amount) {
        let mut books = self.lock();
        let level = books.levels.entry(account.clone()).or_default();
        level.budget = budget;
        level.closing = false;
        if !std::mem::replace(&mut level.kept, true) {
            level.base = spent;
        }
        let news = books.look_again(account);
        drop(books);
        self.tell(news);
    }

    /// Forgets an account, once no call of it is under way.
    pub fn close(&self, account: &Account) {
        let mut books = self.lock();
        if let Some(level) = books.levels.get_mut(account) {
            level.closing = true;
            books.forget_closed(account);
        }
    }

    /// Whether an account is kept.
    #[must_use]
    pub fn keeps(&self, account: &Account) -> bool {
        self.lock().levels.get(account).is_some_and(|level| level.kept)
    }

    /// How an account stands; none if it is not kept.
    #[must_use]
    pub fn report(&self, account: &Account) -> Option<AccountReport> {
        let books = self.lock();
        let level = books.levels.get(account)?;
        Some(AccountReport {
            budget: level.budget.clone(),
            spent: level.total(),
            reserved: level.likely,
            calls: level.calls,
            waiting: level.queue.iter().filter(|id| books.waiting.contains_key(id)).count(),
        })
    }

    /// Whether the soft limit of an account on the path is passed.
    #[must_use]
    pub fn is_low(&self, path: &BudgetPath) -> bool {
        let books = self.lock();
        let mut levels = path.accounts().iter().filter_map(|account| books.levels.get(account));
        levels.any(|level| level.budget.is_low(level.total().plus(level.likely)))
    }

    /// Notes what was spent without a reservation.
    pub fn spend(&self, account: &Account, amount: Amount) {
        let mut books = self.lock();
        let level = books.levels.entry(account.clone()).or_default();
        level.spent = level.spent.plus(amount);
    }

    /// Notes that the store's total of an account now has so much more that was spent here.
    pub fn committed(&self, account: &Account, amount: Amount) {
        let mut books = self.lock();
        let level = books.levels.entry(account.clone()).or_default();
        level.committed = level.committed.plus(amount);
    }

    /// What the store's total has of what was spent here; to be asked before the store is.
    #[must_use]
    pub fn mark(&self, account: &Account) -> Amount {
        self.lock().levels.get(account).map(|level| level.committed).unwrap_or_default()
    }

    /// Takes the store's total of an account, and keeps the account from then on. What is in the
    /// total beyond the mark was spent elsewhere, or is counted twice until the next time: too much
    /// rather than too little.
    pub fn told(&self, account: &Account, budget: &Budget, mark: Amount, total: Amount) {
        let mut books = self.lock();
        let level = books.levels.entry(account.clone()).or_default();
        level.budget = budget.clone();
        level.base = total.minus(mark);
        level.kept = true;
        let news = books.look_again(account);
        drop(books);
        self.tell(news);
    }

    /// Reserves at every account of the path or at none, without waiting. Accounts that are not kept
    /// let everything pass.
    ///
    /// # Errors
    /// `budget_exhausted`: which account refused, what was left and what was wanted.
    pub fn reserve(
        &self,
        path: &BudgetPath,
        wanted: impl Into<Wanted>,
    ) -> Result<Reservation, Failure> {
        let wanted = wanted.into();
        let mut books = self.lock();
        match books.try_hold(path, &wanted) {
            Ok(parts) => Ok(self.reservation(parts, wanted.likely)),
            Err(refused) => Err(books.failure(&refused, &wanted)),
        }
    }

    /// Like [`Ledger::reserve`], but waits while what others hold could still come free, for its turn
    /// and until a time at most. Dropping the future gives up the place.
    ///
    /// # Errors
    /// `budget_exhausted`, at once if no settlement could help, and when the time is up;
    /// `engine_overloaded` if too many wait.
    pub async fn admit(
        &self,
        path: &BudgetPath,
        wanted: impl Into<Wanted>,
        until: Instant,
    ) -> Result<Reservation, Failure> {
        let wanted = wanted.into();
        let (id, answer) = {
            let mut books = self.lock();
            match books.try_in_turn(path, &wanted) {
                Ok(parts) => return Ok(self.reservation(parts, wanted.likely)),
                Err(refused) if matches!(refused.verdict, Verdict::Never(_)) => {
                    return Err(books.failure(&refused, &wanted));
                }
                Err(refused) => books.enqueue(path, wanted, &refused.account)?,
            }
        };
        let place = Place { ledger: self, id };
        let answered = tokio::time::timeout_at(until, answer).await;
        match answered {
            Ok(Ok(granted)) => granted.map(|mut grant| grant.0.take().expect("taken once")),
            // The sender lives as long as the waiter stands in the books.
            Ok(Err(_)) | Err(_) => Err(place.failure(path, &wanted)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while the lock is held; sums stay sums in any case.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reservation(&self, parts: Parts, likely: Amount) -> Reservation {
        Reservation { ledger: self.clone(), parts, likely }
    }

    fn settle(&self, parts: Parts, likely: Amount, used: Amount) {
        if parts.is_empty() {
            return;
        }
        let mut books = self.lock();
        for (account, held) in &parts {
            if let Some(level) = books.levels.get_mut(account) {
                level.settle(*held, likely, used);
            }
        }
        let mut news = Vec::new();
        for (account, _) in &parts {
            news.extend(books.look_again(account));
            books.forget_closed(account);
        }
        drop(books);
        self.tell(news);
    }

    fn tell(&self, news: Vec<News>) {
        for (answer, what) in news {
            let what = what.map(|(parts, likely)| Grant(Some(self.reservation(parts, likely))));
            // Whoever is gone meanwhile needs no answer: the grant is released as it is dropped.
            drop(answer.send(what));
        }
    }
}

impl Books {
    /// What every account would hold, or the first that refuses.
    fn judge(&self, path: &BudgetPath, wanted: &Wanted) -> Result<Parts, Refused> {
        let mut parts = Vec::with_capacity(path.accounts().len());
        for account in path.accounts() {
            let Some(level) = self.levels.get(account) else { continue };
            match level.judge(wanted) {
                Verdict::Fits(held) => parts.push((account.clone(), held)),
                verdict => return Err(Refused { account: account.clone(), verdict }),
            }
        }
        Ok(parts)
    }

    /// Holds at every account or at none.
    fn try_hold(&mut self, path: &BudgetPath, wanted: &Wanted) -> Result<Parts, Refused> {
        let parts = self.judge(path, wanted)?;
        for (account, held) in &parts {
            if let Some(level) = self.levels.get_mut(account) {
                level.hold(*held, wanted.likely);
            }
        }
        Ok(parts)
    }

    /// The same, behind those who wait already.
    fn try_in_turn(&mut self, path: &BudgetPath, wanted: &Wanted) -> Result<Parts, Refused> {
        let waits = |account: &&Account| {
            self.levels.get(*account).is_some_and(|level| !level.queue.is_empty())
        };
        match path.accounts().iter().find(waits).cloned() {
            None => self.try_hold(path, wanted),
            Some(account) => match self.judge(path, wanted) {
                Ok(_) => Err(Refused { account, verdict: Verdict::Waits(Unit::Calls) }),
                Err(refused) => Err(refused),
            },
        }
    }

    fn enqueue(
        &mut self,
        path: &BudgetPath,
        wanted: Wanted,
        account: &Account,
    ) -> Result<(u64, oneshot::Receiver<Result<Grant, Failure>>), Failure> {
        let (seen, allowed) = (self.waiting.len(), self.limits.waiting_max);
        if seen >= allowed {
            let message = format!("{seen} model calls wait for a budget, limit {allowed}");
            return Err(Failure::new(ErrorCode::ENGINE_OVERLOADED, message)
                .with_hint("run fewer sessions at once on one budget"));
        }
        self.last_waiter += 1;
        let (answer, receiver) = oneshot::channel();
        let waiter = Waiter { path: path.clone(), wanted, account: account.clone(), answer };
        self.waiting.insert(self.last_waiter, waiter);
        if let Some(level) = self.levels.get_mut(account) {
            level.queue.push_back(self.last_waiter);
        }
        Ok((self.last_waiter, receiver))
    }

    /// Lets pass, or refuses for good, whoever waits at an account, until the first who must go on
    /// waiting there.
    fn look_again(&mut self, account: &Account) -> Vec<News> {
        let mut news = Vec::new();
        loop {
            let level = self.levels.get_mut(account);
            let Some(id) = level.and_then(|level| level.queue.pop_front()) else { return news };
            let waiter = self.waiting.remove(&id).expect("whoever is in a queue waits");
            match self.try_hold(&waiter.path, &waiter.wanted) {
                Ok(parts) => news.push((waiter.answer, Ok((parts, waiter.wanted.likely)))),
                Err(refused) if matches!(refused.verdict, Verdict::Never(_)) => {
                    let failure = self.failure(&refused, &waiter.wanted);
                    news.push((waiter.answer, Err(failure)));
                }
                Err(Refused { account: other, .. }) => {
                    let here = other == *account;
                    let level = self.levels.get_mut(&other);
                    let level = level.expect("an account that refuses is kept");
                    if here {
                        level.queue.push_front(id);
                    } else {
                        level.queue.push_back(id);
                    }
                    self.waiting.insert(id, Waiter { account: other, ..waiter });
                    if here {
                        return news;
                    }
                }
            }
        }
    }

    fn forget_closed(&mut self, account: &Account) {
        let over = |level: &Level| level.closing && level.calls == 0 && level.queue.is_empty();
        if self.levels.get(account).is_some_and(over) {
            self.levels.remove(account);
        }
    }

    /// Why a call was refused.
    fn failure(&self, refused: &Refused, wanted: &Wanted) -> Failure {
        let level = self.levels.get(&refused.account);
        let (Verdict::Never(unit) | Verdict::Waits(unit)) = refused.verdict else {
            unreachable!("what fits is not refused")
        };
        let mut message = format!("the budget of {} is exhausted", refused.account);
        if let Some((level, bound)) =
            level.and_then(|level| Some((level, unit.bound(&level.budget)?)))
        {
            let show = |value: u64| match unit {
                Unit::Usd => format!("{} usd", dollars(value)),
                Unit::Tokens => format!("{value} tokens"),
                Unit::Calls => format!("{value} calls"),
            };
            let (spent, reserved) = (unit.of(level.total()), unit.of(level.held));
            let _ = write!(
                message,
                ": {} spent and {} reserved of {}, the next model call is expected to use {}",
                show(spent),
                show(reserved),
                show(bound),
                show(unit.of(wanted.likely)),
            );
        }
        Failure::new(ErrorCode::BUDGET_EXHAUSTED, message)
            .with_hint("raise the budget, or give a smaller max_tokens or a cheaper model")
    }
}

/// Dollars with as many digits as they need.
fn dollars(nanos: u64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    let kept = text.trim_end_matches('0');
    let digits = kept.len().max(text.len() - 7);
    text[..digits].to_owned()
}

/// A reservation on its way to whoever waits for it; released if nobody takes it.
#[derive(Debug)]
struct Grant(Option<Reservation>);

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(reservation) = self.0.take() {
            reservation.settle(Amount::default());
        }
    }
}

/// A place among those who wait.
struct Place<'a> {
    ledger: &'a Ledger,
    id: u64,
}

impl Place<'_> {
    /// Why it was given up.
    fn failure(&self, path: &BudgetPath, wanted: &Wanted) -> Failure {
        let books = self.ledger.lock();
        let account = books.waiting.get(&self.id).map(|waiter| waiter.account.clone());
        let refused = match (account, books.judge(path, wanted)) {
            (_, Err(refused)) => refused,
            (account, Ok(_)) => {
                let first = || path.accounts()[0].clone();
                let account = account.unwrap_or_else(first);
                Refused { account, verdict: Verdict::Waits(Unit::Calls) }
            }
        };
        let mut failure = books.failure(&refused, wanted);
        failure.message.push_str(", and the calls before it did not settle in time");
        failure
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut books = self.ledger.lock();
        let Some(waiter) = books.waiting.remove(&self.id) else { return };
        if let Some(level) = books.levels.get_mut(&waiter.account) {
            level.queue.retain(|id| *id != self.id);
        }
        // Those behind may pass now.
        let news = books.look_again(&waiter.account);
        drop(books);
        self.ledger.tell(news);
    }
}

/// What is held for one call. Dropping it settles it at what it was expected to use, because nobody
/// knows what it did use.
#[derive(Debug)]
pub struct Reservation {
    ledger: Ledger,
    parts: Parts,
    likely: Amount,
}

impl Reservation {
    /// What the call is expected to use.
    #[must_use]
    pub fn likely(&self) -> Amount {
        self.likely
    }

    /// Gives back what is held and notes what the call used.
    pub fn settle(mut self, used: Amount) {
        let parts = std::mem::take(&mut self.parts);
        self.ledger.settle(parts, self.likely, used);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        self.ledger.settle(parts, self.likely, self.likely);
    }
}
