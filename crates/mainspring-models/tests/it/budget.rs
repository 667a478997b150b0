//! The ledger: what is let pass, what waits, what is refused, and that no budget is exceeded by more
//! than one call's unknown output, whoever settles when.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use mainspring_models::budget::{
    Account, BudgetPath, Ledger, LedgerLimits, Most, Reservation, Wanted,
};
use mainspring_session::{Amount, Budget, ErrorCode, Failure, Period, SessionId};
use tokio::time::Instant;

fn tenant() -> Account {
    Account::tenant("acme", Period::Ever, 0)
}

fn session(name: &str) -> Account {
    Account::session(&SessionId::new(name).unwrap())
}

fn path(accounts: &[Account]) -> BudgetPath {
    BudgetPath::new(accounts.to_vec())
}

fn tokens(tokens: u64) -> Amount {
    Amount { tokens, ..Amount::one_call() }
}

fn bound(tokens: u64) -> Budget {
    Budget { tokens: Some(tokens), ..Budget::default() }
}

/// A call that is expected to use so many tokens and may use any number.
fn unbounded(likely: u64) -> Wanted {
    Wanted { likely: tokens(likely), most: Most { usd_nanos: Some(0), tokens: None } }
}

/// A call that is expected to use so many tokens and uses so many at most.
fn at_most(likely: u64, most: u64) -> Wanted {
    Wanted { likely: tokens(likely), most: Most { usd_nanos: Some(0), tokens: Some(most) } }
}

fn ledger(budget: Budget) -> (Ledger, BudgetPath) {
    let ledger = Ledger::default();
    ledger.open(&tenant(), budget, Amount::default());
    (ledger, path(&[tenant()]))
}

fn spent(ledger: &Ledger) -> u64 {
    ledger.report(&tenant()).unwrap().spent.tokens
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.unwrap().block_on(test);
}

fn is_pending<T>(waiting: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    waiting.as_mut().poll(&mut context).is_pending()
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

#[test]
fn a_reservation_is_made_at_every_level_or_at_none() {
    let (ledger, _) = ledger(bound(1_000));
    ledger.open(&session("s"), bound(100), Amount::default());
    let both = path(&[tenant(), session("s")]);
    let held = ledger.reserve(&both, tokens(60)).unwrap();
    let refused = ledger.reserve(&both, tokens(60)).unwrap_err();
    assert_eq!(refused.code, ErrorCode::BUDGET_EXHAUSTED);
    assert_eq!(
        refused.message,
        "the budget of session \"s\" is exhausted: 0 tokens spent and 60 tokens reserved of 100 \
         tokens, the next model call is expected to use 60 tokens"
    );
    assert_eq!(ledger.report(&tenant()).unwrap().reserved, tokens(60));
    held.settle(tokens(10));
    for account in [tenant(), session("s")] {
        let report = ledger.report(&account).unwrap();
        assert_eq!((report.spent, report.reserved), (tokens(10), Amount::default()));
    }
    assert_eq!(ledger.report(&session("s")).unwrap().left().tokens, Some(90));
}

#[test]
fn a_level_that_is_not_kept_lets_everything_pass() {
    let ledger = Ledger::default();
    ledger.reserve(&path(&[session("s")]), unbounded(9_000_000)).unwrap().settle(tokens(1));
    assert_eq!(ledger.report(&session("s")), None);
}

#[test]
fn an_account_is_forgotten_once_its_last_call_has_ended() {
    let (ledger, path) = ledger(bound(1_000));
    let held = ledger.reserve(&path, tokens(60)).unwrap();
    ledger.close(&tenant());
    assert!(ledger.keeps(&tenant()), "a call is under way");
    held.settle(tokens(60));
    assert!(!ledger.keeps(&tenant()));
    ledger.open(&tenant(), bound(1_000), Amount::default());
    ledger.close(&tenant());
    assert!(!ledger.keeps(&tenant()));
}

#[test]
fn a_reservation_that_is_dropped_counts_as_what_was_expected() {
    let (ledger, path) = ledger(bound(1_000));
    drop(ledger.reserve(&path, at_most(40, 500)).unwrap());
    assert_eq!(spent(&ledger), 40);
}

#[test]
fn what_was_spent_before_counts_and_a_new_budget_keeps_it() {
    let ledger = Ledger::default();
    ledger.open(&tenant(), bound(100), tokens(90));
    let path = path(&[tenant()]);
    assert!(ledger.reserve(&path, tokens(20)).is_err());
    ledger.open(&tenant(), bound(200), Amount::default());
    ledger.reserve(&path, tokens(20)).unwrap().settle(tokens(20));
    assert_eq!(spent(&ledger), 110);
}

#[test]
fn calls_that_surely_fit_run_together_and_others_one_at_a_time() {
    let (ledger, path) = ledger(bound(1_000));
    let sure: Vec<Reservation> =
        (0..2).map(|_| ledger.reserve(&path, at_most(10, 400)).unwrap()).collect();
    let alone = ledger.reserve(&path, at_most(10, 400)).unwrap();
    assert!(ledger.reserve(&path, unbounded(10)).is_err(), "one already goes alone");
    ledger.reserve(&path, at_most(10, 100)).unwrap().settle(tokens(10));
    alone.settle(tokens(10));
    let alone = ledger.reserve(&path, unbounded(10)).unwrap();
    drop((sure, alone));
}

#[test]
fn what_costs_nothing_passes_an_exhausted_budget_of_dollars() {
    let (ledger, path) = ledger(Budget { usd_nanos: Some(0), ..Budget::default() });
    ledger.reserve(&path, unbounded(500)).unwrap().settle(tokens(500));
    let paid = Wanted {
        likely: Amount { usd_nanos: 1, ..tokens(1) },
        most: Most { usd_nanos: Some(1), tokens: Some(1) },
    };
    let refused = ledger.reserve(&path, paid).unwrap_err();
    assert!(
        refused
            .message
            .ends_with("of 0.00 usd, the next model call is expected to use 0.000000001 usd"),
        "{}",
        refused.message
    );
}

#[test]
fn a_call_waits_for_what_others_hold_and_passes_in_its_turn() {
    run(async {
        let (ledger, path) = ledger(bound(100));
        let held = ledger.reserve(&path, tokens(90)).unwrap();
        let order = AtomicU64::new(0);
        let admit = |name: u64| {
            let (ledger, path, order) = (&ledger, &path, &order);
            async move {
                let granted = ledger.admit(path, tokens(30), later()).await;
                let place = order.fetch_add(1, Ordering::Relaxed);
                granted.unwrap().settle(tokens(30));
                (name, place)
            }
        };
        let settles = async {
            assert_eq!(ledger.report(&tenant()).unwrap().waiting, 3);
            held.settle(tokens(5));
            (0, 0)
        };
        let first: Vec<_> = vec![
            Box::pin(admit(1)) as std::pin::Pin<Box<dyn Future<Output = (u64, u64)>>>,
            Box::pin(admit(2)),
            Box::pin(admit(3)),
            Box::pin(settles),
        ];
        let done = join_all(first).await;
        assert_eq!(done[..3], [(1, 0), (2, 1), (3, 2)]);
        assert_eq!(spent(&ledger), 95);
    });
}

#[test]
fn nobody_waits_for_what_no_settlement_can_free() {
    run(async {
        let (ledger, path) = ledger(bound(100));
        ledger.reserve(&path, tokens(80)).unwrap().settle(tokens(80));
        let held = ledger.reserve(&path, tokens(5)).unwrap();
        let refused = ledger.admit(&path, tokens(30), later()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::BUDGET_EXHAUSTED);
        held.settle(tokens(5));
    });
}

#[test]
fn whoever_waits_is_refused_once_it_cannot_fit_any_more() {
    run(async {
        let (ledger, path) = ledger(bound(100));
        let held = ledger.reserve(&path, unbounded(50)).unwrap();
        let (waited, ()) =
            futures_util::future::join(ledger.admit(&path, tokens(60), later()), async {
                held.settle(tokens(70))
            })
            .await;
        assert_eq!(waited.unwrap_err().code, ErrorCode::BUDGET_EXHAUSTED);
    });
}

#[test]
fn a_wait_has_an_end_and_leaves_the_place_to_those_behind() {
    run(async {
        let (ledger, path) = ledger(bound(100));
        let held = ledger.reserve(&path, tokens(60)).unwrap();
        let soon = Instant::now();
        let (large, small) = futures_util::future::join(
            ledger.admit(&path, tokens(50), soon),
            ledger.admit(&path, tokens(20), later()),
        )
        .await;
        let refused: Failure = large.unwrap_err();
        assert!(refused.message.ends_with("did not settle in time"), "{}", refused.message);
        drop((held, small.unwrap()));
        assert_eq!(ledger.report(&tenant()).unwrap().waiting, 0);
    });
}

#[test]
fn a_place_that_is_given_up_costs_nothing() {
    run(async {
        let (ledger, path) = ledger(bound(100));
        let held = ledger.reserve(&path, tokens(90)).unwrap();
        {
            let mut waiting = Box::pin(ledger.admit(&path, tokens(50), later()));
            assert!(is_pending(&mut waiting));
            // Granted, and dropped before it is looked at.
            held.settle(tokens(10));
            assert_eq!(ledger.report(&tenant()).unwrap().reserved.tokens, 50);
        }
        let report = ledger.report(&tenant()).unwrap();
        assert_eq!((report.spent.tokens, report.reserved.tokens), (10, 0));
    });
}

#[test]
fn only_so_many_wait_at_once() {
    run(async {
        let ledger = Ledger::new(LedgerLimits { waiting_max: 1 });
        ledger.open(&tenant(), bound(100), Amount::default());
        let path = path(&[tenant()]);
        let held = ledger.reserve(&path, tokens(90)).unwrap();
        let mut first = Box::pin(ledger.admit(&path, tokens(50), later()));
        assert!(is_pending(&mut first));
        let refused = ledger.admit(&path, tokens(50), later()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::ENGINE_OVERLOADED);
        assert_eq!(refused.message, "1 model calls wait for a budget, limit 1");
        drop((first, held));
    });
}

#[test]
fn what_other_processes_spend_counts_once_the_store_tells() {
    let ledger = Ledger::default();
    let (account, path) = (tenant(), path(&[tenant()]));
    ledger.told(&account, &bound(100), Amount::default(), tokens(20));
    ledger.reserve(&path, tokens(30)).unwrap().settle(tokens(30));
    assert_eq!(spent(&ledger), 50);
    // The store has taken what was spent here, and others have spent as much again.
    ledger.committed(&account, tokens(30));
    let mark = ledger.mark(&account);
    ledger.told(&account, &bound(100), mark, tokens(80));
    assert_eq!(spent(&ledger), 80 + 1 - 1);
    assert!(ledger.reserve(&path, tokens(30)).is_err());
}

#[test]
fn the_soft_limit_is_seen_at_every_level() {
    let (ledger, _) = ledger(Budget { soft: Some(0.5), ..bound(100) });
    ledger.open(&session("s"), bound(1_000), Amount::default());
    let both = path(&[tenant(), session("s")]);
    assert!(!ledger.is_low(&both));
    let held = ledger.reserve(&both, tokens(50)).unwrap();
    assert!(ledger.is_low(&both) && !ledger.is_low(&path(&[session("s")])));
    held.settle(tokens(10));
    assert!(!ledger.is_low(&both));
}

/// Sessions of one tenant, a budget of their own each, that call until they are refused. Every call
/// writes anything up to what bounds it, and a fifth has no bound.
async fn call_until_refused(
    ledger: Ledger,
    seed: u64,
    real: &AtomicU64,
    excess: &AtomicU64,
) -> u64 {
    let own = session(&format!("s{seed}"));
    ledger.open(&own, bound(40_000), Amount::default());
    let path = path(&[tenant(), own.clone()]);
    let mut numbers = Numbers(seed);
    let mut own_spent = 0;
    loop {
        let likely = 50 + numbers.below(200);
        let most = likely + numbers.below(3_000);
        let wanted = match numbers.below(5) {
            0 => unbounded(likely),
            _ => at_most(likely, most),
        };
        let Ok(held) = ledger.admit(&path, wanted, later()).await else { return own_spent };
        for _ in 0..1 + numbers.below(20) {
            tokio::task::yield_now().await;
        }
        let used = match wanted.most.tokens {
            None => numbers.below(6_000),
            Some(most) => numbers.below(most + 1),
        };
        match numbers.below(10) {
            0 => {
                real.fetch_add(likely, Ordering::Relaxed);
                own_spent += likely;
                drop(held);
            }
            _ => {
                real.fetch_add(used, Ordering::Relaxed);
                own_spent += used;
                excess.fetch_max(used.saturating_sub(likely), Ordering::Relaxed);
                held.settle(tokens(used));
            }
        }
    }
}

#[test]
fn a_thousand_sessions_exceed_their_budget_by_at_most_one_calls_unknown_output() {
    run(async {
        for limit in [5_000, 100_000, 1_500_000] {
            let ledger = Ledger::default();
            ledger.open(&tenant(), bound(limit), Amount::default());
            let (real, excess) = (AtomicU64::new(0), AtomicU64::new(0));
            let all = (0..1_000).map(|n| call_until_refused(ledger.clone(), n, &real, &excess));
            let own: u64 = join_all(all).await.into_iter().sum();
            let (real, excess) = (real.into_inner(), excess.into_inner());
            assert_eq!((spent(&ledger), own), (real, real), "every level counts the same");
            assert!(real <= limit + excess, "{real} of {limit}, the largest excess {excess}");
            assert!(real + 300 > limit, "{real} of {limit}: what fits is let pass");
            let report = ledger.report(&tenant()).unwrap();
            assert_eq!((report.reserved, report.calls, report.waiting), (Amount::default(), 0, 0));
        }
    });
}

#[test]
fn threads_that_reserve_settle_and_drop_never_pass_a_bound() {
    let limit = 200_000;
    let (ledger, path) = ledger(bound(limit));
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (ledger, path, total) = (&ledger, &path, &total);
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                let mut held = Vec::new();
                for _ in 0..20_000 {
                    let most = 1 + numbers.below(500);
                    if let Ok(reservation) = ledger.reserve(path, at_most(most, most)) {
                        held.push((most, reservation));
                    }
                    if held.len() > 5 || numbers.below(3) == 0 {
                        let Some((most, reservation)) = held.pop() else { continue };
                        let used = numbers.below(most + 1);
                        total.fetch_add(used, Ordering::Relaxed);
                        reservation.settle(tokens(used));
                    }
                    let report = ledger.report(&tenant()).unwrap();
                    assert!(report.spent.plus(report.reserved).tokens <= limit);
                }
                for (most, reservation) in held {
                    total.fetch_add(most, Ordering::Relaxed);
                    drop(reservation);
                }
            });
        }
    });
    assert_eq!(spent(&ledger), total.into_inner());
    assert!(spent(&ledger) <= limit);
}
