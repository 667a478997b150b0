//! Where a step begins, and what is left out.

use std::collections::BTreeMap;

use mainspring_route::{Candidate, Decision, Policy, Step, StepClass, choose};

use crate::support::{averages, free, parsed, priced, prior, small_and_large, step};

fn still() -> Policy {
    Policy { explore: 0.0, ..Policy::default() }
}

fn excluded(decision: &Decision, idx: usize) -> &str {
    decision.candidates[idx].excluded.as_deref().unwrap_or("")
}

#[test]
fn untrained_a_step_begins_with_the_first_model_whatever_it_is_for() {
    for class in StepClass::ALL {
        let step = Step { class, ..step() };
        let decision = choose(&still(), None, &small_and_large(), &step);
        assert_eq!((decision.tier, decision.propensity, decision.explored), (0, 1.0, false));
        assert_eq!(decision.reason, "small first: its answer is checked");
        assert_eq!(decision.candidates[0].p_ok, None);
    }
}

#[test]
fn the_policy_names_the_class_that_begins_higher() {
    let start = BTreeMap::from([(StepClass::Plan, 1)]);
    let policy = Policy { start, ..still() };
    let plan = Step { class: StepClass::Plan, ..step() };
    let decision = choose(&policy, None, &small_and_large(), &plan);
    assert_eq!((decision.tier, &*decision.reason), (1, "the policy begins plan steps here"));
    assert_eq!(choose(&policy, None, &small_and_large(), &step()).tier, 0);
}

#[test]
fn a_model_that_cannot_do_the_step_is_left_out() {
    let [small, large] = small_and_large();
    let decision = choose(&still(), None, &[Candidate { capable: false, ..small }, large], &step());
    assert_eq!(decision.tier, 1);
    assert_eq!(excluded(&decision, 0), "cannot do what the step needs");
    assert_eq!(decision.reason, "the only model that may be asked");
}

#[test]
fn a_model_whose_context_is_too_short_is_left_out_with_a_margin() {
    let [small, large] = small_and_large();
    let with = |tokens| {
        let candidates = [Candidate { context_tokens: Some(tokens), ..small }, large];
        choose(&still(), None, &candidates, &step())
    };
    // 1,000 tokens with 5 % for a wrong estimate, and 200 for the answer.
    assert_eq!(with(1_250).tier, 0);
    let decision = with(1_249);
    assert_eq!(decision.tier, 1);
    assert_eq!(excluded(&decision, 0), "the step needs about 1250 tokens, 1249 fit");
}

#[test]
fn a_model_that_cannot_be_called_now_is_left_out() {
    let [small, large] = small_and_large();
    let decision = choose(&still(), None, &[Candidate { ready: false, ..small }, large], &step());
    assert_eq!((decision.tier, excluded(&decision, 0)), (1, "is not ready to be called"));
}

#[test]
fn a_budget_keeps_enough_for_one_call_of_the_dearest() {
    // small costs $0.00027 here and large $0.006.
    let with = |budget_usd| {
        let step = Step { budget_usd: Some(budget_usd), ..step() };
        choose(&still(), None, &small_and_large(), &step)
    };
    assert!(with(0.0063).candidates.iter().all(|model| model.excluded.is_none()));
    let decision = with(0.0061);
    assert_eq!(decision.tier, 1);
    assert_eq!(excluded(&decision, 0), "needs $0.006270, $0.006100 are left to spend");
    // Where the dearest cannot be paid any more, what can be paid is taken.
    let decision = with(0.0010);
    assert_eq!(decision.tier, 0);
    assert_eq!(excluded(&decision, 1), "needs $0.006000, $0.001000 are left to spend");
}

#[test]
fn without_any_model_that_fits_the_mildest_reason_decides() {
    let [small, large] = small_and_large();
    let candidates = [Candidate { capable: false, ..small }, Candidate { ready: false, ..large }];
    let decision = choose(&still(), None, &candidates, &step());
    assert_eq!((decision.tier, decision.propensity), (1, 1.0));
    assert_eq!(decision.reason, "no model fits; the least bad: is not ready to be called");
    let decision = choose(&still(), None, &[], &step());
    assert_eq!((decision.tier, decision.candidates.len()), (0, 0));
}

#[test]
fn a_model_that_is_dearer_and_certainly_worse_is_left_out() {
    let dear_first = [priced("small", 3.0, 15.0), priced("large", 0.15, 0.6)];
    let weights = parsed(&averages(prior(0.5, 300.0), prior(0.7, 300.0)));
    let decision = choose(&still(), Some(&weights), &dear_first, &step());
    assert_eq!(decision.tier, 1);
    assert_eq!(excluded(&decision, 0), "large costs no more and is better at such steps");
    // Neither few outcomes nor a worse model that is cheaper are enough.
    let few = parsed(&averages(prior(0.5, 12.0), prior(0.7, 12.0)));
    let decision = choose(&still(), Some(&few), &dear_first, &step());
    assert_eq!(excluded(&decision, 0), "");
    let decision = choose(&still(), Some(&weights), &small_and_large(), &step());
    assert_eq!(excluded(&decision, 0), "");
}

#[test]
fn what_was_learnt_is_weighed_against_the_price() {
    let gain = |small, large, cost_weight| {
        let weights = parsed(&averages(prior(small, 5e3), prior(large, 5e3)));
        let policy = Policy { cost_weight, ..still() };
        choose(&policy, Some(&weights), &small_and_large(), &step())
    };
    // large costs $0.00573 more: at 10 a dollar that is 0.057, with the least gain of 0.05 0.107.
    assert_eq!(gain(0.60, 0.70, 10.0).tier, 0);
    let decision = gain(0.60, 0.72, 10.0);
    assert_eq!(decision.tier, 1);
    assert_eq!(decision.reason, "right in 72 % of such steps, small in 60 %: worth its price");
    assert_eq!(decision.candidates[0].p_ok, Some(0.6));
    assert_eq!(gain(0.60, 0.72, 100.0).tier, 0);
    assert_eq!(gain(0.60, 0.66, 0.0).tier, 1);
}

#[test]
fn a_cheaper_model_later_in_the_route_is_taken_unless_it_is_worse() {
    let route = [priced("small", 3.0, 15.0), priced("large", 0.15, 0.6)];
    let tier = |small, large| {
        let weights = parsed(&averages(prior(small, 20.0), prior(large, 20.0)));
        choose(&still(), Some(&weights), &route, &step()).tier
    };
    assert_eq!(tier(0.60, 0.57), 1);
    assert_eq!(tier(0.70, 0.35), 0);
}

#[test]
fn a_dearer_model_must_have_shown_that_it_is_better() {
    let tier = |count| {
        let weights = parsed(&averages(prior(0.5, count), prior(0.7, count)));
        choose(&still(), Some(&weights), &small_and_large(), &step()).tier
    };
    // The difference of 0.2 is 95 % certain from about 33 outcomes of each on.
    assert_eq!((tier(25.0), tier(40.0)), (0, 1));
}

#[test]
fn a_class_or_a_model_that_was_not_learnt_is_begun_as_if_untrained() {
    let weights = parsed(&averages(prior(0.1, 500.0), prior(0.9, 500.0)));
    let plan = Step { class: StepClass::Plan, ..step() };
    let decision = choose(&still(), Some(&weights), &small_and_large(), &plan);
    assert_eq!((decision.tier, decision.candidates[1].p_ok), (0, None));
    let others = [free("tiny"), free("huge")];
    assert_eq!(choose(&still(), Some(&weights), &others, &step()).tier, 0);
}

#[test]
fn equal_models_leave_the_first_of_the_route() {
    let weights = parsed(&averages(prior(0.7, 50.0), prior(0.7, 50.0)));
    let same = [priced("small", 1.0, 1.0), priced("large", 1.0, 1.0)];
    assert_eq!(choose(&still(), Some(&weights), &same, &step()).tier, 0);
}

#[test]
fn a_share_of_the_steps_explores_and_its_probability_is_logged() {
    let policy = Policy { explore: 0.05, ..Policy::default() };
    let route = [free("a"), free("b"), free("c")];
    let mut counts = [0u32; 3];
    for seed in 0..20_000 {
        let decision = choose(&policy, None, &route, &Step { seed, ..step() });
        counts[decision.tier] += 1;
        assert_eq!(decision.explored, decision.tier != 0);
        let wanted = if decision.explored { 0.025 } else { 0.95 };
        assert!((decision.propensity - wanted).abs() < 1e-12);
    }
    // Four standard deviations around 500.
    for explored in &counts[1..] {
        assert!(explored.abs_diff(500) < 90, "{counts:?}");
    }
}

#[test]
fn what_is_left_out_is_not_explored() {
    let policy = Policy { explore: 0.5, ..Policy::default() };
    let [small, large] = small_and_large();
    for seed in 0..200 {
        let candidates = [small, Candidate { ready: false, ..large }];
        let decision = choose(&policy, None, &candidates, &Step { seed, ..step() });
        assert_eq!((decision.tier, decision.propensity), (0, 1.0));
    }
}

#[test]
fn the_same_arguments_give_the_same_decision() {
    let weights = parsed(&averages(prior(0.5, 300.0), prior(0.7, 300.0)));
    for seed in 0..100 {
        let step = Step { seed, ..step() };
        let decide = || choose(&Policy::default(), Some(&weights), &small_and_large(), &step);
        assert_eq!(decide(), decide());
    }
}

#[test]
fn a_policy_out_of_range_says_which_number() {
    assert_eq!(Policy::default().check(), Ok(()));
    let policy = Policy { explore: 0.6, ..Policy::default() };
    assert_eq!(policy.check(), Err("policy explore is 0.6, allowed are 0 to 0.5".to_owned()));
    let policy = Policy { cost_weight: f64::NAN, ..Policy::default() };
    assert_eq!(
        policy.check(),
        Err("policy cost_weight is NaN, allowed are 0 to 1000000000".to_owned())
    );
}

#[test]
fn a_decision_and_a_policy_read_back_as_written() {
    let decision = choose(&Policy::default(), None, &small_and_large(), &step());
    let text = serde_json::to_string(&decision).unwrap();
    assert_eq!(serde_json::from_str::<Decision>(&text).unwrap(), decision);
    let policy: Policy = serde_json::from_str(r#"{"explore": 0.1, "start": {"plan": 1}}"#).unwrap();
    assert_eq!((policy.explore, policy.accept), (0.1, 0.5));
    assert!(serde_json::from_str::<Policy>(r#"{"explorer": 0.1}"#).is_err());
}
