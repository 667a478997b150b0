//! Reading weights files, and what is made of them.

use mainspring_route::{Features, Policy, Step, StepClass, Weights, WeightsError, choose};
use serde_json::{Value, json};

use crate::support::{averages, parsed, prior, small_and_large, step, texts};

fn p_ok(file: &Value, step: &Step<'_>) -> Vec<f64> {
    let weights = parsed(file);
    let decision = choose(&Policy::default(), Some(&weights), &small_and_large(), step);
    decision.candidates.iter().filter_map(|model| model.p_ok).collect()
}

fn bucket_of(word: &str) -> u16 {
    Features::of(word).grams().next().expect("a word is a gram").0
}

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut file = texts(7);
    change(&mut file);
    Weights::parse(file.to_string().as_bytes()).expect_err("it is refused").to_string()
}

#[test]
fn the_id_is_the_hash_of_the_file() {
    let file = averages(prior(0.5, 10.0), prior(0.6, 10.0)).to_string();
    let weights = Weights::parse(file.as_bytes()).unwrap();
    assert_eq!(weights.id().len(), 64);
    assert_eq!(weights.models(), ["small", "large"]);
    let other = Weights::parse(format!("{file} ").as_bytes()).unwrap();
    assert_ne!(weights.id(), other.id());
}

#[test]
fn few_outcomes_are_drawn_to_what_is_known_above_them() {
    let mut file = averages(prior(0.9, 4.0), prior(0.5, 396.0));
    file["strength"] = json!(12.0);
    file["priors"]["labels"] = json!({"billing": [prior(0.0, 1.0), prior(0.0, 1.0)]});
    let found = p_ok(&file, &step());
    // Pooled 0.504; small: (4 * 0.9 + 12 * 0.504) / 16 = 0.603, and the class once more.
    assert!((found[0] - (4.0 * 0.9 + 12.0 * 0.603) / 16.0).abs() < 1e-3, "{found:?}");
    let labelled = p_ok(&file, &Step { label: "billing", ..step() });
    assert!((labelled[0] - found[0] * 12.0 / 13.0).abs() < 1e-9, "{labelled:?}");
    let unknown = p_ok(&file, &Step { label: "travel", ..step() });
    assert_eq!(unknown, found);
}

#[test]
fn texts_move_the_estimate_where_there_is_enough_to_learn_from() {
    let file = texts(bucket_of("hard"));
    let hard = Step { text: "hard", ..step() };
    let easy = Step { text: "easy", ..step() };
    let found = p_ok(&file, &hard);
    // (0.6 + 9 * sigmoid(-2)) / 10, (0.7 + 9 * sigmoid(6)) / 10.
    assert!((found[0] - 0.16728).abs() < 1e-4 && (found[1] - 0.96777).abs() < 1e-4, "{found:?}");
    assert!(p_ok(&file, &easy)[0] > 0.85);
    let mut few = file.clone();
    few["labels_min"] = json!(501.0);
    assert_eq!(p_ok(&few, &hard), [0.6, 0.7]);
    let wordless = Step { text: "", ..step() };
    assert_eq!(p_ok(&file, &wordless), [0.6, 0.7]);
}

#[test]
fn a_calibration_bends_what_the_text_says() {
    let mut file = texts(bucket_of("hard"));
    file["calibration"] = json!({"answer": {"slope": 0.0, "intercept": 1.0}});
    let found = p_ok(&file, &Step { text: "hard", ..step() });
    assert!((found[0] - 0.731_058).abs() < 1e-6 && found[0] == found[1], "{found:?}");
}

#[test]
fn texts_of_another_kind_fall_back_to_the_averages() {
    let hard = Step { text: "hard", ..step() };
    let mut strange = texts(bucket_of("hard"));
    strange["text"]["domain"]["surface_max"] = json!(0.5);
    assert_eq!(p_ok(&strange, &hard), [0.6, 0.7]);
    let mut unfit = texts(bucket_of("hard"));
    unfit["text"]["domain"]["signature"] = json!([bucket_of("usual")]);
    unfit["text"]["domain"]["share"] = json!([0.9]);
    unfit["text"]["domain"]["fit_min"] = json!(-0.2);
    assert_eq!(p_ok(&unfit, &hard), [0.6, 0.7]);
    assert_ne!(p_ok(&unfit, &Step { text: "usual hard", ..step() }), [0.6, 0.7]);
}

#[test]
fn weights_that_know_tasks_by_name_say_nothing_of_others() {
    let mut file = texts(bucket_of("hard"));
    file["priors"]["labels"] = json!({"billing": [prior(0.6, 500.0), prior(0.7, 500.0)]});
    let at = |label| p_ok(&file, &Step { text: "hard", label, ..step() });
    assert_eq!(at("travel"), [0.6, 0.7]);
    assert_eq!(at(""), [0.6, 0.7]);
    assert!(at("billing")[0] < 0.2);
}

#[test]
fn another_version_is_refused() {
    let mut file = texts(7);
    file["version"] = json!(2);
    let error = Weights::parse(file.to_string().as_bytes()).unwrap_err();
    assert_eq!(error, WeightsError::Version(2));
    assert_eq!(error.to_string(), "the routing weights have version 2, this version reads 1");
    assert_eq!(
        (error.code(), error.hint()),
        ("route_version", "mainspring route train writes the file anew")
    );
}

#[test]
fn what_is_no_weights_file_is_refused() {
    let file = texts(7).to_string();
    for cut in [0, 1, file.len() / 2, file.len() - 1] {
        let error = Weights::parse(&file.as_bytes()[..cut]).unwrap_err();
        assert_eq!(error.code(), "route_invalid");
        assert!(error.to_string().starts_with("the routing weights cannot be read: "), "{error}");
    }
    assert!(refused(|file| file["format"] = json!("other")).contains("its format is \"other\""));
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    type Case = (&'static str, fn(&mut Value));
    let cases: [Case; 12] = [
        ("models: 2", |file| file["models"] = json!(["small", "small"])),
        ("models: 0", |file| file["models"] = json!([])),
        ("priors has 1 values, 2 are needed", |file| {
            file["priors"]["all"] = json!([prior(0.5, 1.0)]);
        }),
        ("a prior of mean 1.5 and count 1", |file| {
            file["priors"]["labels"] = json!({"x": [prior(1.5, 1.0), prior(0.5, 1.0)]});
        }),
        ("strength is negative", |file| file["strength"] = json!(-1.0)),
        ("grams.idf has 2 values, 1 are needed", |file| {
            file["text"]["grams"]["idf"] = json!([1.0, 2.0]);
        }),
        ("grams.index is not ascending", |file| {
            file["text"]["grams"]["index"] = json!([9, 9]);
            file["text"]["grams"]["idf"] = json!([1.0, 2.0]);
        }),
        ("grams.weights has the value 10000000", |file| {
            file["text"]["grams"]["weights"] = json!([[1e7], [0.0]]);
        }),
        ("surface has a scale of 0 or less", |file| {
            file["text"]["surface"]["scale"][3] = json!(0.0);
        }),
        ("domain.share has a value outside 0 to 1", |file| {
            file["text"]["domain"]["signature"] = json!([1]);
            file["text"]["domain"]["share"] = json!([2.0]);
        }),
        ("calibration has the value 10000000", |file| {
            file["calibration"] = json!({"answer": {"slope": 1e7, "intercept": 0.0}});
        }),
        ("answer has 1 values, 20 are needed", |file| {
            file["answer"] = json!({
                "mean": [0.0], "scale": [1.0], "weights": [0.0], "intercept": 0.0, "classes": {},
            });
        }),
    ];
    for (wanted, change) in cases {
        let error = refused(change);
        assert!(error.contains(wanted), "{error:?} does not say {wanted:?}");
    }
}

#[test]
fn every_class_has_a_name() {
    for class in StepClass::ALL {
        assert_eq!(StepClass::named(class.as_str()), Some(class));
        assert_eq!(serde_json::to_value(class).unwrap(), json!(class.as_str()));
    }
    assert_eq!(StepClass::named("poem"), None);
}
