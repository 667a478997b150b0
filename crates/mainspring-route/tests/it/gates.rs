//! Leaving a model whose prompt cache holds the conversation.

use mainspring_route::{Candidate, Decision, Policy, Prices, Step, choose};

use crate::support::{averages, free, parsed, prior, small_and_large, step};

/// A conversation on `large` with most of it cached there; going back to `small` would be cheaper.
fn on_large(cached_tokens: u64, change: impl FnOnce(&mut Step<'_>)) -> Decision {
    let [small, large] = small_and_large();
    let candidates = [small, Candidate { cached_tokens, ..large }];
    let mut step = Step { input_tokens: 20_000, current: Some(1), ..step() };
    change(&mut step);
    choose(&Policy { explore: 0.0, ..Policy::default() }, None, &candidates, &step)
}

#[test]
fn a_switch_that_gains_more_than_the_cache_is_made() {
    // large: 20,000 cached tokens at $0.30 and 200 at $15; small reads them at $0.15, not $0.015.
    let decision = on_large(20_000, |_| {});
    assert_eq!(decision.tier, 0);
    let gate = decision.gate.unwrap();
    assert!(!gate.held);
    assert!((gate.regret_usd - 0.0027).abs() < 1e-9, "{gate:?}");
    assert!((gate.gain_usd - (0.009 - 0.00042)).abs() < 1e-9, "{gate:?}");
}

#[test]
fn a_switch_that_loses_more_than_it_gains_is_not_made() {
    let weights = parsed(&averages(prior(0.6, 5e3), prior(0.67, 5e3)));
    let [small, large] = small_and_large();
    let candidates = [Candidate { cached_tokens: 2_000, ..small }, large];
    let step = Step { input_tokens: 2_000, output_tokens: 10, current: Some(0), ..step() };
    let with = |margin_usd| {
        let policy = Policy { explore: 0.0, gain_min: 0.0, margin_usd, ..Policy::default() };
        choose(&policy, Some(&weights), &candidates, &step)
    };
    // 2,000 tokens at $2.70 are lost; 7 % more right answers are worth $0.007, less dearer tokens.
    let decision = with(0.002);
    let gate = decision.gate.expect("the best model is not the current one");
    assert_eq!((decision.tier, gate.held, decision.propensity), (0, true, 1.0));
    assert!((gate.regret_usd - 0.0054).abs() < 1e-9, "{gate:?}");
    assert!((gate.gain_usd - (0.007 - 0.000_714)).abs() < 1e-9, "{gate:?}");
    assert_eq!(
        decision.reason,
        "stays: a switch gains $0.006286 and loses $0.005400 of prompt cache"
    );
    assert_eq!(with(0.0).tier, 1);
}

#[test]
fn inside_a_tool_loop_the_model_stays_whatever_it_costs() {
    let decision = on_large(0, |step| step.in_tools = true);
    assert_eq!((decision.tier, decision.propensity), (1, 1.0));
    assert_eq!(decision.reason, "stays with the model that called the tools");
    assert!(decision.gate.unwrap().held);
}

#[test]
fn at_a_boundary_nothing_holds() {
    let decision = on_large(20_000, |step| {
        step.in_tools = true;
        step.boundary = true;
    });
    assert_eq!((decision.tier, decision.gate), (0, None));
}

#[test]
fn without_a_cache_nothing_holds() {
    let decision = on_large(0, |_| {});
    assert_eq!((decision.tier, decision.gate.map(|gate| gate.held)), (0, Some(false)));
}

#[test]
fn a_model_that_may_not_be_asked_holds_nobody() {
    let [small, large] = small_and_large();
    let candidates = [small, Candidate { ready: false, cached_tokens: 20_000, ..large }];
    let step = Step { input_tokens: 20_000, current: Some(1), in_tools: true, ..step() };
    assert_eq!(choose(&Policy::default(), None, &candidates, &step).tier, 0);
    let step = Step { current: Some(7), ..step };
    assert_eq!(choose(&Policy::default(), None, &candidates, &step).tier, 0);
}

#[test]
fn exploring_never_costs_a_cache_nor_breaks_a_tool_loop() {
    let policy = Policy { explore: 0.5, ..Policy::default() };
    let [small, large] = small_and_large();
    let warm = [Candidate { cached_tokens: 900, ..small }, large];
    let route = [free("small"), free("large")];
    for seed in 0..100 {
        let at = Step { current: Some(0), seed, ..step() };
        assert_eq!(choose(&policy, None, &warm, &at).propensity, 1.0);
        let in_tools = Step { in_tools: true, ..at };
        assert_eq!(choose(&policy, None, &route, &in_tools).propensity, 1.0);
    }
    let explored = (0..100)
        .filter(|seed| {
            let step = Step { current: Some(0), boundary: true, seed: *seed, ..step() };
            choose(&policy, None, &warm, &step).explored
        })
        .count();
    assert!((30..70).contains(&explored), "{explored}");
}

#[test]
fn a_cached_token_costs_its_own_price() {
    let price = Prices { input_usd: 3.0, output_usd: 15.0, cached_usd: Some(0.3) };
    assert!((price.cost_usd(1_000, 400, 100) - 0.00342).abs() < 1e-12);
    // More cached than read is a mistake of the counting, not a credit.
    assert!((price.cost_usd(1_000, 9_000, 0) - 0.0003).abs() < 1e-12);
    let plain = Prices { cached_usd: None, ..price };
    assert_eq!(plain.cost_usd(1_000, 400, 100), plain.cost_usd(1_000, 0, 100));
    assert_eq!(plain.regret_usd(1_000), 0.0);
}
