//! What the checks of an answer find, and what is made of it.

use mainspring_route::{
    Evidence, Policy, SIGNAL_NAMES, Signals, StepClass, Verdict, score, signals,
};
use serde_json::json;

use crate::support::{averages, parsed, prior};

fn judged(evidence: &Evidence<'_>) -> Verdict {
    score(&Policy::default(), None, evidence.class, &signals(evidence))
}

fn answered(answer: &str) -> Evidence<'_> {
    let question = "Tom has 12 apples and buys 3 boxes of 24. How many has he?";
    Evidence { class: StepClass::Answer, question, answer, ..Evidence::default() }
}

fn called<'a>(question: &'a str, arguments: &'a [&'a str]) -> Evidence<'a> {
    Evidence { class: StepClass::ToolArgs, question, arguments, ..Evidence::default() }
}

#[test]
fn untrained_an_answer_that_nothing_speaks_against_is_accepted() {
    for answer in [
        "84",
        "He has 12 + 3 * 24 = 84 apples.",
        "I think it is 84, perhaps.",
        "Paris is the capital of France.",
        "No.",
    ] {
        let verdict = judged(&answered(answer));
        assert_eq!((verdict.accept, verdict.reasons.len()), (true, 0), "{answer}: {verdict:?}");
    }
}

#[test]
fn an_answer_that_is_empty_cut_off_or_refused_is_not_accepted() {
    let verdict = judged(&answered("  \n"));
    assert_eq!((verdict.accept, &*verdict.reasons[0]), (false, "it is empty"));
    let verdict = judged(&Evidence { cut_off: true, ..answered("He has 12 and") });
    assert_eq!(
        (verdict.accept, &*verdict.reasons[0]),
        (false, "it was cut off at its greatest length")
    );
    let verdict = judged(&Evidence { refused: true, ..answered("No, sorry.") });
    assert_eq!((verdict.accept, &*verdict.reasons[0]), (false, "the model refused"));
}

#[test]
fn an_answer_that_goes_in_circles_is_not_accepted() {
    let verdict = judged(&answered(&"the answer is that the answer is ".repeat(20)));
    assert!(!verdict.accept);
    assert!(verdict.reasons[0].ends_with("% of it repeats itself"), "{:?}", verdict.reasons);
}

#[test]
fn wrong_arithmetic_is_found_and_right_arithmetic_is_not() {
    for (text, right, wrong) in [
        ("12 + 3 * 24 = 84", 1, 0),
        ("12 + 3 * 24 = 360", 0, 1),
        ("(12 + 3) × 24 = 360", 1, 0),
        ("So 3 * 24 = 72, and 72 + 12 = 85.", 1, 1),
        ("$1,200.50 + $99.50 = $1,300", 1, 0),
        ("10 / 3 = 3.33", 1, 0),
        ("10 / 3 = 3", 1, 0),
        ("10 / 4 = 3.5", 0, 1),
        ("12 * 24 = 287", 0, 1),
        ("7 - -2 = 9", 1, 0),
        // Not plain arithmetic: letters, units in between, equations to be solved, sides that go on.
        ("x + 3 = 7", 0, 0),
        ("2x + 3 = 7", 0, 0),
        ("f(3) = 9", 0, 0),
        ("12 = 12", 0, 0),
        ("3 + 4 = 5 + 2", 0, 0),
        ("7 + 8 = 3 (mod 12)", 0, 0),
        ("1 + 1 = 2x", 0, 0),
        ("a == b", 0, 0),
        ("1 / 0 = 0", 0, 0),
        ("((((((((((((((((((((1 + 1 = 2", 0, 0),
    ] {
        let found = signals(&answered(text));
        assert_eq!((found.equations_right, found.equations_wrong), (right, wrong), "{text}");
    }
    let verdict = judged(&answered("12 + 3 * 24 = 360"));
    assert_eq!((verdict.accept, &*verdict.reasons[0]), (false, "1 of its equations do not hold"));
}

#[test]
fn arguments_are_looked_for_in_what_the_model_was_told() {
    let question = "Book a table for 23 people in Berlin on 2026-12-24 for Ms Okonkwo.";
    for (arguments, values, grounded) in [
        (r#"{"people": 23, "city": "Berlin", "name": "Okonkwo"}"#, 3, 3),
        (r#"{"people": 25, "city": "BERLIN"}"#, 2, 1),
        (r#"{"date": "2026-12-24"}"#, 1, 1),
        (r#"{"date": "2025-01-31"}"#, 1, 0),
        (r#"{"people": 23.0, "query": "table in Berlin please"}"#, 2, 2),
        // What a model may choose by itself: switches, small and round numbers, units.
        (
            r#"{"limit": 10, "page": 1, "size": 100, "all": true, "none": null, "unit": "celsius"}"#,
            0,
            0,
        ),
        (r#"{"nested": {"list": [{"name": "Schmidt"}]}}"#, 1, 0),
        ("not json", 0, 0),
        ("[]", 0, 0),
    ] {
        let arguments = [arguments];
        let found = signals(&called(question, &arguments));
        assert_eq!((found.values, found.values_grounded), (values, grounded), "{arguments:?}");
    }
}

#[test]
fn a_tools_result_grounds_the_next_call() {
    let arguments = [r#"{"order": 88213}"#];
    let evidence = called("Where is my order?", &arguments);
    let verdict = judged(&evidence);
    assert!(!verdict.accept);
    assert_eq!(verdict.reasons, ["1 of 1 argument values occur nowhere in what it was told"]);
    let context = [r#"{"orders": [{"id": 88213}]}"#];
    assert!(judged(&Evidence { context: &context, ..evidence }).accept);
}

#[test]
fn what_other_models_think_counts() {
    let with = |agreement, judge, logprob_mean| {
        judged(&Evidence { agreement, judge, logprob_mean, ..answered("84") })
    };
    assert!(with(Some(1.0), Some(1.0), Some(-0.1)).accept);
    assert!(with(Some(0.5), None, None).accept);
    assert!(!with(Some(0.0), None, None).accept);
    assert!(!with(None, Some(0.2), None).accept);
    let verdict = with(None, None, Some(-2.5));
    assert!(!verdict.accept);
    assert_eq!(verdict.reasons, ["its tokens were guesses: mean log-probability -2.50"]);
}

#[test]
fn the_policy_says_how_sure_an_answer_must_be() {
    let found = signals(&answered("84"));
    let strict = Policy { accept: 0.9, ..Policy::default() };
    assert!(!score(&strict, None, StepClass::Answer, &found).accept);
    let lax = Policy { accept: 0.0, ..Policy::default() };
    assert!(score(&lax, None, StepClass::Answer, &Signals { empty: true, ..found }).accept);
}

#[test]
fn learnt_weights_decide_for_the_classes_they_know() {
    let mut file = averages(prior(0.5, 10.0), prior(0.5, 10.0));
    let mut weights = vec![0.0; SIGNAL_NAMES.len()];
    weights[SIGNAL_NAMES.iter().position(|name| *name == "hedges").unwrap()] = -3.0;
    file["answer"] = json!({
        "mean": vec![0.0; 20], "scale": vec![1.0; 20], "weights": weights, "intercept": 1.0,
        "classes": {"answer": {"slope": 1.0, "intercept": 0.0}},
    });
    let learnt = parsed(&file);
    let doubtful = signals(&answered("Perhaps 84."));
    let verdict = score(&Policy::default(), Some(&learnt), StepClass::Answer, &doubtful);
    // sigmoid(1 - 3 ln 2) = 0.2536.
    assert!((verdict.p_ok - 0.2536).abs() < 1e-3 && !verdict.accept, "{verdict:?}");
    assert_eq!(verdict.reasons, ["such answers are right in 25 % of cases"]);
    assert!(score(&Policy::default(), Some(&learnt), StepClass::Chat, &doubtful).accept);
    // What cannot count stays out, whatever was learnt.
    let empty = Signals { empty: true, ..Signals::default() };
    assert!(!score(&Policy::default(), Some(&learnt), StepClass::Answer, &empty).accept);
}

#[test]
fn signals_read_back_as_written_and_old_ones_read_too() {
    let found = signals(&Evidence { judge: Some(0.5), ..answered("Perhaps 12 + 3 = 15.") });
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Signals>(&text).unwrap(), found);
    assert_eq!(serde_json::from_str::<Signals>("{}").unwrap(), Signals::default());
}

#[test]
fn a_very_long_answer_is_looked_at_from_its_end() {
    let text = format!("{}1 + 1 = 3", "word ".repeat(100_000));
    let found = signals(&answered(&text));
    assert_eq!(found.equations_wrong, 1);
    assert!(found.words < 10_000);
}
