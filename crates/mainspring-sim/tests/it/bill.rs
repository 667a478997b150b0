//! Two models never cost much more than the best single one of the same quality.

use mainspring_sim::bill::{Fleet, MARKETS, best_single, play};

/// Sessions of each line; `examples/bill.rs` plays more.
const SESSIONS: u64 = 120;

#[test]
fn two_models_cost_little_more_than_the_best_single_one_and_mostly_far_less() {
    let mut lines = Vec::new();
    for market in MARKETS {
        // Where the small model costs half, what it takes to find out that it is bad shows.
        let most = if market.name == "1:2" { 1.04 } else { 1.02 };
        for fail in [0.0, 0.1, 0.3, 0.6] {
            let [small, large, both] = [Fleet::Small, Fleet::Large, Fleet::Cascade]
                .map(|fleet| play(market, fleet, fail, SESSIONS));
            let (name, best) = best_single(small, large, both);
            let share = both.usd / best.usd;
            let line = format!("{} at {fail}: {share:.3} of {name} alone", market.name);
            assert!(share <= most, "{line}");
            assert!(both.quality() >= small.quality(), "{line}");
            lines.push((share, line));
        }
    }
    let cheaper = lines.iter().filter(|(share, _)| *share < 0.75).count();
    assert!(cheaper >= 8, "{lines:?}");
}

#[test]
fn a_bill_is_the_same_every_time() {
    let played = || play(MARKETS[0], Fleet::Cascade, 0.3, 5);
    let (one, other) = (played(), played());
    assert_eq!((one.usd, one.calls, one.wrong), (other.usd, other.calls, other.wrong));
}
